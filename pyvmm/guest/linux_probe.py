"""Whether this KVM runs what a 64-bit kernel is made of: tried, in a VM of its own."""

from __future__ import annotations

from pyvmm.guest.cpu_state import set_general
from pyvmm.guest.long_mode import TABLES_SIZE, page_tables, set_long_mode
from pyvmm.guest.probing import exit_of, exit_words
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vcpu import Vcpu

_TABLES, _CODE, _OPERAND = 0x1000, 0x1000 + TABLES_SIZE, 0x1000 + TABLES_SIZE + 0x100
# Linux's allocator, and memtest86+ as it starts.
_INSTRUCTIONS = (("cmpxchg16b", "f0 48 0f c7 0e"), ("fwait", "9b"))
_HLT = b"\xf4"


def try_kernel_code(kvm: Kvm) -> tuple[bool, str]:
    """Whether some instructions of 64-bit kernels work, and what was seen, in one line."""
    for name, code in _INSTRUCTIONS:
        parts = {_TABLES: page_tables(_TABLES), _CODE: bytes.fromhex(code) + _HLT}
        exit = exit_of(kvm, parts, _enter)
        if exit != "hlt":
            return False, f"{name} in 64-bit kernel code gives {exit_words(exit)}"
    return True, "instructions of 64-bit kernel code work"


def _enter(vcpu: Vcpu) -> None:
    """In long mode, with RSI at memory."""
    set_long_mode(vcpu, _TABLES)
    set_general(vcpu, rip=_CODE, rsi=_OPERAND)
