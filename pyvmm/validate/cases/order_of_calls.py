"""What must be said before a VM has vCPUs, and what a VM offers beside what it takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pyvmm.kvm.vm import Vm
from pyvmm.native import lib
from pyvmm.validate.kit.case import PAGE, case
from pyvmm.validate.kit.check import Missing, errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.known import (
    EXITS_DISABLED_AFTER_A_VCPU,
    EXITS_DISABLED_THAT_ARE_NOT_OFFERED,
    TSC_FREQUENCY_AFTER_A_VCPU,
    Known,
    KnownBug,
)
from pyvmm.validate.kit.toolbox import Toolbox

EINVAL = errno.EINVAL
B31, B32, B63, B64 = 1 << 31, 1 << 32, 1 << 63, 1 << 64
_RING_BYTES = 64 * 1024

# The call, and what it fails with once there is a vCPU.
_CALLS: dict[str, tuple[Callable[[Vm], object], int]] = {
    "exits disabled": (lambda vm: vm.enable_cap(lib.KVM_CAP_X86_DISABLE_EXITS, 0), EINVAL),
    "TSC frequency": (lambda vm: vm.ioctl("KVM_SET_TSC_KHZ", 0), EINVAL),
    "boot CPU": (lambda vm: vm.set_boot_cpu_id(1), errno.EBUSY),
    "interrupt controllers": (lambda vm: vm.create_irqchip(), EINVAL),
    "split interrupt controllers": (lambda vm: vm.split_irqchip(), errno.EEXIST),
    "identity map": (lambda vm: vm.set_identity_map_addr(B32 - 64 * PAGE), EINVAL),
    "dirty ring": (lambda vm: vm.enable_cap(lib.KVM_CAP_DIRTY_LOG_RING, _RING_BYTES), EINVAL),
}
_KNOWN: dict[str, KnownBug] = {
    "exits disabled": EXITS_DISABLED_AFTER_A_VCPU,
    "TSC frequency": TSC_FREQUENCY_AFTER_A_VCPU,
}


@case(
    "OC1",
    "what holds for all vCPUs of a VM is refused once there is one",
    vary={"call": tuple(_CALLS)},
)
def before_vcpus(tools: Toolbox, call: str) -> None:
    make, wanted = _CALLS[call]
    early = tools.keep(tools.kvm.create_vm(0))
    if errno_of(lambda: make(early)):
        raise Missing(f"the call at all ({call})")
    late = tools.keep(tools.kvm.create_vm(0))
    tools.keep(late.create_vcpu(0))
    seen = errno_of(lambda: make(late))
    if seen == 0 and call in _KNOWN:
        raise Known(_KNOWN[call], f"a VM that has a vCPU takes what must be said before ({call})")
    expect(errno_name(seen), errno_name(wanted), f"errno of a VM that has a vCPU ({call})")


@case("OC2", "numbers of vCPUs: the boot CPU's is one that a vCPU can have")
def vcpu_ids(tools: Toolbox) -> None:
    def boot(vm: Vm, number: int) -> Callable[[], object]:
        return lambda: vm.ioctl("KVM_SET_BOOT_CPU_ID", number)

    def limit(vm: Vm, number: int) -> Callable[[], object]:
        return lambda: vm.enable_cap(lib.KVM_CAP_MAX_VCPU_ID, number)

    vm = tools.keep(tools.kvm.create_vm(0))
    most = vm.check_extension(lib.KVM_CAP_MAX_VCPU_ID)
    for number in (most + 1, B31 - 1, B31, B32 - 1, B32, B32 + 1, B63, B64 - 1):
        expect_errno(boot(vm, number), EINVAL, f"KVM_SET_BOOT_CPU_ID with {number:#x}")
    for number in (most - 1, 0, 7):
        expect_errno(boot(vm, number), 0, f"KVM_SET_BOOT_CPU_ID with {number:#x}")
    # The boot CPU has number 7 now.
    for number in (most + 1, B31, B32, B32 + 16, B64 - 1):
        expect_errno(limit(vm, number), EINVAL, f"KVM_CAP_MAX_VCPU_ID with {number:#x}")
    for number in (1, 2, 6):
        expect_errno(limit(vm, number), EINVAL, f"KVM_CAP_MAX_VCPU_ID {number}, boot CPU 7")
    expect_errno(limit(vm, 16), 0, "KVM_CAP_MAX_VCPU_ID 16, boot CPU 7")
    expect_errno(limit(vm, 17), EINVAL, "KVM_CAP_MAX_VCPU_ID a second time")
    for number in (17, most - 1):
        expect_errno(boot(vm, number), EINVAL, f"KVM_SET_BOOT_CPU_ID {number}, vCPUs up to 16")
    for number in (16, most - 1):
        expect_errno(
            lambda number=number: os.close(vm.ioctl("KVM_CREATE_VCPU", number)),  # type: ignore[misc]
            EINVAL,
            f"KVM_CREATE_VCPU with {number}, vCPUs up to 16",
        )
    for number in (7, 0, 15):
        expect_errno(
            lambda number=number: os.close(vm.ioctl("KVM_CREATE_VCPU", number)),  # type: ignore[misc]
            0,
            f"KVM_CREATE_VCPU with {number}, vCPUs up to 16",
        )


# Capabilities whose value is a mask of what KVM_ENABLE_CAP takes.
_MASKS = {
    "X86_DISABLE_EXITS": lib.KVM_CAP_X86_DISABLE_EXITS,
    "X2APIC_API": lib.KVM_CAP_X2APIC_API,
    "DISABLE_QUIRKS2": lib.KVM_CAP_DISABLE_QUIRKS2,
    "EXIT_HYPERCALL": lib.KVM_CAP_EXIT_HYPERCALL,
    "MANUAL_DIRTY_LOG_PROTECT2": lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
}


@case(
    "OC3",
    "of a capability that is a mask each bit is taken that is offered, and no other",
    vary={"mask": tuple(_MASKS)},
)
def as_offered(tools: Toolbox, mask: str) -> None:
    name, capability = f"KVM_CAP_{mask}", _MASKS[mask]
    with tools.kvm.create_vm(0) as vm:
        offered = vm.check_extension(capability)
    if not offered:
        raise Missing(name)
    too_many: list[int] = []
    for bit in range(64):
        # A VM for each: what is enabled stays.
        with tools.kvm.create_vm(0) as vm:
            seen = errno_of(lambda vm=vm, bit=bit: vm.enable_cap(capability, 1 << bit))  # type: ignore[misc]
        if offered >> bit & 1:
            # A bit may need another call before it, or another bit beside it.
            expect(seen in (0, EINVAL), True, f"whether {name} takes bit {bit} or says EINVAL")
        elif seen == 0 and mask == "X86_DISABLE_EXITS" and bit < 4:
            too_many.append(bit)
        else:
            expect(errno_name(seen), "EINVAL", f"{name} with bit {bit}, which is not offered")
    if too_many:
        raise Known(
            EXITS_DISABLED_THAT_ARE_NOT_OFFERED,
            "KVM_CAP_X86_DISABLE_EXITS takes bits that KVM_CHECK_EXTENSION does not have",
            f"bits {too_many}, offered {offered:#x}",
        )
