"""Whether this KVM has paging in protected mode: tried, in a VM of its own."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pyvmm.errors import UnsupportedError
from pyvmm.guest.cpu_state import set_flat_mode, set_general
from pyvmm.guest.probing import exit_of, exit_words
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vcpu import Vcpu

_DIRECTORY, _CODE = 0x1000, 0x2000
_PRESENT_WRITE_HUGE = 0x83
_PAGING, _HUGE_PAGES = 1 << 31, 1 << 4  # in CR0, in CR4
_LONG_MODE_ENABLED = 1 << 8  # in EFER
_HLT = b"\xf4"


def try_protected_paging(kvm: Kvm) -> tuple[bool, str]:
    """Whether a guest in protected mode runs behind page tables, and what was seen."""
    directory = struct.pack("<I", _PRESENT_WRITE_HUGE)  # the first 4 MiB, to themselves
    exit = exit_of(kvm, {_DIRECTORY: directory, _CODE: _HLT}, _enter)
    return exit == "hlt", f"HLT behind page tables of 32 bits gives {exit_words(exit)}"


def check_paging(registers: Iterable[tuple[str, int]]) -> None:
    """Raise :class:`UnsupportedError` if a vCPU that is to begin with these registers, and not in
    long mode, has paging that this KVM lacks. The vCPU itself may not show it: KVM resets one."""
    values = dict(registers)
    if not values.get("cr0", 0) & _PAGING or values.get("efer", 0) & _LONG_MODE_ENABLED:
        return
    with Kvm() as kvm:
        works, seen = try_protected_paging(kvm)
    if not works:
        raise UnsupportedError(
            "paging in protected mode",
            f"{seen}; this KVM emulates such code, and has none",
            "use a KVM on VMX or SVM",
        )


def _enter(vcpu: Vcpu) -> None:
    set_flat_mode(vcpu)
    sregs = vcpu.get_sregs()
    sregs.cr3, sregs.cr4 = _DIRECTORY, sregs.cr4 | _HUGE_PAGES
    sregs.cr0 |= _PAGING
    vcpu.set_sregs(sregs)
    set_general(vcpu, rip=_CODE)
