"""Where a vCPU stands, and what brought it there: registers, code, the frame of an interrupt."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from pyvmm.errors import KvmError, PyvmmError
from pyvmm.guest.image import Image
from pyvmm.guest.source_lines import source_line
from pyvmm.kvm.exits import MmioExit, ShutdownExit
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import ffi, lib
from pyvmm.report import LONG, PROTECTED, REAL, Where

_LAST_EXITS = 8
_SHOWN_CODE = 8  # bytes
_RESET = (0xF000, 0xFFF0)  # where every x86 CPU starts
_PROTECTION_ENABLED, _PAGING = 1, 1 << 31  # in CR0
_LONG_MODE_ACTIVE = 1 << 10  # in EFER
_VIRTUAL_8086 = 1 << 17  # in EFLAGS
_SEGMENTS = ("cs", "ds", "es", "ss", "fs", "gs")
# A word that INT pushes, and how many bytes they are.
_FRAME = struct.Struct("<HHH")
# In protected and long mode: error code, IP, CS, FLAGS, and maybe SP and SS.
_FRAME_WORDS = 6
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 21, 29, 30)

# Of an instruction, before or behind its REP: operand size, address size, segments.
_OTHER_PREFIXES = b"\x66\x67\x26\x2e\x36\x3e\x64\x65"
_AT_AN_ACCESS = (
    lib.STOP_MEMORY_ERROR,
    lib.STOP_CONVERSION_FAILED,
    lib.STOP_EMULATED_ACCESS,
    lib.STOP_GUARD,
)

_AT_ANY_TIME = (lib.STOP_DEADLINE, lib.STOP_KICK)

_INTERRUPTS_ON = 1 << 9  # in RFLAGS
# The LAPIC's local vector table, and what an entry of it may be.
_LOCAL_VECTORS = range(0x320, 0x380, 0x10)
_DELIVERY, _NMI, _MASKED = 0x700, 0x400, 1 << 16

_INT, _INT3, _INTO, _HLT = 0xCD, 0xCC, 0xCE, 0xF4
_OUT_CODE = (b"\xe6\xf4", b"\xe7\xf4", b"\x66\xe7\xf4", b"\xee", b"\xef", b"\x66\xef")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a vector was taken: ``instruction`` is empty when it was none of INT's kind.

    ``where`` has the registers of that moment; without any, the frame cannot be read.
    """

    vector: int
    instruction: str
    where: Where


_EIGHT = ("bx", "cx", "dx", "si", "di")


def _registers(regs: Any, sregs: Any, mode: str) -> dict[str, int]:
    """By the names that they have in a mode, in the order in which they are shown."""
    wide = mode == LONG
    letter = "r" if wide else "e"
    names = ["ip", "flags", "sp", "bp", "ax", *_EIGHT]
    found = {letter + name: getattr(regs, f"r{name}") for name in names}
    if wide:
        found.update({f"r{number}": getattr(regs, f"r{number}") for number in range(8, 16)})
    found.update(cr0=sregs.cr0, efer=sregs.efer)
    if sregs.cr0 & _PAGING:
        found.update(cr2=sregs.cr2, cr3=sregs.cr3, cr4=sregs.cr4)
    for name in _SEGMENTS:
        found[name] = getattr(sregs, name).selector
    return found


class _Stand:
    """A vCPU's registers and the code around them, asked once."""

    def __init__(self, loop: VcpuLoop, memory: GuestMemory) -> None:
        regs, sregs = loop.vcpu.get_regs(), loop.vcpu.get_sregs()
        self._memory, self._vcpu = memory.raw, loop.vcpu
        self._segments: Any = sregs
        self.mode = REAL
        if sregs.cr0 & _PROTECTION_ENABLED and not regs.rflags & _VIRTUAL_8086:
            is_long = sregs.efer & _LONG_MODE_ACTIVE and sregs.cs.l
            self.mode = LONG if is_long else PROTECTED
        self._letter = "r" if self.mode == LONG else "e"
        self.registers = _registers(regs, sregs, self.mode)
        self.code_base: int = 0 if self.mode == LONG else sregs.cs.base
        self._is_paged = bool(sregs.cr0 & _PAGING)

    def get(self, name: str) -> int:
        """A register by the rest of its name: ip, sp, flags."""
        return self.registers[self._letter + name]

    def set(self, name: str, value: int) -> None:
        self.registers[self._letter + name] = value

    def code(self, ip: int, size: int) -> bytes:
        """Bytes of code at ``ip``, empty where they cannot be read."""
        return self._peek(self.code_base + ip, size)

    def starts_with(self, ip: int, codes: tuple[bytes, ...]) -> bool:
        return any(self.code(ip, len(code)) == code for code in codes)

    def repeats(self, ip: int) -> bool:
        """Whether a string instruction with REP is there: IP stays at it until it is over."""
        code = self.code(ip, _SHOWN_CODE).lstrip(_OTHER_PREFIXES)
        return code[:1] in (b"\xf2", b"\xf3")

    def enter_cause(self, vector: int) -> bool:
        """Go back to the moment at which the frame on the stack was pushed, if it can be read."""
        return self._enter_flat(vector) if self.mode != REAL else self._enter_real()

    def _enter_real(self) -> bool:
        stack = self._segments.ss
        mask = 0xFFFFFFFF if stack.db else 0xFFFF
        sp = self.get("sp")
        words = b"".join(self._peek(stack.base + (sp + at & mask), 2) for at in range(0, 6, 2))
        if len(words) != _FRAME.size:
            return False
        ip, cs, flags = _FRAME.unpack(words)
        self.registers.update(
            eip=ip,
            cs=cs,
            eflags=self.get("flags") & ~0xFFFF | flags,
            esp=sp & ~mask | sp + _FRAME.size & mask,
        )
        self.code_base = cs << 4
        return True

    def _enter_flat(self, vector: int) -> bool:
        """The frame of protected and long mode; it may have an error code on top."""
        size = 8 if self.mode == LONG else 4
        base = 0 if self.mode == LONG else self._segments.ss.base
        sp = self.get("sp")
        words = []
        for at in range(0, _FRAME_WORDS * size, size):
            if not (word := self._peek(base + sp + at, size)):
                break  # it may lie at the end of memory
            words.append(int.from_bytes(word, "little"))
        if len(words) < _FRAME_WORDS - 3:
            return False
        # INT pushes none, and of its frame the third word is FLAGS, whose bit 1 is always set.
        is_int = bool(words[2] & 2) and self.code(words[0] - 2, 2) == bytes([_INT, vector])
        if vector in _WITH_ERROR_CODE and not is_int and len(words) > 3:
            self.error_code = words.pop(0) & 0xFFFFFFFF
            sp += size
        ip, cs, flags, *stack = words
        if self.mode == LONG or cs & 3 != self._segments.cs.selector & 3:
            if len(stack) < 2:
                return False
            self.registers["ss"] = stack[1] & 0xFFFF
            sp = stack[0]
        else:
            sp += 3 * size
        self.set("ip", ip)
        self.set("flags", flags)
        self.set("sp", sp)
        self.registers["cs"] = cs & 0xFFFF
        return True

    error_code: int | None = None

    def _peek(self, linear: int, size: int) -> bytes:
        """Bytes at a linear address, empty unless all of them can be read."""
        linear &= (1 << 64) - 1 if self.mode == LONG else 0xFFFFFFFF
        found = b""
        while size:
            part = min(size, PAGE_SIZE - linear % PAGE_SIZE) if self._is_paged else size
            gpa = self._vcpu.translate(linear) if self._is_paged else linear
            buffer = ffi.new("char[]", part)
            if gpa is None or not lib.memory_peek(self._memory, gpa, buffer, part):
                return b""
            found += bytes(ffi.buffer(buffer))
            linear, size = linear + part & (1 << 64) - 1, size - part
        return found

    def where(
        self,
        loop: VcpuLoop,
        index: int,
        image: Image | None,
        vector: int | None = None,
        is_behind: bool = False,
    ) -> Where:
        """With the source line if there is an ``image`` to ask for it."""
        ip = self.get("ip")
        line = image and source_line(image, self.code_base + ip - is_behind)
        return Where(
            index,
            f"{line[0]}:{line[1]}" if line else "",
            self.code(ip, _SHOWN_CODE),
            self.registers,
            tuple(loop.last_exits(_LAST_EXITS)),
            vector,
            is_behind,
            self.mode,
            self.error_code,
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
    ip = stand.get("ip")
    is_reset = (registers["cs"], ip) == _RESET
    if is_reset and isinstance(loop.vcpu.exit(), ShutdownExit):
        # Nothing of what it was is left: KVM has reset the vCPU, as its hardware demands.
        return Where(index, last_exits=tuple(loop.last_exits(_LAST_EXITS)))
    is_halted = stop == lib.STOP_HLT or (stop in _AT_ANY_TIME and _waits_in_hlt(loop))
    if is_halted and stand.code(ip - 1, 1) == bytes([_HLT]):
        stand.set("ip", ip - 1)
    elif stop in _AT_AN_ACCESS and _is_mmio_write(loop) and not stand.repeats(ip):
        return stand.where(loop, index, image, is_behind=True)
    elif stop in (lib.STOP_GUEST_EXIT, lib.STOP_ASSERT) and not stand.starts_with(ip, _OUT_CODE):
        sizes = (len(code) for code in _OUT_CODE if stand.code(ip - len(code), len(code)) == code)
        stand.set("ip", ip - max(sizes, default=0))
    return stand.where(loop, index, image)


def _waits_in_hlt(loop: VcpuLoop) -> bool:
    """Whether KVM, which has the interrupt controller, lets the vCPU wait for an interrupt."""
    return _mp_state(loop) == lib.KVM_MP_STATE_HALTED


def waits_to_be_started(loop: VcpuLoop) -> bool:
    """Whether the vCPU waits for an INIT or a start-up interrupt, behind KVM's LAPIC."""
    states = (lib.KVM_MP_STATE_UNINITIALIZED, lib.KVM_MP_STATE_INIT_RECEIVED)
    return _mp_state(loop) in states


def _mp_state(loop: VcpuLoop) -> int | None:
    try:
        return loop.vcpu.get_mp_state()
    except KvmError:
        return None


def is_halted_for_good(loop: VcpuLoop) -> bool:
    """Whether the vCPU waits in HLT behind KVM's LAPIC, with interrupts off and no NMI to come."""
    try:
        if loop.vcpu.get_mp_state() != lib.KVM_MP_STATE_HALTED:
            return False
        if loop.vcpu.get_regs().rflags & _INTERRUPTS_ON:
            return False
        lapic = bytes(ffi.buffer(loop.vcpu.get_lapic().regs))
    except PyvmmError:
        return False
    entries = (int.from_bytes(lapic[at : at + 4], "little") for at in _LOCAL_VECTORS)
    return not any(entry & _DELIVERY == _NMI and not entry & _MASKED for entry in entries)


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
    if not stand.enter_cause(vector):
        last_exits = tuple(loop.last_exits(_LAST_EXITS))
        return Cause(vector, "", Where(index, last_exits=last_exits, vector=vector))
    instruction = ""
    ip = stand.get("ip")
    most = (1 << 64) - 1 if stand.mode == LONG else 0xFFFFFFFF if stand.mode != REAL else 0xFFFF
    for code, name, of in (
        (bytes([_INT, vector]), f"INT {vector:#x}", vector),
        (bytes([_INT3]), "INT3", 3),
        (bytes([_INTO]), "INTO", 4),
    ):
        before = ip - len(code) & most
        if vector == of and stand.code(before, len(code)) == code:
            instruction = name
            stand.set("ip", before)
            break
    return Cause(vector, instruction, stand.where(loop, index, image, vector))


def with_source(where: Where | None, image: Image) -> Where | None:
    """The same place with its source line, if the image has one."""
    if where is None or not where.registers or where.source:
        return where
    base = where.registers["cs"] << 4 if where.mode == REAL else 0
    line = source_line(image, base + where.ip)
    return where if line is None else replace(where, source=f"{line[0]}:{line[1]}")
