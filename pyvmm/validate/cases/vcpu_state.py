"""A vCPU's state as userspace sets it: what it had is taken back, what is wrong is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.errors import KvmError
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import case
from pyvmm.validate.kit.check import Missing, check, expect, expect_errno
from pyvmm.validate.kit.toolbox import Toolbox

#: <asm/msr-index.h> and <asm/apicdef.h>; userspace headers have them not.
_X2APIC_ENABLED, _X2APIC_MSRS = 1 << 10, 0x800
_APIC_ID, _ICR = 0x20, 0x30
_OSXSAVE = 1 << 18


def _bytes(structure: Any) -> bytes:
    return bytes(ffi.buffer(structure))


# What a vCPU has: how it is got, and how it is set.
_STATES: dict[str, tuple[Callable[[Vcpu], Any], Callable[[Vcpu, Any], None]]] = {
    "regs": (Vcpu.get_regs, Vcpu.set_regs),
    "sregs": (Vcpu.get_sregs, Vcpu.set_sregs),
    "sregs2": (Vcpu.get_sregs2, Vcpu.set_sregs2),
    "fpu": (Vcpu.get_fpu, Vcpu.set_fpu),
    "xsave": (Vcpu.get_xsave, Vcpu.set_xsave),
    "xcrs": (Vcpu.get_xcrs, Vcpu.set_xcrs),
    "debugregs": (Vcpu.get_debugregs, Vcpu.set_debugregs),
    "events": (Vcpu.get_vcpu_events, Vcpu.set_vcpu_events),
    "mp_state": (Vcpu.get_mp_state, Vcpu.set_mp_state),
    "cpuid": (Vcpu.get_cpuid2, Vcpu.set_cpuid2),
}


@case(
    "VS1",
    "what a vCPU that has run has can be set again, and is the same then",
    needs=("guests",),
    vary={"state": tuple(_STATES)},
)
def given_back(tools: Toolbox, state: str) -> None:
    get, give = _STATES[state]
    vm = tools.vm()
    vcpu = vm.cpu.vcpu
    for _ in range(2):
        vm.cpu.run(routines.HALT)
        try:
            before = get(vcpu)
        except KvmError as error:
            raise Missing(f"{state}: {error}") from None
        expect_errno(lambda: give(vcpu, before), 0, f"setting a vCPU's {state} as they are")  # noqa: B023
        after = get(vcpu)
        same = _bytes(before) == _bytes(after) if isinstance(before, ffi.CData) else before == after
        check(same, f"a vCPU's {state} are others when they were set as they were")
    vm.cpu.read(0x1000, 8, "a vCPU whose state was set as it was")


@case(
    "VS2",
    "CPUID can be set again as it was, whatever the guest has switched on since",
    needs=("guests",),
)
def cpuid_again(tools: Toolbox) -> None:
    vm = tools.vm()
    vcpu = vm.cpu.vcpu
    first = vm.kvm.get_supported_cpuid()
    vm.cpu.run(routines.HALT)
    can_xsave = any(entry.function == 1 and entry.ecx >> 26 & 1 for entry in _entries(first))
    if not can_xsave:
        raise Missing("XSAVE in KVM_GET_SUPPORTED_CPUID")
    for switched in ("on", "off", "on"):
        sregs = vcpu.get_sregs()
        sregs.cr4 = sregs.cr4 | _OSXSAVE if switched == "on" else sregs.cr4 & ~_OSXSAVE
        vcpu.set_sregs(sregs)
        what = f"KVM_SET_CPUID2 after CR4.OSXSAVE was switched {switched}"
        expect_errno(lambda: vcpu.set_cpuid2(first), 0, f"{what}, as at first")
        expect_errno(lambda: vcpu.set_cpuid2(vcpu.get_cpuid2()), 0, f"{what}, as it is")
    vm.cpu.read(0x1000, 8, "a vCPU whose CPUID was set as it was")


def _entries(cpuid: Any) -> list[Any]:
    return [cpuid.entries[index] for index in range(cpuid.nent)]


def _x2apic(tools: Toolbox, wide: bool = False) -> Vcpu:
    """A vCPU with number 3 whose APIC is an x2APIC."""
    vm = tools.keep(tools.kvm.create_vm(0))
    vm.create_irqchip()
    if wide:
        vm.enable_cap(lib.KVM_CAP_X2APIC_API, lib.KVM_X2APIC_API_USE_32BIT_IDS)
    vcpu = tools.keep(vm.create_vcpu(3))
    vcpu.set_cpuid2(tools.kvm.get_supported_cpuid())
    sregs = vcpu.get_sregs()
    sregs.apic_base |= _X2APIC_ENABLED
    vcpu.set_sregs(sregs)
    if not vcpu.get_sregs().apic_base & _X2APIC_ENABLED:
        raise Missing("x2APIC")
    return vcpu


@case(
    "VS3",
    "the ID of an x2APIC is the vCPU's number, whatever userspace sets",
    vary={"ids": ("8 bits", "32 bits")},
)
def lapic_id(tools: Toolbox, ids: str) -> None:
    vcpu = _x2apic(tools, wide=ids == "32 bits")
    lapic = vcpu.get_lapic()
    at = ffi.cast("uint32_t *", ffi.cast("char *", lapic) + _APIC_ID)
    right = int(at[0])
    expect(right, 3 if ids == "32 bits" else 3 << 24, "ID of vCPU 3")
    vcpu.set_lapic(lapic)
    for wrong in (0, 1, 4, 5 << 24, 0xFF << 24, 0xFFFFFFFF):
        at[0] = wrong
        try:
            vcpu.set_lapic(lapic)
        except KvmError:
            check(ids == "32 bits", f"KVM_SET_LAPIC with ID {wrong:#x} is refused")
        now = ffi.cast("uint32_t *", ffi.cast("char *", vcpu.get_lapic()) + _APIC_ID)
        expect(int(now[0]), right, f"ID of vCPU 3 after KVM_SET_LAPIC with ID {wrong:#x}")


# Bits of the x2APIC's interrupt command register that must be zero: 31 to 20, 17, 16 and 13.
_RESERVED = (*range(20, 32), 17, 16, 13)


@case("VS4", "MSRs of an x2APIC: reserved bits are refused")
def reserved_bits(tools: Toolbox) -> None:
    vcpu = _x2apic(tools)
    icr = _X2APIC_MSRS + _ICR
    # A fixed interrupt to nobody.
    right = 0xFE << 32 | 0x80
    taken = _sets(vcpu, icr, right)
    check(taken, "an interrupt command without reserved bits is refused")
    for bit in _RESERVED:
        check(
            not _sets(vcpu, icr, right | 1 << bit),
            f"an interrupt command with reserved bit {bit} is taken",
        )
    for register, name in ((0x08, "TPR"), (0x0F, "SVR"), (0x3E, "timer divider")):
        value = 0x1FF if name == "SVR" else 0
        check(_sets(vcpu, _X2APIC_MSRS + register, value), f"{name} {value:#x} is refused")
        for bit in (32, 47, 63):
            check(
                not _sets(vcpu, _X2APIC_MSRS + register, value | 1 << bit),
                f"{name} with bit {bit}, which it does not have, is taken",
            )


def _sets(vcpu: Vcpu, index: int, value: int) -> bool:
    request = ffi.new("struct kvm_msrs *", {"entries": 1})
    request.nmsrs = 1
    request.entries[0].index, request.entries[0].data = index, value
    return vcpu.ioctl("KVM_SET_MSRS", request) == 1
