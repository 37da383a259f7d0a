"""Whether assembly is for the C preprocessor first.

GNU as takes a line that begins with ``#`` as a comment, so a directive of the preprocessor does
nothing there. Such a line may also be a comment that somebody wrote, so only exact syntax counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_LONGEST_LINE = 300
_AFTER = r"\s*(?:/[/*].*)?$"
_INCLUDES = re.compile(r"#\s*include\s*(?:<[^<>]+>|\"[^\"]+\")" + _AFTER)
_DEFINES = re.compile(r"#\s*define\s+([A-Za-z_]\w*)")
_BEGINS_IF = re.compile(r"#\s*(?:if\s+\S.*|ifn?def\s+\w+" + _AFTER + ")")
_PERHAPS = re.compile(r"#\s*(?:include|if|define)")
_WORD = re.compile(r"[A-Za-z_]\w*")
_ENDS_IF = re.compile(r"#\s*endif" + _AFTER)


class Line(NamedTuple):
    """``text`` without the spaces around it; ``number`` counts from 1."""

    number: int
    text: str


def lines(text: str) -> Iterator[Line]:
    """The lines that are not empty, without block comments and cut to a bearable length."""
    for number, line in enumerate(_without_block_comments(text).splitlines(), 1):
        if stripped := line[:_LONGEST_LINE].strip():
            yield Line(number, stripped)


def _without_block_comments(text: str) -> str:
    """``text`` with the line ends of its ``/*`` comments alone, in one pass."""
    kept = []
    at = 0
    while (begin := text.find("/*", at)) >= 0 and (end := text.find("*/", begin + 2)) >= 0:
        kept += [text[at:begin], "\n" * text.count("\n", begin, end)]
        at = end + 2
    return "".join([*kept, text[at:]])


def line_for_it(text: str) -> Line | None:
    """A line that is surely for the C preprocessor: an #include, or an #if with its #endif."""
    if not _PERHAPS.search(text):
        return None
    begins_if: Line | None = None
    for line in lines(text):
        if line.text.startswith("#include") and _INCLUDES.match(line.text):
            return line
        if begins_if is None and _BEGINS_IF.match(line.text):
            begins_if = line
        elif begins_if is not None and _ENDS_IF.match(line.text):
            return begins_if
    return None


def is_for_it(text: str) -> bool:
    """Whether it has to see the text: for a line that is surely for it, or a #define of what the
    code has."""
    if not _PERHAPS.search(text):
        return False
    if line_for_it(text) is not None:
        return True
    defined = {
        found[1]
        for line in lines(text)
        if line.text.startswith("#define") and (found := _DEFINES.match(line.text))
    }
    return bool(defined) and any(
        not defined.isdisjoint(_WORD.findall(line.text.split("#", 1)[0])) for line in lines(text)
    )


def mentions(text: str, symbol: str) -> bool:
    """Whether a directive has the symbol, which it then needs to know."""
    word = re.compile(rf"(?<![\w$]){re.escape(symbol)}(?![\w$])")
    return any(line.text.startswith("#") and word.search(line.text) for line in lines(text))
