"""Words for what as and ld reject: what is wrong, in which line, and what to do."""

from __future__ import annotations

import difflib
import re

from pyvmm.errors import GuestError
from pyvmm.guest import preprocessor, tool_messages
from pyvmm.guest.dialects import dialect, intel_remedy, is_register
from pyvmm.guest.tool_messages import Complaint

# What as says of 64-bit code.
_WIDE = re.compile(
    r"bad register name [`'(%]+r(?:[abcd]x|[sd]i|[sb]p|ip|\d+)|BFD_RELOC_(?:X86_64_\w+|64\b)"
)


def why_not_assembled(name: str, stderr: str, source: str) -> GuestError:
    complaint = tool_messages.from_assembler(stderr)
    found = dialect(source, name)
    if found is not None:
        shown = f"{found.name} syntax (line {found.line.number}: {found.line.text})"
        return GuestError(name, f"it is {shown}, and pyvmm assembles with GNU as", found.remedy)
    cause = f"not assembling: {complaint}"
    behind = preprocessor.line_behind(source, complaint.text, complaint.line)
    if behind is not None:
        return _for_the_preprocessor(name, cause, behind)
    return GuestError(name, cause, _remedy(complaint, source))


def why_not_linked(name: str, stderr: str, source: str) -> GuestError:
    complaint = tool_messages.from_linker(stderr, name, source)
    cause = f"not linking: {complaint}"
    if not complaint.symbol:
        return GuestError(name, cause)
    behind = preprocessor.line_behind(source, complaint.symbol, complaint.line)
    if behind is not None:
        return _for_the_preprocessor(name, cause, behind)
    if "undefined symbol" not in complaint.text:
        remedy = "a real-mode segment reaches 64 KiB" if "16 bits" in complaint.text else ""
        return GuestError(name, cause, remedy)
    if is_register(complaint.symbol):
        remedy = f"write the register %{complaint.symbol}, or begin with .intel_syntax noprefix"
        return GuestError(name, cause, remedy)
    labels = set(re.findall(r"^[ \t]*([A-Za-z_.$][\w.$]*):", source, re.MULTILINE))
    near = difflib.get_close_matches(complaint.symbol, sorted(labels), 1)
    return GuestError(name, cause, f"is {near[0]} meant?" if near else "define it (LABEL: or .set)")


def _for_the_preprocessor(name: str, cause: str, line: preprocessor.Line) -> GuestError:
    note = f"line {line.number} is for the C preprocessor: {line.text}"
    return GuestError(name, f"{cause}; {note}", preprocessor.remedy(name))


def _remedy(complaint: Complaint, source: str) -> str:
    intel = intel_remedy(source, complaint.line)
    if intel:
        return intel
    if _WIDE.search(complaint.text):
        return "guests run in real mode, which has no 64-bit registers"
    if "can't open" in complaint.text or "file not found" in complaint.text:
        return "it is looked for beside the guest and in guests/include"
    return ""
