"""Words for what as, gcc and ld reject: what is wrong, in which line, and what to do."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from pyvmm.errors import GuestError
from pyvmm.guest import tool_messages
from pyvmm.guest.dialects import dialect, intel_remedy, is_register
from pyvmm.guest.layout import PROTECTED
from pyvmm.guest.tool_messages import Complaint

# So much of a source is looked at to tell whom it is for.
_HEAD = 1 << 16
# What as says of 64-bit code.
_WIDE = re.compile(
    r"bad register name [`'(%]+r(?:[abcd]x|[sd]i|[sb]p|ip|\d+)|BFD_RELOC_(?:X86_64_\w+|64\b)"
    r"|only supported in 64-bit mode"
)
_C_LIBRARY = re.compile(
    r" (?:assert|ctype|errno|fcntl|inttypes|signal|stdio|stdlib|string|time|unistd|sys/\w+)\.h: "
    "No such file"
)
# What libgcc has for floating point.
_FLOATS = re.compile(
    r"__(?:add|sub|mul|div|neg|cmp|unord|eq|ne|lt|le|gt|ge|float\w*|fix\w*|extend\w*|trunc\w*|pow)"
    r"[a-z]*[sdxt][fc]\w*"
)
# What pyvmm.h has for 64-bit guests alone.
_OF_LONG_MODE = re.compile(r"'(?:map|unmap|flush|HIGH_\w+|PTE_\w+)'(?: undeclared|$| \[)")
_NO_FLOATS = "a guest has no floating point, which KVM's emulator lacks"
_UNKNOWN = re.compile(r"no such instruction: [`']([\w.$]+)")


def why_not_assembled(name: str, stderr: str, source: str, include: Path) -> GuestError:
    """as's first error; ``include`` is the file with the macros of the guest protocol."""
    complaint = tool_messages.from_assembler(stderr, name, source)
    found = dialect(source[:_HEAD], name)
    if found is not None:
        shown = f"{found.name} syntax (line {found.line.number}: {found.line.text})"
        return GuestError(name, f"it is {shown}, and pyvmm assembles with GNU as", found.remedy)
    cause = f"not assembling: {complaint}"
    return GuestError(name, cause, _remedy(complaint, source, include))


def why_not_linked(name: str, stderr: str, source: str, include: Path) -> GuestError:
    """ld's first error; ``include`` as above."""
    complaint = tool_messages.from_linker(stderr, name, source)
    cause = f"not linking: {complaint}"
    if not complaint.symbol:
        return GuestError(name, cause)
    if "undefined symbol" not in complaint.text:
        remedy = "a real-mode segment reaches 64 KiB" if "16 bits" in complaint.text else ""
        return GuestError(name, cause, remedy)
    if is_register(complaint.symbol):
        remedy = f"write the register %{complaint.symbol}, or begin with .intel_syntax noprefix"
        return GuestError(name, cause, remedy)
    if _misses(include, r"\.set\s+", complaint.symbol, source):
        return GuestError(name, cause, f'it is in {include.name}: .include "{include.name}"')
    labels = set(re.findall(r"^[ \t]*([A-Za-z_.$][\w.$]*):", source, re.MULTILINE))
    near = difflib.get_close_matches(complaint.symbol, sorted(labels), 1)
    return GuestError(name, cause, f"is {near[0]} meant?" if near else "define it (LABEL: or .set)")


def why_not_preprocessed(name: str, stderr: str) -> GuestError:
    """cpp's first error."""
    complaint = tool_messages.from_compiler(stderr)
    missing = "No such file or directory" in complaint.text
    remedy = "it is looked for beside the guest and in guests/include" if missing else ""
    return GuestError(name, f"not preprocessing: {complaint}", remedy)


def why_not_compiled(name: str, stderr: str, source: str, mode: str) -> GuestError:
    """gcc's first error."""
    complaint = tool_messages.from_compiler(stderr)
    remedy = ""
    if "File size limit exceeded" in stderr:
        return GuestError(name, "what gcc makes of it is too large for a guest")
    if "out of memory" in complaint.text or "memory exhausted" in complaint.text:
        return GuestError(name, "not compiling: it takes gcc more memory than a guest may")
    if _C_LIBRARY.search(complaint.text):
        remedy = "a guest has no C library: pyvmm.h has printf(), memcpy() and the like"
    elif "No such file or directory" in complaint.text:
        remedy = "it is looked for beside the guest and in guests/include"
    elif "SSE" in complaint.text or "x87" in complaint.text or "80387" in complaint.text:
        remedy = _NO_FLOATS
    elif mode == PROTECTED.mode and _OF_LONG_MODE.search(complaint.text):
        remedy = "pyvmm.h has that for --mode long"
    elif "implicit declaration" in complaint.text and "pyvmm.h" not in source:
        remedy = 'is it in pyvmm.h: #include "pyvmm.h"?'
    elif "conflicting types for" in complaint.text and "main" in complaint.text:
        remedy = "it is int main(unsigned vcpu, unsigned vcpus)"
    return GuestError(name, f"not compiling: {complaint}", remedy)


def why_not_linked_to_the_runtime(name: str, stderr: str, source: str) -> GuestError:
    """ld's first error about a guest in C."""
    if "relocation truncated to fit" in stderr:
        cause = "its code and variables reach beyond 2 GiB, where code of gcc's does not"
        return GuestError(
            name, cause, "use memory there by its address: read64(), write64(), map()"
        )
    complaint = tool_messages.from_linker(stderr, name, source)
    remedy = ""
    if complaint.symbol == "main":
        complaint = complaint._replace(text=f"{name}: there is no main()")
        remedy = "a guest in C has int main(unsigned vcpu, unsigned vcpus)"
    elif _FLOATS.fullmatch(complaint.symbol):
        remedy = _NO_FLOATS
    return GuestError(name, f"not linking: {complaint}", remedy)


def _remedy(complaint: Complaint, source: str, include: Path) -> str:
    intel = intel_remedy(source, complaint.line)
    if intel:
        return intel
    if _WIDE.search(complaint.text):
        return "64-bit code is for --mode long"
    unknown = _UNKNOWN.search(complaint.text)
    if unknown and _misses(include, r"\.macro\s+", unknown[1], source):
        return f'that macro is in {include.name}: .include "{include.name}"'
    if "can't open" in complaint.text or "file not found" in complaint.text:
        return "it is looked for beside the guest and in guests/include"
    return ""


def _misses(include: Path, directive: str, name: str, source: str) -> bool:
    """Whether ``include`` has what ``source`` lacks, and is not included."""
    if include.name in source or not include.is_file():
        return False
    pattern = rf"^\s*{directive}{re.escape(name)}\b"
    return re.search(pattern, include.read_text(), re.MULTILINE) is not None
