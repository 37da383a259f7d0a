"""Assembly source that pyvmm takes, by what can be seen before it is assembled."""

from __future__ import annotations

import re
from pathlib import Path

from pyvmm.errors import GuestError
from pyvmm.guest import preprocessor
from pyvmm.guest.elf import is_elf
from pyvmm.guest.elf_kind import elf_kind
from pyvmm.guest.formats import binary_kind
from pyvmm.guest.text import MAX_SOURCE, UTF8_MARK, UTF16_MARKS

_WIDE = re.compile(r"\.code(32|64)\b")
_WIDTH = re.compile(r"\.code(16|32|64)\b")
_MODES = {"16": "real", "32": "protected", "64": "long"}
_ALL_THE_SAME = "; --mode real runs it all the same"
_WIDTH_OF_NASM = re.compile(
    r"^[ \t]*\[?[ \t]*(?:bits[ \t]+|use)(16|32|64)\b", re.IGNORECASE | re.MULTILINE
)


def read_text(path: Path, data: bytes) -> str:
    """The text of a source file. Raises :class:`GuestError` for what is no text of UTF-8."""
    name = str(path)
    if len(data) > MAX_SOURCE:
        raise GuestError(name, f"{len(data)} bytes are too many for source", "is it a binary?")
    if data.startswith((UTF8_MARK, *UTF16_MARKS)):
        code = "UTF-8 byte order mark" if data.startswith(UTF8_MARK) else "UTF-16 byte order mark"
        raise GuestError(name, f"it begins with a {code}", "save it as UTF-8 without one")
    kind = elf_kind(data) if is_elf(data) else binary_kind(data, len(data))
    if kind is not None or b"\0" in data:
        what = kind.name if kind is not None else "no text"
        language = "C" if path.suffix == ".c" else "assembly"
        cause = f"it is {what}, and by its name it should be {language}"
        ends = ".c" if path.suffix == ".c" else ".S, .s or .asm"
        raise GuestError(name, cause, f"a binary needs a name that does not end in {ends}")
    return data.decode(errors="replace")


def read_source(path: Path, data: bytes, mode: str, is_asked: bool) -> str:
    """The text of an assembly file for a mode, which the user may have asked for.

    Raises :class:`GuestError` for what GNU as cannot mean.
    """
    name, text = str(path), read_text(path, data)
    if not is_asked and mode == "real":
        _check_wide(name, text)
    elif is_asked and mode != "real":
        _check_short(name, text, mode)
    return text


def check_nasm(name: str, text: str, mode: str, is_asked: bool) -> None:
    """Refuse NASM source that says to be of other widths only than the mode's.

    What the user has asked to be real-mode code may be any. Raises :class:`GuestError`.
    """
    said = list(_WIDTH_OF_NASM.finditer(text))
    is_real = mode == "real"
    if not said or (is_real and is_asked) or "%include" in text:
        return
    if all(_MODES[each[1]] != mode for each in said):
        line = text.count("\n", 0, said[0].start()) + 1
        wanted = "real-mode guest" if is_real else f"guest of {mode} mode"
        raise _of_another_width(name, said[0][1], line, wanted, _ALL_THE_SAME if is_real else "")


def may_say_its_width(text: str) -> bool:
    """Whether a directive of the text, or of a file that it includes, may say .code16."""
    return ".code" in text or _includes(text)


def _includes(text: str) -> bool:
    return ".include" in text or "#include" in text


def _check_wide(name: str, text: str) -> None:
    """Refuse code that says to be of 32 or 64 bits, and never of 16."""
    if ".code16" in text or _includes(text):
        return
    for line in preprocessor.lines(text):
        if found := _WIDTH.match(line.text):
            raise _of_another_width(name, found[1], line.number, "real-mode guest", _ALL_THE_SAME)


def _of_another_width(name: str, width: str, line: int, wanted: str, more: str = "") -> GuestError:
    cause = f"it is {width}-bit code (line {line}), no {wanted}"
    return GuestError(name, cause, f"--mode {_MODES[width]} is for such code{more}")


def _check_short(name: str, text: str, mode: str) -> None:
    """Refuse code that says first of all to be of another width than the mode's."""
    if _includes(text):
        return
    width = "64" if mode == "long" else "32"
    for line in preprocessor.lines(text):
        if found := _WIDTH.match(line.text):
            if found[1] == width or (found[1] == "16" and _WIDE.search(text)):
                return
            raise _of_another_width(name, found[1], line.number, f"guest of {mode} mode")
        if line.text and line.text[0] not in "#/." and not line.text.endswith(":"):
            return  # code as the mode has it
