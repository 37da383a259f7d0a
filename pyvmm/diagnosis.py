"""Words for what went wrong: exits, registers, failing instructions, failed asserts."""

from __future__ import annotations

import errno
import struct

from pyvmm.errors import KvmError, PyvmmError
from pyvmm.guest.image import Image
from pyvmm.guest.paging_probe import try_protected_paging
from pyvmm.guest.source_lines import source_line
from pyvmm.kvm.exits import (
    FailEntryExit,
    InternalErrorExit,
    MemoryFaultExit,
    ShutdownExit,
    UnknownExit,
)
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.uapi import reason_name
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import lib
from pyvmm.report import LONG, PROTECTED, REAL, Where
from pyvmm.where import Cause

_SUBERRORS = {
    1: "the emulator cannot do an instruction",
    2: "an exception came up while another was delivered",
    3: "an exit came up while an event was delivered",
    4: "an exit that KVM does not expect",
}
_LONGEST_STRING = 256
_INT = 0xCD
_PAGE_FAULT = 14
_HLT = b"\xf4"
_FIRST_SPINNING = 0x80
# Intel SDM volume 3, table 6-1; AMD's have 28 to 30 besides.
_EXCEPTIONS = {
    0: "divide error (#DE)",
    1: "debug exception (#DB)",
    2: "NMI",
    3: "breakpoint (#BP)",
    4: "overflow (#OF)",
    5: "bound range exceeded (#BR)",
    6: "invalid opcode (#UD)",
    7: "device not available (#NM)",
    8: "double fault (#DF)",
    9: "coprocessor segment overrun",
    10: "invalid TSS (#TS)",
    11: "segment not present (#NP)",
    12: "stack fault (#SS)",
    13: "general protection (#GP)",
    14: "page fault (#PF)",
    16: "x87 floating-point error (#MF)",
    17: "alignment check (#AC)",
    18: "machine check (#MC)",
    19: "SIMD floating-point error (#XM)",
    20: "virtualization exception (#VE)",
    21: "control protection (#CP)",
    28: "hypervisor injection exception (#HV)",
    29: "VMM communication exception (#VC)",
    30: "security exception (#SX)",
}
_INTERRUPTS_ON = 1 << 9  # in EFLAGS
_PAGING = 1 << 31  # in CR0
_LONG_MODE_ENABLED, _LONG_MODE_ACTIVE = 1 << 8, 1 << 10  # in EFER
_MOV_TO_CR0 = b"\x0f\x22"  # and a byte that names the register
_OPERANDS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
# IP is then that of the next instruction.
_BEFORE = (1, 2, 3, 4)
# INTs that somebody answers elsewhere.
_BIOS = (0x05, *range(0x10, 0x20), *range(0x40, 0x50))
_MISSING = (
    (range(0x20, 0x30), "there is no DOS"),
    (range(0x80, 0x81), "there is no operating system"),
)


def describe_exit(vcpu: Vcpu, place: str, mode: str = REAL) -> str:
    """One line about the exit in a vCPU's kvm_run, for exits that end a run at ``place``.

    ``mode`` is the CPU's.
    """
    exit = vcpu.exit()
    if isinstance(exit, ShutdownExit):
        return f"triple fault (KVM_EXIT_SHUTDOWN) at {place}"
    if isinstance(exit, InternalErrorExit):
        what = _SUBERRORS.get(exit.suberror, "unknown suberror")
        line = f"KVM_EXIT_INTERNAL_ERROR, suberror {exit.suberror} ({what}) at {place}"
        if exit.instruction:
            line += f": {exit.instruction.hex(' ')}{_disassemble(exit.instruction, mode)}"
        return line
    if isinstance(exit, FailEntryExit):
        reason = f"reason {exit.hardware_reason:#x}"
        return f"the hardware refused to enter the guest ({reason}) at {place}"
    if isinstance(exit, UnknownExit):
        return f"exit reason {exit.reason}, which pyvmm does not know, at {place}"
    name = reason_name(vcpu.kvm_run.exit_reason)
    return f"nothing answers KVM_EXIT_{name.upper()} at {place}: {exit}"


def describe_cause(cause: Cause, has_irqchip: bool) -> str:
    """One line about an exception or interrupt that nothing handles."""
    vector, where = cause.vector, cause.where
    name = _EXCEPTIONS.get(vector, "interrupt")
    if not where.registers:
        return f"{name}, vector {vector:#x}: its frame on the stack cannot be read"
    nothing = f"nothing handles vector {vector:#x}"
    if cause.instruction:
        return f"{cause.instruction} at {_place_of_int(where)}: {_missing(cause, nothing)}"
    if vector not in _EXCEPTIONS:
        return f"{name} before {where.place}: {nothing}"
    # A controller that the guest has not set up right may have any vector.
    flags = where.registers["rflags" if where.mode == LONG else "eflags"]
    if has_irqchip and flags & _INTERRUPTS_ON:
        name += " or an interrupt"
    when = "before" if vector in _BEFORE else "at"
    return f"{name} {when} {where.place}{_error_code(where)}: nothing handles vector {vector}"


def _place_of_int(where: Where) -> str:
    if where.mode != REAL:
        return where.place
    cs, ip = where.registers["cs"], where.ip
    return (f"{cs:04x}:{ip:04x}" if cs else f"{ip:04x}") + where.line


def _missing(cause: Cause, nothing: str) -> str:
    """Who does not answer an INT here, though it is answered elsewhere."""
    missing = [nothing]
    if cause.where.mode == REAL:
        missing += [who for vectors, who in _MISSING if cause.vector in vectors]
        if cause.vector in _BIOS:
            missing.insert(0, "there is no BIOS")
    return ", ".join(missing)


def _error_code(where: Where) -> str:
    """What the error code of an exception says, and of a page fault the address."""
    code = where.error_code
    if code is None:
        return ""
    if where.vector != _PAGE_FAULT:
        return f", error code {code:#x}"
    access = "fetch" if code & 16 else "write" if code & 2 else "read"
    page = "that is not present" if not code & 1 else "with reserved bits" if code & 8 else ""
    what = f"a {access} of a page {page}" if page else f"a {access} that the page forbids"
    return f", error code {code:#x} ({what}), CR2 {where.registers.get('cr2', 0):#x}"


def describe_missing_paging(where: Where) -> str:
    """What to add to why a vCPU died, if this KVM lacks the paging that its guest turned on."""
    if not _turns_paging_on(where):
        return ""
    try:
        with Kvm() as kvm:
            works, _ = try_protected_paging(kvm)
    except PyvmmError:
        return ""
    return "" if works else "; this KVM has no paging in protected mode, which the guest turned on"


def _turns_paging_on(where: Where) -> bool:
    """Whether a vCPU has paging without long mode, or stands at the MOV that turns it on."""
    efer = where.registers.get("efer", 0)
    if efer & _LONG_MODE_ACTIVE:
        return False
    cr0 = where.registers.get("cr0", 0)
    if where.code[:2] == _MOV_TO_CR0 and len(where.code) > 2 and not where.code[2] & 0x38:
        cr0 |= where.registers.get(_OPERANDS[where.code[2] & 7], 0)
    return bool(cr0 & _PAGING) and not efer & _LONG_MODE_ENABLED


def describe_deadline(where: Where) -> str:
    """One line about a vCPU that has not ended in time."""
    did = "waited in HLT" if where.code[:1] == _HLT else "ran"
    line = f"still {did} at the deadline, at {where.place}"
    if len(where.code) > 1 and where.code[0] == _INT:
        line += f": INT {where.code[1]:#x}"
        if where.code[1] >= _FIRST_SPINNING:
            line += ", which some KVMs never get past in real mode"
    return line


def describe_run_failure(number: int, vcpu: Vcpu, place: str) -> str:
    """One line about a KVM_RUN that failed with ``number``, after ``vCPU``, a space, its index."""
    exit = vcpu.exit()
    about = f"{vcpu.name} at {place}"
    if isinstance(exit, MemoryFaultExit) and number in (errno.EFAULT, lib.EHWPOISON):
        access = "private" if exit.is_private else "shared"
        about += f", KVM_EXIT_MEMORY_FAULT: GPA {exit.gpa:#x}, {access} access, size {exit.size:#x}"
        remedy = "no region is there that pyvmm could convert; is a memslot's file gone?"
        if number == lib.EHWPOISON:
            remedy = "the host's memory behind that page has failed, or was made to (poisoned)"
        return str(KvmError("KVM_RUN", number, about, remedy))
    about += f", exit_reason {reason_name(vcpu.kvm_run.exit_reason)}"
    remedy = ""
    if number == errno.EFAULT:
        remedy = (
            "the kernel names no GPA; the host's memory behind a memslot is gone, was never "
            "there, or may not be written"
        )
    return str(KvmError("KVM_RUN", number, about, remedy))


def _disassemble(code: bytes, mode: str) -> str:
    try:
        import capstone
    except ImportError:
        return ""
    widths = {REAL: capstone.CS_MODE_16, PROTECTED: capstone.CS_MODE_32, LONG: capstone.CS_MODE_64}
    decoder = capstone.Cs(capstone.CS_ARCH_X86, widths[mode])
    for instruction in decoder.disasm(code, 0, 1):
        return f" ({instruction.mnemonic} {instruction.op_str}".rstrip() + ")"
    return ""


def read_assert(
    memory: GuestMemory, gpa: int, image: Image, place: str, is_wide: bool = False
) -> str:
    """What a guest's assert record says: {u16 line, u16 0, u32 seen, u32 expected, strings}.

    ``is_wide``: of a guest in protected or long mode, where seen and expected are u64.

    A record with line 0 was made by an assembler's macro, which cannot know the line; the
    line table does. ``place`` is where the guest said so. A guest is hostile: whatever it
    points to gives one line.
    """
    try:
        head = struct.Struct("<HHQQ" if is_wide else "<HHII")
        line, _, seen, expected = head.unpack(memory.read(gpa, head.size))
        name = _read_string(memory, gpa + head.size)
        expression = _read_string(memory, gpa + head.size + len(name) + 1)
    except PyvmmError as error:
        return f"assert failed at {place}; its record at GPA {gpa:#x} cannot be read: {error.cause}"
    source = f"{_printable(name)}:{line}"
    if line == 0 and (found := source_line(image, gpa)) is not None:
        source = f"{found[0]}:{found[1]}"
    return (
        f"{source}: assert failed: {_printable(expression)}: seen {seen:#x}, expected {expected:#x}"
    )


def _read_string(memory: GuestMemory, gpa: int) -> bytes:
    text = b""
    while len(text) < _LONGEST_STRING:
        try:
            byte = memory.read(gpa + len(text), 1)
        except PyvmmError:
            break
        if byte == b"\0":
            break
        text += byte
    return text


def _printable(text: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in text) or "?"
