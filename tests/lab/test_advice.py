"""What a kernel with private memory refuses, and the rule that the error names."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import Kvm
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.uapi import VmType
from pyvmm.kvm.vm import Vm
from pyvmm.native import lib

PAGE = 0x1000
TOP = (1 << 64) - PAGE
FILE, PRIVATE = lib.KVM_MEM_GUEST_MEMFD, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE


class Scene:
    """A VM with private memory: slot 1 binds the first four pages of a file of eight."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.kvm = stack.enter_context(Kvm())
        self.memory = Mapping(16 * PAGE)
        stack.callback(self.memory.close)
        self.vm = self.new_vm()
        self.file = self.new_file(self.vm)
        self.bind(1, 0x10000)

    def new_vm(self, vm_type: int = VmType.SW_PROTECTED) -> Vm:
        return self.stack.enter_context(self.kvm.create_vm(vm_type))

    def new_file(self, vm: Vm) -> GuestMemfd:
        return self.stack.enter_context(vm.create_guest_memfd(8 * PAGE))

    def bind(
        self,
        slot: int,
        gpa: int,
        *,
        size: int = 4 * PAGE,
        flags: int = FILE,
        file: GuestMemfd | None = None,
        offset: int = 0,
        vm: Vm | None = None,
    ) -> None:
        fd = (file or self.file).fileno()
        address = self.memory.address
        (vm or self.vm).set_user_memory_region2(slot, gpa, size, address, flags, fd, offset)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def bind_in_a_plain_vm(scene: Scene) -> None:
    vm = scene.new_vm(VmType.DEFAULT)
    if vm.has(lib.KVM_CAP_GUEST_MEMFD):
        pytest.skip("plain VMs have guest_memfd here")
    scene.bind(0, 0x10000, vm=vm, file=scene.new_file(vm))


ROWS: dict[str, tuple[Callable[[Scene], object], str]] = {
    "bound": (
        lambda scene: scene.bind(2, 0x40000, offset=2 * PAGE),
        r"file range \[0x2000, 0x6000\) is already bound by slot 1",
    ),
    "overlap": (
        lambda scene: scene.bind(2, 0x12000, file=scene.new_file(scene.vm)),
        "slot 2: GPA 0x12000-0x15fff overlaps slot 1 at 0x10000-0x13fff",
    ),
    "another VM's": (
        lambda scene: scene.bind(2, 0x40000, file=scene.new_file(scene.new_vm())),
        "belongs to another VM",
    ),
    "past the end": (
        lambda scene: scene.bind(2, 0x40000, offset=6 * PAGE),
        r"file range \[0x6000, 0xa000\) reaches past the guest_memfd's end at 0x8000",
    ),
    "offset": (
        lambda scene: scene.bind(2, 0x40000, offset=4 * PAGE + 1),
        "guest_memfd_offset 0x4001 is not page aligned",
    ),
    "offset wraps": (
        lambda scene: scene.bind(2, 0x40000, offset=TOP),
        "guest_memfd_offset 0xfffffffffffff000 and the size wrap",
    ),
    "logged": (
        lambda scene: scene.bind(2, 0x40000, flags=FILE | lib.KVM_MEM_LOG_DIRTY_PAGES),
        "KVM_MEM_LOG_DIRTY_PAGES cannot be had together with KVM_MEM_GUEST_MEMFD",
    ),
    "read-only": (
        lambda scene: scene.bind(2, 0x40000, flags=FILE | lib.KVM_MEM_READONLY),
        "KVM_MEM_READONLY cannot be had together with KVM_MEM_GUEST_MEMFD",
    ),
    "changed": (
        lambda scene: scene.bind(1, 0x20000),
        "slot 1 exists: one with a guest_memfd cannot be changed, only deleted",
    ),
    "without its file": (
        lambda scene: scene.bind(1, 0x10000, flags=0),
        "slot 1 exists: one with a guest_memfd cannot be changed",
    ),
    "a plain VM": (bind_in_a_plain_vm, "VMs of type 0 have no guest_memfd here"),
    "dirty log": (
        lambda scene: scene.vm.get_dirty_log(1, 4),
        "slot 1 has a guest_memfd, and such slots have no dirty log",
    ),
    "file of odd size": (
        lambda scene: scene.vm.create_guest_memfd(PAGE + 1),
        "size 0x1001 is not page aligned",
    ),
    "file of no size": (lambda scene: scene.vm.create_guest_memfd(0), "size is 0"),
    "file of 2^63": (lambda scene: scene.vm.create_guest_memfd(1 << 63), "negative to the kernel"),
    "file's flags": (
        lambda scene: scene.vm.create_guest_memfd(PAGE, 1 << 60),
        "flags 0x1000000000000000 are not known here",
    ),
    "private on a plain VM": (
        lambda scene: scene.new_vm(0).set_memory_attributes(0, PAGE, PRIVATE),
        "private memory needs a VM of type 1 .*this one is of type 0",
    ),
    "attributes": (
        lambda scene: scene.vm.set_memory_attributes(0, PAGE, 1),
        "this VM does not know attributes 0x1; it has 0x8",
    ),
    "attributes of nothing": (
        lambda scene: scene.vm.set_memory_attributes(0, 0, PRIVATE),
        "size is 0",
    ),
    "attributes of half a page": (
        lambda scene: scene.vm.set_memory_attributes(0x10800, PAGE, PRIVATE),
        "GPA 0x10800 is not page aligned",
    ),
    "attributes of a piece": (
        lambda scene: scene.vm.set_memory_attributes(0x10000, 0x800, PRIVATE),
        "size 0x800 is not page aligned",
    ),
    "attributes wrap": (
        lambda scene: scene.vm.set_memory_attributes(TOP, 2 * PAGE, PRIVATE),
        "the range from GPA 0xfffffffffffff000 wraps",
    ),
    "private through the old ioctl": (
        lambda scene: scene.vm.set_user_memory_region(5, 0x40000, PAGE, scene.memory.address, FILE),
        "bound by KVM_SET_USER_MEMORY_REGION2",
    ),
    "pre-fault nowhere": (
        lambda scene: scene.vm.create_vcpu(0).pre_fault_memory(1 << 30, PAGE),
        "there is no memslot at GPA 0x40000000",
    ),
    "pre-fault nothing": (
        lambda scene: scene.vm.create_vcpu(0).pre_fault_memory(0x10000, 0),
        "size is 0",
    ),
    "pre-fault half a page": (
        lambda scene: scene.vm.create_vcpu(0).pre_fault_memory(0x10800, PAGE),
        "GPA 0x10800 is not page aligned",
    ),
    "pre-fault flags": (
        lambda scene: scene.vm.create_vcpu(0).pre_fault_memory(0x10000, PAGE, 2),
        "flags 0x2 must be 0",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_rule_is_named(scene: Scene, row: str) -> None:
    call, words = ROWS[row]
    with pytest.raises(KvmError) as caught:
        call(scene)
    assert re.search(words, caught.value.remedy), str(caught.value)


def test_a_private_page_without_a_file(scene: Scene) -> None:
    scene.vm.set_user_memory_region2(3, 0x80000, PAGE, scene.memory.address)
    scene.vm.set_memory_attributes(0x80000, PAGE, PRIVATE)
    with scene.vm.create_vcpu(0) as vcpu, pytest.raises(KvmError) as caught:
        vcpu.pre_fault_memory(0x80000, PAGE)
    assert caught.value.errno == errno.EFAULT
    assert "GPA 0x80000 is private, and its slot has no guest_memfd" in caught.value.remedy


def test_a_file_that_was_closed_is_not_taken_for_another(scene: Scene) -> None:
    """Its number is another file's now: what that is bound to is not what the first was."""
    number = scene.file.fileno()
    scene.file.close()
    other = scene.new_file(scene.vm)
    assert other.fileno() == number
    scene.bind(2, 0x40000, file=other)
    with pytest.raises(KvmError) as caught:
        scene.bind(3, 0x60000, file=other)
    assert "already bound by slot 2" in caught.value.remedy
