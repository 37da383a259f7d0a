"""Which one rule a call broke that the kernel refused.

Called after a failure only, and loaded then.
"""

from __future__ import annotations

from typing import Any

from pyvmm.kvm.advice.state import VcpuState, VmState

__all__ = ["VcpuState", "VmState", "of_vcpu", "of_vm", "wrong_owner"]


def of_vm(state: VmState, call: str, request: Any, number: int) -> str:
    """The rule that an ioctl of a VM broke, or "". ``number`` is the errno."""
    from pyvmm.kvm.advice import rules

    return rules.of_vm(state, call, request, number)


def of_vcpu(state: VcpuState, call: str, request: Any, number: int) -> str:
    """The rule that an ioctl of a vCPU broke, or ""."""
    from pyvmm.kvm.advice import rules

    return rules.of_vcpu(state, call, request, number)


def wrong_owner(owner: str, call: str, number: int) -> str:
    """Whether it is an ioctl of another kind of descriptor, by its owner: "/dev/kvm", "a VM"..."""
    from pyvmm.kvm.advice import rules

    return rules.wrong_owner(owner, call, number)
