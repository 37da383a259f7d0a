"""Rules of KVM_ENABLE_CAP."""

from __future__ import annotations

import errno
from typing import Any

from pyvmm.kvm.advice.state import VcpuState, VmState
from pyvmm.kvm.uapi import Capability
from pyvmm.native import lib

# KVM_CHECK_EXTENSION of these says which bits their first argument may have.
_MASKS = frozenset(
    (
        lib.KVM_CAP_DISABLE_QUIRKS2,
        lib.KVM_CAP_EXIT_HYPERCALL,
        lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        lib.KVM_CAP_PMU_CAPABILITY,
        lib.KVM_CAP_X2APIC_API,
        lib.KVM_CAP_X86_BUS_LOCK_EXIT,
        lib.KVM_CAP_X86_DISABLE_EXITS,
    )
)
_BEFORE_VCPUS = frozenset(
    (
        lib.KVM_CAP_DIRTY_LOG_RING,
        lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        lib.KVM_CAP_PMU_CAPABILITY,
        lib.KVM_CAP_SPLIT_IRQCHIP,
        lib.KVM_CAP_VM_DISABLE_NX_HUGE_PAGES,
        lib.KVM_CAP_X86_APIC_BUS_CYCLES_NS,
        lib.KVM_CAP_X86_DISABLE_EXITS,
        lib.KVM_CAP_X86_NOTIFY_VMEXIT,
    )
)
_RINGS = (lib.KVM_CAP_DIRTY_LOG_RING, lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL)


def enable_cap(state: VmState, request: Any, number: int) -> str:
    capability, argument = request.cap, request.args[0]
    if number == errno.EEXIST and capability == lib.KVM_CAP_SPLIT_IRQCHIP:
        if kind := state.controller():
            return f"the VM has an interrupt controller in the kernel already ({kind})"
        return state.before_vcpus()
    if number != errno.EINVAL:
        return ""
    if request.flags:
        return f"flags {request.flags:#x} must be 0"
    answer = state.ask(capability)
    if not answer:
        return f"this VM does not have {Capability(capability)}"
    if capability in _MASKS and (unknown := argument & ~answer):
        return f"argument {argument:#x} has bits {unknown:#x}, and this KVM knows {answer:#x}"
    if capability in _RINGS and (advice := _ring(state, argument, answer)):
        return advice
    if capability == lib.KVM_CAP_SPLIT_IRQCHIP and argument > (
        most := state.ask(lib.KVM_CAP_IRQ_ROUTING)
    ):
        return f"there are at most {most} pins (KVM_CAP_IRQ_ROUTING)"
    if capability == lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE and argument > 1:
        return f"argument {argument:#x} must be 0 or 1"
    return state.before_vcpus() if capability in _BEFORE_VCPUS else ""


def _ring(state: VmState, size: int, most: int) -> str:
    if not size or size & (size - 1):
        return f"the ring's size of {size} bytes is no power of two"
    if size < 4096:
        return f"the ring's size of {size} bytes is less than a page"
    if state.has_dirty_ring:
        return "the VM's ring has its size already"
    return ""


def enable_vcpu_cap(state: VcpuState, request: Any, number: int) -> str:
    if number == errno.EINVAL and request.flags:
        return f"flags {request.flags:#x} must be 0"
    return ""
