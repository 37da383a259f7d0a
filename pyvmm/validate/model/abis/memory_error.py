"""The RFC of December 2021: a page is private when it is present in the private file.

Each memslot is two: one in the private view, one in the shared view. An access through the
wrong view gives KVM_EXIT_MEMORY_ERROR until the page is converted.
"""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.native import lib
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.script import EVERYWHERE, SECOND_VIEW, Layout, Rules
from pyvmm.validate.model.state import MMIO, AccessExit, Place, Refusal, State
from pyvmm.validate.model.system import System

RULES = Rules(
    abi="memory_error",
    needs=("memory_error",),
    steps=EVERYWHERE | {"to_private", "to_shared", "discard", "hypercall"},
    backings=("anonymous", "thp", "shmem"),
    views=2,
)
_PRIVATE: int = lib.KVM_MEM_PRIVATE


class MemoryErrorState(State):
    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.present: set[Place] = set()

    def place(self, page: int) -> Place | int:
        view, index = divmod(page, self.layout.pages)
        if not self.has_slot(page):
            return MMIO
        place = self.file_place(page)
        assert place is not None
        if (place in self.present) == (view == 1):
            return int(lib.KVM_EXIT_MEMORY_ERROR)
        return Place(-1, index) if view else place

    def access_exit(self, page: int, reason: int) -> AccessExit:
        private = page < self.layout.pages
        wanted = lib.KVM_EXIT_MEM_MAP_PRIVATE if private else lib.KVM_EXIT_MEM_MAP_SHARED
        return AccessExit(errno.EPERM, reason, wanted, self.gpa(page), PAGE)

    def _file_pages(self, page: int, count: int) -> list[Place]:
        places = [self.file_place(each) for each in range(page, page + count)]
        return [place for place in places if place is not None]

    def convert(self, page: int, count: int, private: bool) -> None:
        """Pages without a slot have no state that could change."""
        for place in self._file_pages(page, count):
            if private:
                self.present.add(place)
            else:
                self.present.discard(place)
                self.contents.pop(place, None)
        self.note(page, count)

    def punch(self, file: int, page: int, count: int) -> None:
        super().punch(file, page, count)
        self.present.difference_update(Place(file, each) for each in range(page, page + count))

    def allocate(self, file: int, page: int, count: int) -> None:
        super().allocate(file, page, count)
        self.present.update(Place(file, each) for each in range(page, page + count))

    def refuses(self, slot: int, inode: int | None, page: int) -> Refusal:
        if inode is None or inode < 0:
            return Refusal((errno.EINVAL,))
        return super().refuses(slot, inode, page)


class MemoryErrorSystem(System):
    def __init__(self, tools: Toolbox, layout: Layout) -> None:
        super().__init__(tools, layout, tools.private_vm(layout.cpus))
        size = layout.pages * PAGE
        self.side = tools.shared_side(layout.gpa + SECOND_VIEW, size, layout.backing)
        self.hole = tools.keep(Mapping(size, protection=PROT_NONE))
        self.shared_numbers = [self.vm.new_slot() for _ in range(layout.slots)]
        self.files: list[GuestMemfd] = [
            tools.keep(self.vm.vm.create_guest_memfd(layout.file_pages * PAGE))
            for _ in range(layout.files)
        ]
        self._bound: list[tuple[int, int] | None] = [None] * layout.slots
        self.create_all()

    def convert(self, page: int, count: int, private: bool) -> None:
        for slot, bound in enumerate(self._bound):
            pages = self.layout.slot_pages(slot)
            first, end = max(page, pages.start), min(page + count, pages.stop)
            if bound is None or first >= end:
                continue
            change = self.allocate if private else self.punch
            change(bound[0], bound[1] + first - pages.start, end - first)

    def discard(self, page: int, count: int) -> None:
        self.side.discard(page * PAGE, count * PAGE)

    def punch(self, file: int, page: int, count: int) -> None:
        self.files[file].punch(page * PAGE, count * PAGE)

    def allocate(self, file: int, page: int, count: int) -> None:
        self.files[file].allocate(page * PAGE, count * PAGE)

    def host_read(self, page: int, offset: int, size: int) -> bytes:
        at = page * PAGE + offset
        return bytes(self.side.view[at : at + size])

    def host_write(self, page: int, offset: int, data: bytes) -> None:
        at = page * PAGE + offset
        self.side.view[at : at + len(data)] = data

    def delete_slot(self, slot: int) -> None:
        for number in (self.slot_numbers[slot], self.shared_numbers[slot]):
            self.vm.vm.set_user_memory_region(number, 0, 0, 0)
        self._bound[slot] = None

    def create_slot(self, slot: int, file: int, page: int) -> int:
        pages = self.layout.slot_pages(slot)
        at = pages.start * PAGE
        fd = self.files[file].fileno() if file >= 0 else -1
        views = (
            (self.slot_numbers[slot], pages.start, self.hole.address + at, _PRIVATE),
            (
                self.shared_numbers[slot],
                pages.start + self.layout.pages,
                self.side.address + at,
                _PRIVATE | lib.KVM_MEM_SHARED_VIEW,
            ),
        )
        for number, first, address, flags in views:
            try:
                self.vm.vm.set_user_memory_region_ext(
                    number, self.gpa(first), len(pages) * PAGE, address, flags, fd, page * PAGE
                )
            except KvmError as error:
                if number == self.shared_numbers[slot]:
                    raise  # what was right in one view is in the other
                return error.errno or 0
        self._bound[slot] = (file, page)
        return 0
