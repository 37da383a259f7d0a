"""Where a vCPU stands, and what brought it there: registers, code, the frame of an interrupt."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from pyvmm.errors import KvmError, PyvmmError
from pyvmm.guest.image import Image
from pyvmm.guest.source_lines import source_line
from pyvmm.kvm.exits import MmioExit, ShutdownExit
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import ffi, lib
from pyvmm.report import Where

_LAST_EXITS = 8
_SHOWN_CODE = 8  # bytes
_RESET = (0xF000, 0xFFF0)  # where every x86 CPU starts
_PROTECTION_ENABLED, _PAGING = 1, 1 << 31  # in CR0
_SEGMENTS = ("cs", "ds", "es", "ss", "fs", "gs")
# A word that INT pushes, and how many bytes they are.
_FRAME = struct.Struct("<HHH")

# Of an instruction, before or behind its REP: operand size, address size, segments.
_OTHER_PREFIXES = b"\x66\x67\x26\x2e\x36\x3e\x64\x65"
_AT_AN_ACCESS = (
    lib.STOP_MEMORY_ERROR,
    lib.STOP_CONVERSION_FAILED,
    lib.STOP_EMULATED_ACCESS,
    lib.STOP_GUARD,
)

_AT_ANY_TIME = (lib.STOP_DEADLINE, lib.STOP_KICK)

_INT, _INT3, _INTO, _HLT = 0xCD, 0xCC, 0xCE, 0xF4
_OUT_CODE = (b"\xe6\xf4", b"\xe7\xf4", b"\x66\xe7\xf4", b"\xee", b"\xef", b"\x66\xef")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a real-mode vector was taken: ``instruction`` is empty when it was none of INT's kind.

    ``where`` has the registers of that moment; without any, the frame cannot be read.
    """

    vector: int
    instruction: str
    where: Where


class _Stand:
    """A vCPU's registers and the code around them, asked once."""

    def __init__(self, loop: VcpuLoop, memory: GuestMemory) -> None:
        regs, sregs = loop.vcpu.get_regs(), loop.vcpu.get_sregs()
        self._memory = memory.raw
        self._segments: Any = sregs
        self.registers = {
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
        for name in _SEGMENTS:
            self.registers[name] = getattr(sregs, name).selector
        self.code_base: int = sregs.cs.base
        self.is_real_mode = not sregs.cr0 & _PROTECTION_ENABLED
        self._is_paged = bool(sregs.cr0 & _PAGING)

    def code(self, ip: int, size: int) -> bytes:
        """Bytes of code at ``ip``, empty where they cannot be read."""
        return self._peek(self.code_base + ip, size) if not self._is_paged else b""

    def starts_with(self, ip: int, codes: tuple[bytes, ...]) -> bool:
        return any(self.code(ip, len(code)) == code for code in codes)

    def repeats(self, ip: int) -> bool:
        """Whether a string instruction with REP is there: IP stays at it until it is over."""
        code = self.code(ip, _SHOWN_CODE).lstrip(_OTHER_PREFIXES)
        return code[:1] in (b"\xf2", b"\xf3")

    def enter_cause(self) -> bool:
        """Go back to the moment at which the frame on the stack was pushed, if it can be read."""
        stack = self._segments.ss
        mask = 0xFFFFFFFF if stack.db else 0xFFFF
        sp = self.registers["esp"]
        words = b"".join(self._peek(stack.base + (sp + at & mask), 2) for at in range(0, 6, 2))
        if not self.is_real_mode or len(words) != _FRAME.size:
            return False
        ip, cs, flags = _FRAME.unpack(words)
        self.registers.update(
            eip=ip,
            cs=cs,
            eflags=self.registers["eflags"] & ~0xFFFF | flags,
            esp=sp & ~mask | sp + _FRAME.size & mask,
        )
        self.code_base = cs << 4
        return True

    def _peek(self, gpa: int, size: int) -> bytes:
        # Without paging a linear address is a GPA.
        found = ffi.new("char[]", size)
        if not lib.memory_peek(self._memory, gpa & (1 << 64) - 1, found, size):
            return b""
        return bytes(ffi.buffer(found))

    def where(
        self,
        loop: VcpuLoop,
        index: int,
        image: Image | None,
        vector: int | None = None,
        is_behind: bool = False,
    ) -> Where:
        """With the source line if there is an ``image`` to ask for it."""
        ip = self.registers["eip"]
        line = image and source_line(image, self.code_base + ip - is_behind)
        return Where(
            index,
            f"{line[0]}:{line[1]}" if line else "",
            self.code(ip, _SHOWN_CODE),
            self.registers,
            tuple(loop.last_exits(_LAST_EXITS)),
            vector,
            is_behind,
        )


def where_it_stands(
    loop: VcpuLoop, index: int, image: Image | None, memory: GuestMemory, stop: int = lib.STOP_NONE
) -> Where:
    """The instruction that vCPU ``index`` is at, its registers, its source line and last exits.

    After STOP_HLT, STOP_GUEST_EXIT and STOP_ASSERT, and where the vCPU waits in HLT, that is
    the instruction which stopped it, though IP may be behind that; after a write it may be the
    one before. Without ``image`` no line is known.
    """
    try:
        stand = _Stand(loop, memory)
    except PyvmmError:  # it cannot be asked
        return Where(index, last_exits=tuple(loop.last_exits(_LAST_EXITS)))
    registers = stand.registers
    is_reset = (registers["cs"], registers["eip"]) == _RESET
    if is_reset and isinstance(loop.vcpu.exit(), ShutdownExit):
        # Nothing of what it was is left: KVM has reset the vCPU, as its hardware demands.
        return Where(index, last_exits=tuple(loop.last_exits(_LAST_EXITS)))
    ip = registers["eip"]
    is_halted = stop == lib.STOP_HLT or (stop in _AT_ANY_TIME and _waits_in_hlt(loop))
    if is_halted and stand.code(ip - 1, 1) == bytes([_HLT]):
        registers["eip"] = ip - 1
    elif stop in _AT_AN_ACCESS and _is_mmio_write(loop) and not stand.repeats(ip):
        return stand.where(loop, index, image, is_behind=True)
    elif stop in (lib.STOP_GUEST_EXIT, lib.STOP_ASSERT) and not stand.starts_with(ip, _OUT_CODE):
        sizes = (len(code) for code in _OUT_CODE if stand.code(ip - len(code), len(code)) == code)
        registers["eip"] = ip - max(sizes, default=0)
    return stand.where(loop, index, image)


def _waits_in_hlt(loop: VcpuLoop) -> bool:
    """Whether KVM, which has the interrupt controller, lets the vCPU wait for an interrupt."""
    try:
        return loop.vcpu.get_mp_state() == lib.KVM_MP_STATE_HALTED
    except KvmError:
        return False


def _is_mmio_write(loop: VcpuLoop) -> bool:
    """Whether KVM's emulator has done all of the instruction but its write, IP included."""
    exit = loop.vcpu.exit()
    return isinstance(exit, MmioExit) and exit.is_write


def cause_of_vector(
    loop: VcpuLoop, index: int, image: Image, memory: GuestMemory, vector: int
) -> Cause:
    """Where vCPU ``index`` was when ``vector`` took it to the stub at which it stands now."""
    try:
        stand = _Stand(loop, memory)
    except PyvmmError:
        return Cause(vector, "", Where(index, vector=vector))
    if not stand.enter_cause():
        last_exits = tuple(loop.last_exits(_LAST_EXITS))
        return Cause(vector, "", Where(index, last_exits=last_exits, vector=vector))
    instruction = ""
    ip = stand.registers["eip"]
    for code, name, of in (
        (bytes([_INT, vector]), f"INT {vector:#x}", vector),
        (bytes([_INT3]), "INT3", 3),
        (bytes([_INTO]), "INTO", 4),
    ):
        before = ip - len(code) & 0xFFFF
        if vector == of and stand.code(before, len(code)) == code:
            instruction = name
            stand.registers["eip"] = before
            break
    return Cause(vector, instruction, stand.where(loop, index, image, vector))


def with_source(where: Where | None, image: Image) -> Where | None:
    """The same place with its source line, if a real-mode guest's image has one."""
    if where is None or not where.registers or where.source:
        return where
    line = source_line(image, (where.registers["cs"] << 4) + where.registers["eip"])
    return where if line is None else replace(where, source=f"{line[0]}:{line[1]}")
