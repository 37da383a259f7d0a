"""Words for what went wrong: exits, registers, failing instructions, failed asserts."""

from __future__ import annotations

import struct

from pyvmm.errors import PyvmmError
from pyvmm.exits import FailEntryExit, InternalErrorExit, ShutdownExit, UnknownExit
from pyvmm.guest.image import Image
from pyvmm.guest.source_lines import source_line
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.report import Where
from pyvmm.uapi import reason_name
from pyvmm.vcpu import Vcpu
from pyvmm.vcpu_loop import VcpuLoop

_SUBERRORS = {
    1: "the emulator cannot do an instruction",
    2: "an exception came up while another was delivered",
    3: "an exit came up while an event was delivered",
    4: "an exit that KVM does not expect",
}
_LONGEST_STRING = 256
_LAST_EXITS = 8
_RESET = "CS:IP f000:fff0"  # where every x86 CPU starts


def describe_exit(vcpu: Vcpu) -> str:
    """One line about the exit in a vCPU's kvm_run, for exits that end a run."""
    exit = vcpu.exit()
    if isinstance(exit, ShutdownExit):
        where = _where(vcpu)
        if where == _RESET:
            where = "an unknown place: KVM has reset the vCPU, as its hardware demands"
        return f"triple fault (KVM_EXIT_SHUTDOWN) at {where}"
    if isinstance(exit, InternalErrorExit):
        what = _SUBERRORS.get(exit.suberror, "unknown suberror")
        line = f"KVM_EXIT_INTERNAL_ERROR, suberror {exit.suberror} ({what}) at {_where(vcpu)}"
        if exit.instruction:
            line += f": {exit.instruction.hex(' ')}{_disassemble(exit.instruction)}"
        return line
    if isinstance(exit, FailEntryExit):
        return f"the hardware refused to enter the guest (reason {exit.hardware_reason:#x})"
    if isinstance(exit, UnknownExit):
        return f"exit reason {exit.reason}, which pyvmm does not know, at {_where(vcpu)}"
    name = reason_name(vcpu.kvm_run.exit_reason)
    return f"nothing answers KVM_EXIT_{name.upper()} at {_where(vcpu)}: {exit}"


def _where(vcpu: Vcpu) -> str:
    try:
        return f"CS:IP {vcpu.get_sregs().cs.selector:04x}:{vcpu.get_regs().rip:04x}"
    except PyvmmError:
        return "an unknown place"


def _disassemble(code: bytes) -> str:
    try:
        import capstone
    except ImportError:
        return ""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16)
    for instruction in decoder.disasm(code, 0, 1):
        return f" ({instruction.mnemonic} {instruction.op_str}".rstrip() + ")"
    return ""


def where_it_stands(loop: VcpuLoop, index: int, image: Image) -> Where:
    """The source line, where it is known, the registers and the last exits of vCPU ``index``."""
    last_exits = tuple(loop.last_exits(_LAST_EXITS))
    try:
        regs, sregs = loop.vcpu.get_regs(), loop.vcpu.get_sregs()
    except PyvmmError:  # it cannot be asked
        return Where(index, last_exits=last_exits)
    found = source_line(image, sregs.cs.base + regs.rip)
    registers = {
        "eip": regs.rip,
        "eflags": regs.rflags,
        "esp": regs.rsp,
        "ebp": regs.rbp,
        "eax": regs.rax,
        "ebx": regs.rbx,
        "ecx": regs.rcx,
        "edx": regs.rdx,
        "esi": regs.rsi,
        "edi": regs.rdi,
        "cr0": sregs.cr0,
        "efer": sregs.efer,
    }
    for name in ("cs", "ds", "es", "ss", "fs", "gs"):
        registers[name] = getattr(sregs, name).selector
    source = "" if found is None else f"{found[0]}:{found[1]}"
    return Where(index, source, registers, last_exits)


def read_assert(memory: GuestMemory, gpa: int, image: Image) -> str:
    """What a guest's assert record says: {u16 line, u16 0, u32 seen, u32 expected, strings}.

    A record with line 0 was made by an assembler's macro, which cannot know the line; the
    line table does. A guest is hostile: whatever it points to gives one line.
    """
    try:
        line, _, seen, expected = struct.unpack("<HHII", memory.read(gpa, 12))
        name = _read_string(memory, gpa + 12)
        expression = _read_string(memory, gpa + 12 + len(name) + 1)
    except PyvmmError as error:
        return f"assert failed; its record at GPA {gpa:#x} cannot be read: {error.cause}"
    place = f"{_printable(name)}:{line}"
    if line == 0 and (found := source_line(image, gpa)) is not None:
        place = f"{found[0]}:{found[1]}"
    return (
        f"{place}: assert failed: {_printable(expression)}: seen {seen:#x}, expected {expected:#x}"
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
