"""The rule that a refused ioctl about page states broke, on kernels that are not at hand."""

from __future__ import annotations

import errno

import pytest

from pyvmm.kvm.advice.memory import set_memory_attributes
from pyvmm.kvm.advice.state import VmState
from pyvmm.kvm.arguments import structure
from pyvmm.native import lib

PRIVATE = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE


def advice(number: int, **capabilities: int) -> str:
    answers = {getattr(lib, f"KVM_CAP_{name}"): value for name, value in capabilities.items()}
    state = VmState(
        lib.KVM_X86_SW_PROTECTED_VM, lambda capability: answers.get(capability, 0), lambda: False
    )
    request = structure("struct kvm_memory_attributes", address=0, size=4096, attributes=PRIVATE)
    return set_memory_attributes(state, request, number)


@pytest.mark.parametrize(
    ("number", "in_place", "rule"),
    [
        # Linux 7.4 without and with CONFIG_KVM_VM_MEMORY_ATTRIBUTES.
        (errno.ENOTTY, PRIVATE, "set_memory_attributes2()"),
        (errno.EINVAL, PRIVATE, "set_memory_attributes2()"),
        (errno.ENOTTY, 0, "this kernel has no memory attributes"),
        (errno.EINVAL, 0, "private memory needs a VM of type"),
        (errno.ENOMEM, PRIVATE, ""),
    ],
)
def test_who_keeps_page_states(number: int, in_place: int, rule: str) -> None:
    words = advice(number, GUEST_MEMFD_MEMORY_ATTRIBUTES=in_place)
    assert rule in words and bool(words) == bool(rule)
