"""What GNU as, gcc and ld print, made one line that says what is wrong and where."""

from __future__ import annotations

import re
from typing import NamedTuple

from pyvmm.guest.preprocessor import lines

_PLACE = re.compile(r"(?P<file>.+?):(?P<number>\d+): (?P<what>.*)")
_INVOKED = re.compile(r"(?P<place>.+:\d+):\s+Info: macro invoked from here")
_LOCAL = re.compile(r"local label [`']\"(\d+)\"")
_GCC_ERROR = re.compile(r":\d+: (?:fatal )?error: | Error: ")
_GCC_ENDS = ("compilation terminated", "In file included from", "from ")
_OBJECT = re.compile(r"^(?:\S*ld(?:\.\w+)?: )?(?:/proc/self/fd/\d+:)?")
# Behind the line, or in its place, ld may name section and offset in brackets.
_UNDEFINED = re.compile(
    r"(?P<where>.*?):?(?:\([^()]*\))?: undefined reference to [`'](?P<symbol>.*)'"
)
_TRUNCATED = re.compile(
    r"(?P<where>.*?):?(?:\([^()]*\))?: relocation truncated to fit: "
    r"R_(?:386|X86_64)_(?:PC|PLT)?(?P<bits>8|16|32)S? against (?:symbol )?[`'](?P<symbol>[^`']*)'.*"
)


class Complaint(NamedTuple):
    """The first error: ``text`` with its place, ``line`` of the source (0 if unknown) and, from
    the linker, the ``symbol`` that it is about; ``errors`` there are."""

    text: str
    line: int = 0
    symbol: str = ""
    errors: int = 1

    def __str__(self) -> str:
        return self.text + (f" (and {self.errors - 1} more)" if self.errors > 1 else "")


def from_assembler(stderr: str, name: str, source: str) -> Complaint:
    """as's first error that has a place; one in a macro has the place of the macro's use.

    ``name`` and ``source`` give the line of a local label, for which as has none.
    """
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [at for at, line in enumerate(said) if "error: " in line.lower()]
    placed = [at for at in errors if _PLACE.fullmatch(said[at])]
    if not placed:
        return _local_label(said, name, source) or _first(said)
    text = said[placed[0]]
    after = placed[0] + 1
    user = None
    while after < len(said) and (invoked := _INVOKED.fullmatch(said[after])):
        user, after = invoked["place"], after + 1
    found = _PLACE.fullmatch(text)
    if user is not None and found is not None:
        text = f"{user}: {found['what']} (in a macro)"
        found = _PLACE.fullmatch(text)
    return Complaint(text, int(found["number"]) if found else 0, errors=len(errors))


def from_compiler(stderr: str) -> Complaint:
    """gcc's first error, as it is: file:line:column: error: what."""
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in said if _GCC_ERROR.search(line)]
    if not errors:
        return _first([line for line in said if not line.startswith(_GCC_ENDS)] or said)
    found = _PLACE.match(errors[0])
    return Complaint(errors[0], int(found["number"]) if found else 0, errors=len(errors))


def _local_label(said: list[str], name: str, source: str) -> Complaint | None:
    """Where a label such as 1 is jumped to as 1f, and no 1: follows."""
    found = [label for line in said if (label := _LOCAL.search(line))]
    if not found:
        return None
    number = found[0][1]
    is_label = re.compile(rf"(?:.*[:;\s])?{number}:")
    is_jump = re.compile(rf"[^#]*\b{number}f\b")
    last = max((line.number for line in lines(source) if is_label.match(line.text)), default=0)
    for line in lines(source):
        if line.number >= last and is_jump.match(line.text):
            text = f"{name}:{line.number}: no label {number}: follows the jump to {number}f"
            return Complaint(text, line.number, errors=len(found))
    return None


def from_linker(stderr: str, name: str, source: str) -> Complaint:
    """ld's first error; ``name`` and ``source`` give the line of a symbol where ld does not."""
    said = [_OBJECT.sub("", line.strip(), count=1) for line in stderr.splitlines() if line.strip()]
    undefined = [found for line in said if (found := _UNDEFINED.fullmatch(line))]
    if undefined:
        places = [_place(found["where"], found["symbol"], name, source) for found in undefined]
        where, line = min(places, key=lambda place: (place[1] == 0, place[1]))
        symbol = undefined[places.index((where, line))]["symbol"]
        count = len({found["symbol"] for found in undefined})
        return Complaint(f"{where}: undefined symbol '{symbol}'", line, symbol, count)
    truncated = [found for line in said if (found := _TRUNCATED.fullmatch(line))]
    if truncated:
        first = truncated[0]
        where, line = _place(first["where"], first["symbol"], name, source)
        symbol = first["symbol"]
        what = f"an address in {symbol}" if symbol[:1] == "." else f"the address of '{symbol}'"
        text = f"{where}: {what} does not fit into {first['bits']} bits"
        return Complaint(text, line, symbol, len(truncated))
    return _first(said)


def _place(where: str, symbol: str, name: str, source: str) -> tuple[str, int]:
    """("file:line", line) of what ld says, or of the symbol's first use, or (name, 0)."""
    if found := re.fullmatch(r"(.+):(\d+)", where):
        return where, int(found[2])
    is_used = re.compile(rf"(?<![\w.$]){re.escape(symbol)}(?![\w.$])")
    for line in lines(source):
        if is_used.search(line.text.split("#", 1)[0]):
            return f"{name}:{line.number}", line.number
    return name, 0


def _first(said: list[str]) -> Complaint:
    """The first line that is no warning and no heading."""
    heading, warning = "Assembler messages:", "warning: "
    told = [
        line for line in said if warning not in line.lower() and not line.endswith(heading)
    ] or ["no message"]
    errors = [line for line in told if "error: " in line.lower()] or told
    return Complaint(errors[0], errors=len(errors))
