"""What a source is written for other than GNU as alone: the C preprocessor, NASM, Intel's syntax.

GNU as takes a line that begins with ``#`` as a comment, so a directive of the preprocessor does
nothing there. Such a line may also be a comment that somebody wrote, so only exact syntax counts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

_LONGEST_LINE = 300

_OF_GAS = re.compile(
    r"(?:[\w.$]+:\s*)?\.(?:code16|code32|code64|code16gcc|intel_syntax|globl|global|text|section|"
    r"include|macro|set|equ|org|asciz?|string|byte|word|long|align)\b(?!\s*[=:(])"
)
_OF_NASM = re.compile(
    r"\[\s*(?:bits|org|section|segment|global|extern|cpu)\s[^\]]*\]"
    r"|bits\s+(?:16|32|64)\b|use(?:16|32|64)\s*(?:;|$)"
    r"|%(?:define|xdefine|idefine|assign|i?macro|include|ifn?def|ifn?|elif|else|endif|endmacro"
    r"|rep|endrep|undef|error|warning|use|pragma)\b"
    r"|(?:section|segment)\s+\.\w+"
    r"|(?:global|extern)\s+[\w.$@?]+\s*(?:;|$)"
    r"|(?:[\w.$@?]+:?\s+)?(?:res[bwdq]|incbin)\s+\S",
    re.IGNORECASE,
)
_OF_FASM = re.compile(
    r"format\s+(?:binary|elf|elf64|pe|mz|coff)\b|include\s+'[^']*'",
    re.IGNORECASE,
)
_OF_MASM = re.compile(
    r"\.model\s+\w+|\.(?:code|stack)\b\s*(?:\w+h?\s*)?(?:;|$)|\w+\s+(?:proc|endp|ends)\s*(?:;|$)"
    r"|assume\s+\w+:|\w+\s+segment\b",
    re.IGNORECASE,
)
_OF_SEVERAL = re.compile(  # NASM, fasm and MASM
    r"org\s+[0-9$][\w+*-]*\s*(?:;|$)"
    r"|(?:[\w.$@?]+:?\s+)?times\s+\S"
    r"|(?:[\w.$@?]+:?\s+)?d[bwdqt]\s+[-\w'\"`$?(]"
    r"|[\w.$@?]+:?\s+equ\s+\S",
    re.IGNORECASE,
)
_REGISTER = r"(?:e?[abcd]x|[abcd][lh]|e?[sd]i|e?[sb]p|[cdefgs]s)"
_OF_INTEL = re.compile(
    r"(?:[\w.$]+:\s*)?(?:mov[sz]?x?|add|adc|sub|sbb|xor|and|or|cmp|test|push|pop|inc|dec|in|lea|"
    rf"xchg|i?mul|i?div|neg|not|sh[lr]|ro[lr])\s+(?:{_REGISTER}|(?:byte|word|dword)\b.*)\s*(?:[,;#]|$)"
    rf"|out\s+\w+\s*,\s*{_REGISTER}\s*(?:[;#]|$)|int\s+(?:0x)?[0-9a-f]+h?\s*(?:[;#]|$)",
    re.IGNORECASE,
)
_IS_REGISTER = re.compile(_REGISTER, re.IGNORECASE)
_INTEL_SYNTAX = re.compile(r"\.intel_syntax\b(\s+noprefix)?")

_AFTER = r"\s*(?:/[/*].*)?$"
_INCLUDES = re.compile(r"#\s*include\s*(?:<[^<>]+>|\"[^\"]+\")" + _AFTER)
_DEFINES = re.compile(r"#\s*define\s+([A-Za-z_]\w*)")
_BEGINS_IF = re.compile(r"#\s*(?:if\s+\S.*|ifn?def\s+\w+" + _AFTER + ")")
_ENDS_IF = re.compile(r"#\s*endif" + _AFTER)


class Line(NamedTuple):
    """``text`` without the spaces around it; ``number`` counts from 1."""

    number: int
    text: str


class Dialect(NamedTuple):
    """An assembler's name, the line that shows it, and how to use that assembler."""

    name: str
    line: Line
    remedy: str


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


def is_gas(text: str) -> bool:
    return any(_OF_GAS.match(line.text) for line in lines(text))


def dialect(text: str, name: str) -> Dialect | None:
    """The assembler that the file called ``name`` is for; None if GNU as, or unknown."""
    if is_gas(text):
        return None
    nasm = f"make a flat binary (nasm -f bin {shlex.quote(name)} -o GUEST.bin) and run that"
    fasm = f"make a flat binary (fasm {shlex.quote(name)} GUEST.bin) and run that"
    own = "make a flat binary with that assembler and run that"
    for pattern, which, remedy in (
        (_OF_FASM, "fasm", fasm),
        (_OF_NASM, "NASM", nasm),
        (_OF_MASM, "MASM or TASM", own),
        (_OF_SEVERAL, "NASM", nasm),
    ):
        for line in lines(text):
            if pattern.match(line.text):
                return Dialect(which, line, remedy)
    return None


def preprocessor_line(text: str) -> Line | None:
    """A line that is surely for the C preprocessor: an #include, or an #if with its #endif."""
    begins_if: Line | None = None
    for line in lines(text):
        if line.text.startswith("#include") and _INCLUDES.match(line.text):
            return line
        if begins_if is None and _BEGINS_IF.match(line.text):
            begins_if = line
        elif begins_if is not None and _ENDS_IF.match(line.text):
            return begins_if
    return None


def preprocessor_cause(text: str, words: str, number: int) -> Line | None:
    """A line for the C preprocessor that explains why as or ld rejects line ``number``.

    ``words`` are what they say of it.
    """
    rejected = " ".join(line.text for line in lines(text) if line.number == number)
    mentioned = set(re.findall(r"\w+", f"{words} {rejected}"))
    for line in lines(text):
        defined = _DEFINES.match(line.text)
        if _INCLUDES.match(line.text) or (defined and defined[1] in mentioned):
            return line
    return preprocessor_line(text)


def preprocessor_remedy(name: str) -> str:
    return (
        "pyvmm does not preprocess, and # begins a comment: use .include, .set and --param, or "
        f"run gcc -E {shlex.quote(name)} -o GUEST.s first"
    )


def intel_remedy(text: str, number: int) -> str:
    """What to do if line ``number``, which as rejects, is in Intel's syntax; else ""."""
    rejected = [line for line in lines(text) if line.number == number]
    if not any(_OF_INTEL.match(line.text) for line in rejected):
        return ""
    told = _INTEL_SYNTAX.search(text)
    if told is None:
        return "for Intel's syntax put .intel_syntax noprefix before it"
    return "" if told[1] else "registers without % need .intel_syntax noprefix"


def is_register(symbol: str) -> bool:
    return _IS_REGISTER.fullmatch(symbol) is not None
