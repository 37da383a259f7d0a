"""Whether this KVM runs what a 64-bit kernel is made of: tried, in a VM of its own."""

from __future__ import annotations

from pyvmm.guest.long_mode import REACH, TABLES_SIZE, page_tables, set_long_mode
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.uapi import reason_name
from pyvmm.loop.bare import BareVcpu, NoExitError
from pyvmm.native import ffi

_TABLES, _CODE, _OPERAND = 0x1000, 0x1000 + TABLES_SIZE, 0x1000 + TABLES_SIZE + 0x100
_SIZE = _TABLES + TABLES_SIZE + 0x1000
assert _SIZE <= REACH
# Linux's allocator, and memtest86+ as it starts.
_INSTRUCTIONS = (("cmpxchg16b", "f0 48 0f c7 0e"), ("fwait", "9b"))
_HLT = b"\xf4"
_FLAGS_RESERVED = 0x2
_DEADLINE_S = 0.5


def try_kernel_code(kvm: Kvm) -> tuple[bool, str]:
    """Whether some instructions of 64-bit kernels work, and what was seen, in one line."""
    for name, code in _INSTRUCTIONS:
        exit = _exit_of(kvm, bytes.fromhex(code) + _HLT)
        if exit != "hlt":
            outcome = f"KVM_EXIT_{exit.upper()}" if exit else "no exit"
            return False, f"{name} in 64-bit kernel code gives {outcome}"
    return True, "instructions of 64-bit kernel code work"


def _exit_of(kvm: Kvm, code: bytes) -> str:
    """Run ``code`` in long mode, with RSI at memory; the exit's name, "" if there was none."""
    mapping = Mapping(_SIZE)
    try:
        with kvm.create_vm() as vm:
            view = mapping.view
            view[_TABLES : _TABLES + TABLES_SIZE] = page_tables(_TABLES)
            view[_CODE : _CODE + len(code)] = code
            del view
            vm.set_user_memory_region(0, 0, _SIZE, mapping.address)
            with vm.create_vcpu(0) as vcpu, BareVcpu(vcpu) as bare:
                vcpu.set_cpuid2(kvm.get_supported_cpuid())
                set_long_mode(vcpu, _TABLES)
                regs = ffi.new("struct kvm_regs *")
                regs.rip, regs.rsi, regs.rflags = _CODE, _OPERAND, _FLAGS_RESERVED
                vcpu.set_regs(regs)
                try:
                    if bare.enter(_DEADLINE_S):
                        return ""
                except NoExitError:
                    return ""
                return reason_name(vcpu.kvm_run.exit_reason)
    finally:
        mapping.close()
