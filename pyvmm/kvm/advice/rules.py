"""The rules, by ioctl.

Called after a failure only: it looks at what was asked and at what the VM's methods have made
so far, in the order in which the kernel checks. Where no single rule can be told it says
nothing. There is one function for each ioctl; what has one cause alone is in
:data:`pyvmm.errors.REMEDIES`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from pyvmm.kvm.advice import capabilities, interrupts, memory, vcpus
from pyvmm.kvm.advice.state import VcpuState, VmState
from pyvmm.kvm.ioctls import ALSO_TAKEN, IOCTLS, OWNERS
from pyvmm.native import ffi

# The state, what was given to the ioctl (a pointer to its structure, or an integer), the errno.
Rule = Callable[[Any, Any, int], str]

_VM: dict[str, Rule] = {
    "KVM_SET_USER_MEMORY_REGION": memory.set_user_memory_region,
    "KVM_SET_USER_MEMORY_REGION2": memory.set_user_memory_region2,
    "KVM_SET_MEMORY_ATTRIBUTES": memory.set_memory_attributes,
    "KVM_CREATE_GUEST_MEMFD": memory.create_guest_memfd,
    "KVM_GET_DIRTY_LOG": memory.get_dirty_log,
    "KVM_CLEAR_DIRTY_LOG": memory.clear_dirty_log,
    "KVM_SET_TSS_ADDR": memory.set_tss_addr,
    "KVM_SET_IDENTITY_MAP_ADDR": vcpus.before_the_first_vcpu,
    "KVM_CREATE_VCPU": vcpus.create_vcpu,
    "KVM_SET_BOOT_CPU_ID": vcpus.set_boot_cpu_id,
    "KVM_SET_TSC_KHZ": vcpus.set_vm_tsc_khz,
    "KVM_ENABLE_CAP": capabilities.enable_cap,
    "KVM_CREATE_IRQCHIP": interrupts.create_irqchip,
    "KVM_CREATE_PIT2": interrupts.create_pit2,
    "KVM_GET_IRQCHIP": interrupts.irqchip,
    "KVM_SET_IRQCHIP": interrupts.irqchip,
    "KVM_SET_GSI_ROUTING": interrupts.set_gsi_routing,
    "KVM_SIGNAL_MSI": interrupts.signal_msi,
    "KVM_IRQFD": interrupts.irqfd,
    "KVM_IOEVENTFD": interrupts.ioeventfd,
}
_VCPU: dict[str, Rule] = {
    "KVM_SET_SREGS": vcpus.set_sregs,
    "KVM_SET_SREGS2": vcpus.set_sregs,
    "KVM_SET_CPUID2": vcpus.set_cpuid2,
    "KVM_PRE_FAULT_MEMORY": memory.pre_fault_memory,
    "KVM_INTERRUPT": interrupts.interrupt,
    "KVM_GET_LAPIC": interrupts.lapic,
    "KVM_SET_LAPIC": interrupts.lapic,
    "KVM_GET_NESTED_STATE": vcpus.nested_state,
    "KVM_SET_NESTED_STATE": vcpus.nested_state,
    "KVM_ENABLE_CAP": capabilities.enable_vcpu_cap,
}
_GUEST_MEMFD: dict[str, Rule] = {
    "KVM_SET_MEMORY_ATTRIBUTES2": memory.set_memory_attributes2,
}


def of_vm(state: VmState, call: str, request: Any, number: int) -> str:
    """The rule that an ioctl of a VM broke, or "". ``number`` is the errno."""
    return _of("a VM", _VM, state, call, request, number)


def of_vcpu(state: VcpuState, call: str, request: Any, number: int) -> str:
    """The rule that an ioctl of a vCPU broke, or ""."""
    return _of("a vCPU", _VCPU, state, call, request, number)


def of_guest_memfd(size: int, call: str, request: Any, number: int) -> str:
    """The rule that an ioctl of a guest_memfd of ``size`` bytes broke, or ""."""
    return _of("a guest_memfd", _GUEST_MEMFD, size, call, request, number)


def wrong_owner(owner: str, call: str, number: int) -> str:
    """Whether it is an ioctl of another kind of descriptor, by its owner: "/dev/kvm", "a VM"..."""
    right = OWNERS.get(call, owner)
    if number not in (errno.ENOTTY, errno.EINVAL) or right == owner:
        return ""
    return f"it is an ioctl of {right}, not of {owner}"


def _of(
    owner: str, rules: dict[str, Rule], state: Any, call: str, request: Any, number: int
) -> str:
    if advice := wrong_owner(owner, call, number):
        return advice
    rule = rules.get(call)
    if rule is None:
        return ""
    type = IOCTLS[call].type
    if type is None:
        return rule(state, request, number) if isinstance(request, int) else ""
    if not isinstance(request, ffi.CData):
        return ""
    kind = ffi.typeof(request)
    if kind.kind == "array":
        request = ffi.cast(f"{type} *", request)
    elif kind.cname not in {f"{each} *" for each in ALSO_TAKEN.get(call, (type,))}:
        return ""
    return rule(state, request, number)
