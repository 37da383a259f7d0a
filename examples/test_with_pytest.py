"""Guests as pytest tests: the installed package is a plugin, with fixtures for all of it.

pytest examples/test_with_pytest.py
"""

from collections.abc import Callable

import pytest

from pyvmm import Image, Kvm, RunReport
from pyvmm.pytest_plugin import needs

Assemble = Callable[[str], Image]
RunGuest = Callable[..., RunReport]


def test_the_first_touch_converts(machine: RunGuest, assemble: Assemble) -> None:
    report = machine(
        assemble("""
        movw $PRIVATE, %ax
        movw %ax, %es
        movb $0x5a, %es:0
        assert_eqb %es:0, $0x5a
        exit_guest $0
        """)
    )
    assert report.conversions.to_private == 1


@pytest.mark.parametrize("vcpus", [1, 2])
def test_every_vcpu_has_its_index(machine: RunGuest, assemble: Assemble, vcpus: int) -> None:
    report = machine(assemble("measure %eax\n exit_guest $0"), vcpus=vcpus)
    assert sorted(report.measures) == list(range(vcpus))


@needs("private_memory")
def test_a_protected_vm_can_be_made(kvm: Kvm) -> None:
    with kvm.create_vm(1) as vm:
        assert vm.vm_type == 1
