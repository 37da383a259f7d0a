"""Assembly source that pyvmm takes, and words for what as and ld reject."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from pyvmm.errors import GuestError
from pyvmm.guest import tool_messages
from pyvmm.guest.dialects import (
    dialect,
    intel_remedy,
    is_register,
    preprocessor_cause,
    preprocessor_line,
    preprocessor_remedy,
)
from pyvmm.guest.elf import is_elf
from pyvmm.guest.elf_kind import elf_kind
from pyvmm.guest.formats import binary_kind
from pyvmm.guest.texts import UTF8_MARK, UTF16_MARKS

# What as says of 64-bit code.
_WIDE = re.compile(
    r"bad register name [`'(%]+r(?:[abcd]x|[sd]i|[sb]p|ip|\d+)|BFD_RELOC_(?:X86_64_\w+|64\b)"
)


def read_source(path: Path, data: bytes, mode: str | None) -> str:
    """The text of an assembly file. Raises :class:`GuestError` for what GNU as cannot mean."""
    name = str(path)
    if data.startswith((UTF8_MARK, *UTF16_MARKS)):
        code = "UTF-8 byte order mark" if data.startswith(UTF8_MARK) else "UTF-16 byte order mark"
        raise GuestError(name, f"it begins with a {code}", "save it as UTF-8 without one")
    kind = elf_kind(data) if is_elf(data) else binary_kind(data, len(data))
    if kind is not None or b"\0" in data:
        what = kind.name if kind is not None else "no text"
        cause = f"it is {what}, and by its name it should be assembly"
        raise GuestError(name, cause, "a binary needs a name that does not end in .S, .s or .asm")
    text = data.decode(errors="replace")
    if mode is None:
        check_source(name, text)
    return text


def check_source(name: str, text: str) -> None:
    """Refuse what as would take as comments, though it is surely meant for a preprocessor."""
    line = preprocessor_line(text)
    if line is not None:
        remedy = f"{preprocessor_remedy(name)}; --mode real takes the line as a comment"
        raise GuestError(name, f"line {line.number} is for the C preprocessor: {line.text}", remedy)


def why_not_assembled(name: str, stderr: str, source: str) -> GuestError:
    complaint = tool_messages.from_assembler(stderr)
    found = dialect(source, name)
    if found is not None:
        shown = f"{found.name} syntax (line {found.line.number}: {found.line.text})"
        return GuestError(name, f"it is {shown}, and pyvmm assembles with GNU as", found.remedy)
    cause = f"not assembling: {complaint}"
    for_cpp = preprocessor_cause(source, complaint.text, complaint.line)
    if for_cpp is not None:
        note = f"line {for_cpp.number} is for the C preprocessor: {for_cpp.text}"
        return GuestError(name, f"{cause}; {note}", preprocessor_remedy(name))
    return GuestError(name, cause, _remedy(complaint, source))


def why_not_linked(name: str, stderr: str, source: str) -> GuestError:
    complaint = tool_messages.from_linker(stderr, name, source)
    cause = f"not linking: {complaint}"
    if not complaint.symbol:
        return GuestError(name, cause)
    for_cpp = preprocessor_cause(source, complaint.symbol, complaint.line)
    if for_cpp is not None:
        note = f"line {for_cpp.number} is for the C preprocessor: {for_cpp.text}"
        return GuestError(name, f"{cause}; {note}", preprocessor_remedy(name))
    if "undefined symbol" not in complaint.text:
        remedy = "a real-mode segment reaches 64 KiB" if "16 bits" in complaint.text else ""
        return GuestError(name, cause, remedy)
    if is_register(complaint.symbol):
        remedy = f"write the register %{complaint.symbol}, or begin with .intel_syntax noprefix"
        return GuestError(name, cause, remedy)
    labels = set(re.findall(r"^\s*([A-Za-z_.$][\w.$]*):", source, re.MULTILINE))
    near = difflib.get_close_matches(complaint.symbol, sorted(labels), 1)
    return GuestError(name, cause, f"is {near[0]} meant?" if near else "define it (LABEL: or .set)")


def _remedy(complaint: tool_messages.Complaint, source: str) -> str:
    intel = intel_remedy(source, complaint.line)
    if intel:
        return intel
    if _WIDE.search(complaint.text):
        return "guests run in real mode, which has no 64-bit registers"
    if "can't open" in complaint.text or "file not found" in complaint.text:
        return "it is looked for beside the guest and in guests/include"
    return ""
