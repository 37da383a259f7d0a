"""The state of a vCPU in real mode and in flat protected mode, and registers by their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyvmm.errors import ConfigurationError
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi

_FLAGS_RESERVED = 0x2
_PROTECTION = 1  # CR0.PE
_CODE, _DATA = 0x08, 0x10
_EXECUTE_READ, _READ_WRITE = 11, 3  # and accessed

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_OLD = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_PREFIXES, _SUFFIXES = {"r": 64, "e": 32, "": 16}, {"": 64, "d": 32, "w": 16}
#: Fields of ``struct kvm_regs``, by every name that a register has.
_GENERAL = {
    **{f"r{number}{end}": f"r{number}" for number in range(8, 16) for end in _SUFFIXES},
    **{start + name: f"r{name}" for name in (*_OLD, "ip", "flags") for start in _PREFIXES},
}
_BITS = {
    **{f"r{number}{end}": bits for number in range(8, 16) for end, bits in _SUFFIXES.items()},
    **{start + name: bits for name in (*_OLD, "ip", "flags") for start, bits in _PREFIXES.items()},
    **dict.fromkeys(_SEGMENTS, 16),
    **dict.fromkeys(_CONTROL, 64),
    "cr8": 4,
}


def set_flat_mode(vcpu: Vcpu) -> None:
    """32-bit protected mode without paging: every segment has base 0 and 4 GiB."""
    sregs = vcpu.get_sregs()
    for name in _SEGMENTS:
        segment = getattr(sregs, name)
        segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, _DATA
        segment.type, segment.s, segment.present, segment.dpl = _READ_WRITE, 1, 1, 0
        segment.db, segment.l, segment.g = 1, 0, 1
    sregs.cs.selector, sregs.cs.type = _CODE, _EXECUTE_READ
    sregs.cr0 |= _PROTECTION
    vcpu.set_sregs(sregs)


def set_general(vcpu: Vcpu, **values: int) -> None:
    """The general registers given, by their 64-bit names; all others are zero."""
    regs = ffi.new("struct kvm_regs *", {"rflags": _FLAGS_RESERVED, **values})
    vcpu.set_regs(regs)


def check_registers(registers: Iterable[tuple[str, int]]) -> None:
    """Raise :class:`ConfigurationError` for a name of no register, and for too large a value."""
    for name, value in registers:
        bits = _BITS.get(name)
        if bits is None:
            raise ConfigurationError(
                f"--set {name}",
                "there is no such register",
                f"name one of rax to r15, rip, rflags, {', '.join((*_SEGMENTS, *_CONTROL))}",
            )
        if value >> bits:
            raise ConfigurationError(f"--set {name}={value:#x}", f"{name} has {bits} bits")


def set_registers(vcpu: Vcpu, registers: Iterable[tuple[str, int]], *, is_real: bool) -> None:
    """Set registers by name. In real mode a segment's base follows its selector, as a MOV does."""
    registers = list(registers)
    special = [each for each in registers if each[0] not in _GENERAL]
    if special:
        sregs = vcpu.get_sregs()
        for name, value in special:
            _set_special(sregs, name, value, is_real)
        vcpu.set_sregs(sregs)
    if len(special) < len(registers):
        regs = vcpu.get_regs()
        for name, value in registers:
            if name in _GENERAL:
                setattr(regs, _GENERAL[name], value)
        vcpu.set_regs(regs)


def _set_special(sregs: Any, name: str, value: int, is_real: bool) -> None:
    if name not in _SEGMENTS:
        setattr(sregs, name, value)
        return
    segment = getattr(sregs, name)
    segment.selector = value
    if is_real:
        segment.base = value << 4
