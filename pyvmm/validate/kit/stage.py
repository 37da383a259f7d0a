"""A small piece of guest memory on which the steps of an order are played, one class per ABI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.kvm.exits import HltExit, MmioExit
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.kvm.memfd import Memfd
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import HUGE, PAGE
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.memory import ATTRIBUTE, SharedSide
from pyvmm.validate.kit.orders import Step, World

SIZE = 8 * PAGE
HALF = SIZE // 2
_TAG = 0x7A << 48
# Each stage of a VM has a block and two slots of its own.
_FIRST_GPA, _FIRST_SLOT = 4 << 30, 16
_SHARED_VIEW = 1 << 30


class Stage:
    """Slot, file and host memory, all there and shared; number ``index`` of its VM.

    ``do()`` takes a step that :class:`World` has found possible. ``end()`` closes all that is
    left but the VM, which is the caller's.
    """

    vm_type: int = lib.KVM_X86_DEFAULT_VM
    #: The steps that the ABI has, and what is there at the beginning.
    steps: tuple[Step, ...] = tuple(Step)
    world = World()

    def __init__(self, vm: GuestVm, index: int) -> None:
        self.vm = vm
        self.gpa = _FIRST_GPA + index * HUGE
        self.slot = _FIRST_SLOT + 2 * index
        self.now = self.world
        self.open()
        self.create()

    def do(self, step: Step) -> None:
        after = self.now.after(step)
        assert after is not None, f"{step} is not possible"
        _CALLS[step](self)
        self.now = after

    def end(self) -> None:
        if self.now.vm and self.now.slot:
            self.delete()
        self.close_file()
        self.close()

    # ---- what differs ----

    def open(self) -> None:
        raise NotImplementedError

    def create(self) -> None:
        raise NotImplementedError

    def delete(self) -> None:
        raise NotImplementedError

    def allocate(self, offset: int, size: int) -> None:
        raise NotImplementedError

    def punch(self) -> None:
        raise NotImplementedError

    def convert(self, there: bool) -> None:
        raise NotImplementedError

    def close_file(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def write(self) -> None:
        self.guest_writes(self.gpa, SIZE, self.now.slot and self.now.file)

    # ---- the guest ----

    def guest_writes(self, gpa: int, size: int, memory: bool) -> None:
        """A word into each page; where there is no memory, the exit of the first."""
        cpu = self.vm.cpu
        if memory:
            cpu.fill(gpa, size, _TAG, PAGE)
            return
        outcome = cpu.run(routines.WRITE[8], rdi=gpa, rax=_TAG)
        if isinstance(outcome.exit, HltExit):
            raise CheckFailed("a guest writes where no memory is, and nothing exits")
        if isinstance(outcome.exit, MmioExit):
            cpu.finish("after a write where no memory is")


_CALLS: dict[Step, Callable[[Stage], object]] = {
    Step.WRITE: lambda stage: stage.write(),
    Step.ALLOCATE: lambda stage: stage.allocate(HALF, HALF),
    Step.ALLOCATE_OVER: lambda stage: stage.allocate(0, SIZE),
    Step.PUNCH: lambda stage: stage.punch(),
    Step.THERE: lambda stage: stage.convert(True),
    Step.BACK: lambda stage: stage.convert(False),
    Step.DELETE: lambda stage: stage.delete(),
    Step.CREATE: lambda stage: stage.create(),
    Step.CLOSE_FILE: lambda stage: stage.close_file(),
    Step.CLOSE_VM: lambda stage: stage.vm.vm.close(),
}


class GuestMemfdStage(Stage):
    """guest_memfd and attributes, Linux 6.8."""

    vm_type = lib.KVM_X86_SW_PROTECTED_VM
    file_flags = 0

    def open(self) -> None:
        self.file: GuestMemfd = self.vm.vm.create_guest_memfd(SIZE, self.file_flags)
        self.side = self.host_memory()

    def host_memory(self) -> Mapping:
        return Mapping(SIZE)

    def create(self) -> None:
        self.vm.vm.set_user_memory_region2(
            self.slot,
            self.gpa,
            SIZE,
            self.side.address,
            lib.KVM_MEM_GUEST_MEMFD,
            self.file.fileno(),
        )

    def delete(self) -> None:
        self.vm.vm.set_user_memory_region2(self.slot, self.gpa, 0, 0, lib.KVM_MEM_GUEST_MEMFD)

    def write(self) -> None:
        now = self.now
        self.guest_writes(self.gpa, SIZE, now.slot and (now.file or not now.private))

    def allocate(self, offset: int, size: int) -> None:
        self.file.allocate(offset, size)

    def punch(self) -> None:
        self.file.punch(0, SIZE)

    def convert(self, there: bool) -> None:
        self.vm.vm.set_memory_attributes(self.gpa, SIZE, ATTRIBUTE if there else 0)

    def close_file(self) -> None:
        self.file.close()

    def close(self) -> None:
        if self.now.vm and self.now.private:
            self.convert(False)
        self.side.close()


class MappableStage(GuestMemfdStage):
    """A guest_memfd that the host can map, on a default VM, Linux 6.18: nothing to convert."""

    vm_type = lib.KVM_X86_DEFAULT_VM
    file_flags = lib.GUEST_MEMFD_FLAG_MMAP | lib.GUEST_MEMFD_FLAG_INIT_SHARED
    steps = tuple(step for step in Step if step not in (Step.THERE, Step.BACK))

    def host_memory(self) -> Mapping:
        return self.file.map()

    def write(self) -> None:
        # The descriptor that was closed was not the last reference: the mapping has one.
        self.guest_writes(self.gpa, SIZE, self.now.slot)


class InPlaceStage(GuestMemfdStage):
    """A guest_memfd that converts in place and that the host maps, Linux 7.4."""

    file_flags = MappableStage.file_flags
    world = World(converted_by_file=True)

    def host_memory(self) -> Mapping:
        return self.file.map()

    def write(self) -> None:
        now = self.now
        self.guest_writes(self.gpa, SIZE, now.slot and now.file)
        if now.file and not now.private:
            self.side.view[:SIZE:PAGE] = b"\1" * (SIZE // PAGE)

    def convert(self, there: bool) -> None:
        self.file.set_memory_attributes2(0, SIZE, ATTRIBUTE if there else 0)

    def close_file(self) -> None:
        self.side.close()
        self.file.close()

    def close(self) -> None:
        pass


class MemoryErrorStage(Stage):
    """The RFC of December 2021: a page is private when it is present in the file."""

    vm_type = lib.KVM_X86_SW_PROTECTED_VM
    world = World(converted_by_file=True)

    def open(self) -> None:
        self.file: GuestMemfd = self.vm.vm.create_guest_memfd(SIZE)
        self.side = Mapping(SIZE)
        self.hole = Mapping(SIZE, protection=PROT_NONE)
        self.present = [False, False]  # the first half, the second

    def create(self) -> None:
        private: int = lib.KVM_MEM_PRIVATE
        for slot, gpa, address, flags in (
            (self.slot, self.gpa, self.hole.address, private),
            (
                self.slot + 1,
                self.gpa + _SHARED_VIEW,
                self.side.address,
                private | lib.KVM_MEM_SHARED_VIEW,
            ),
        ):
            self.vm.vm.set_user_memory_region_ext(
                slot, gpa, SIZE, address, flags, self.file.fileno()
            )

    def delete(self) -> None:
        for slot in (self.slot, self.slot + 1):
            self.vm.vm.set_user_memory_region(slot, 0, 0, 0)

    def write(self) -> None:
        for half, present in enumerate(self.present):
            private = present and self.now.file
            gpa = self.gpa + half * HALF + (0 if private else _SHARED_VIEW)
            self.guest_writes(gpa, HALF, self.now.slot)

    def allocate(self, offset: int, size: int) -> None:
        self.file.allocate(offset, size)
        self.present = [self.present[0] or offset == 0, True]

    def punch(self) -> None:
        self.file.punch(0, SIZE)
        self.present = [False, False]

    def convert(self, there: bool) -> None:
        if there:
            self.allocate(0, SIZE)
        else:
            self.punch()

    def close_file(self) -> None:
        self.file.close()

    def close(self) -> None:
        self.hole.close()
        self.side.close()


class MemfdStage(Stage):
    """A plain memslot that shows one of two memfds: what any KVM has."""

    def open(self) -> None:
        self.files = [Memfd(f"order {name}", SIZE) for name in ("shared", "private")]
        self.sides: list[Any] = [file.map() for file in self.files]

    def create(self) -> None:
        self._show(self.now.private)

    def _show(self, private: bool) -> None:
        self.vm.vm.set_user_memory_region(self.slot, self.gpa, SIZE, self.sides[private].address)

    def delete(self) -> None:
        self.vm.vm.set_user_memory_region(self.slot, self.gpa, 0, 0)

    def allocate(self, offset: int, size: int) -> None:
        self.files[self.now.private].allocate(offset, size)

    def punch(self) -> None:
        self.files[self.now.private].punch(0, SIZE)

    def convert(self, there: bool) -> None:
        if self.now.slot and self.now.file:
            self.delete()
            self._show(there)

    def close_file(self) -> None:
        for each in (*self.files, *self.sides):
            each.close()

    def close(self) -> None:
        pass


class AnonymousStage(MemfdStage):
    """The same with memory that has no file; closing it is unmapping it."""

    def open(self) -> None:
        self.files = []
        self.sides = [SharedSide(self.gpa, SIZE) for _ in range(2)]

    def allocate(self, offset: int, size: int) -> None:
        view = self.sides[self.now.private].view
        view[offset : offset + size : PAGE] = b"\1" * (size // PAGE)

    def punch(self) -> None:
        self.sides[self.now.private].discard(0, SIZE)


STAGES: dict[str, type[Stage]] = {
    "guest_memfd": GuestMemfdStage,
    "mappable": MappableStage,
    "in_place": InPlaceStage,
    "memory_error": MemoryErrorStage,
    "memfd": MemfdStage,
    "anonymous": AnonymousStage,
}
