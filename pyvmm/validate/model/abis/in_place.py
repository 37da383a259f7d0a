"""In-place conversion: a page's state is its file's, and its contents outlive each change of it.

Host and guest use the same page. The host reaches it while it is shared, the guest always.
"""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.mapping import Mapping
from pyvmm.native import lib
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.in_place import MAPPED, MMAP, HostView
from pyvmm.validate.kit.memory import ATTRIBUTE, SharedSide
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.script import EVERYWHERE, Layout, Rules
from pyvmm.validate.model.state import MMIO, UNKNOWN, AccessExit, Place, State
from pyvmm.validate.model.system import System

RULES = Rules(
    abi="in_place",
    needs=("in_place",),
    steps=EVERYWHERE | {"to_private", "to_shared", "close_file", "new_file", "hypercall"},
    # Of a slot without a file; all others have the file's pages.
    backings=("anonymous",),
)


def starts_private(inode: int) -> bool:
    """Files are of both kinds: the first is shared when it is made."""
    return inode % 2 == 1


class InPlaceState(State):
    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        # Pages that have another state than their file began with.
        self.changed_pages: set[Place] = set()

    def is_private(self, place: Place) -> bool:
        return starts_private(place.file) != (place in self.changed_pages)

    def place(self, page: int) -> Place | int:
        if not self.has_slot(page):
            return MMIO
        place = self.file_place(page)
        if place is None:
            return Place(-1, page)
        # A file that is closed is gone, and all that was in it.
        if place.file not in self.files:
            return int(lib.KVM_EXIT_MEMORY_FAULT)
        if page in self.mmio and self.is_private(place):
            # KVM's mapping for MMIO may be there still, and then the page is taken for shared.
            return UNKNOWN
        return place

    def access_exit(self, page: int, reason: int) -> AccessExit:
        # Nothing says that a page is private when its file is closed.
        return AccessExit(errno.EFAULT, reason, 0, self.gpa(page), PAGE)

    def host_place(self, page: int) -> Place | None:
        if not self.has_slot(page):
            return None
        place = self.file_place(page)
        if place is None:
            return Place(-1, page)
        if place.file not in self.files or self.is_private(place):
            return None
        return place

    def convert(self, page: int, count: int, private: bool) -> None:
        """Pages without a file have no state that could change."""
        for each in range(page, page + count):
            place = self.file_place(each)
            if place is None or place.file not in self.files:
                continue
            if starts_private(place.file) == private:
                self.changed_pages.discard(place)
            else:
                self.changed_pages.add(place)
        self.note(page, count)


class _File:
    """A file, its mapping, and the host's view of it."""

    def __init__(self, tools: Toolbox, file: GuestMemfd) -> None:
        self.file: GuestMemfd = tools.keep(file)
        self.mapping: Mapping = tools.keep(file.map())
        self.view: HostView = tools.keep(HostView(self.mapping.address))

    def close(self) -> None:
        self.mapping.close()
        self.file.close()


class InPlaceSystem(System):
    def __init__(self, tools: Toolbox, layout: Layout) -> None:
        super().__init__(tools, layout, tools.private_vm(layout.cpus))
        self.side: SharedSide = tools.shared_side(layout.gpa, layout.pages * PAGE, layout.backing)
        self._next_inode = 0
        self.files: list[_File | None] = [self._file() for _ in range(layout.files)]
        # The file that a slot has now, None for memory without one, and its first page.
        self._bound: dict[int, tuple[_File | None, int]] = {}
        self.create_all()

    def _file(self) -> _File:
        flags = MMAP if starts_private(self._next_inode) else MAPPED
        self._next_inode += 1
        size = self.layout.file_pages * PAGE
        return _File(self.tools, self.vm.vm.create_guest_memfd(size, flags))

    def convert(self, page: int, count: int, private: bool) -> None:
        for slot, (file, first) in self._bound.items():
            pages = self.layout.slot_pages(slot)
            start, end = max(page, pages.start), min(page + count, pages.stop)
            if file not in self.files or file is None or start >= end:
                continue
            file.file.set_memory_attributes2(
                (first + start - pages.start) * PAGE,
                (end - start) * PAGE,
                ATTRIBUTE if private else 0,
            )

    # ---- the host ----

    def _where(self, page: int) -> tuple[_File | None, int] | None:
        """The file and the offset in it; None where the host has nothing to look at."""
        slot = self.layout.slot_of(page)
        if slot not in self._bound:
            return None
        file, first = self._bound[slot]
        if file is not None and file not in self.files:
            return None
        return file, (first + page - self.layout.slot_pages(slot).start) * PAGE

    def host_read(self, page: int, offset: int, size: int) -> bytes:
        where = self._where(page)
        assert where is not None
        file, at = where
        if file is None:
            start = page * PAGE + offset
            return bytes(self.side.view[start : start + size])
        data = file.view.read(at + offset, size)
        if data is None:
            raise CheckFailed("the host cannot read a page that is shared")
        return data

    def host_write(self, page: int, offset: int, data: bytes) -> None:
        where = self._where(page)
        assert where is not None
        file, at = where
        if file is None:
            start = page * PAGE + offset
            self.side.view[start : start + len(data)] = data
        elif not file.view.write(at + offset, data):
            raise CheckFailed("the host cannot write to a page that is shared")

    def expect_no_host(self, page: int) -> None:
        where = self._where(page)
        if where is None or where[0] is None:
            return
        if where[0].view.read(where[1], 1) is not None:
            raise CheckFailed("the host can read a page that is private")

    # ---- slots and files ----

    def delete_slot(self, slot: int) -> None:
        self.vm.vm.set_user_memory_region2(self.slot_numbers[slot], 0, 0, 0)
        self._bound.pop(slot, None)

    def create_slot(self, slot: int, file: int, page: int) -> int:
        pages = self.layout.slot_pages(slot)
        chosen = self.files[file] if file >= 0 else None
        flags, fd, address = 0, 0, self.side.address + pages.start * PAGE
        if file >= 0:
            flags, fd = lib.KVM_MEM_GUEST_MEMFD, -1
        if chosen is not None:
            fd, address = chosen.file.fileno(), chosen.mapping.address + page * PAGE
        try:
            self.vm.vm.set_user_memory_region2(
                self.slot_numbers[slot],
                self.gpa(pages.start),
                len(pages) * PAGE,
                address,
                flags,
                fd,
                page * PAGE if flags else 0,
            )
        except KvmError as error:
            return error.errno or 0
        self._bound[slot] = chosen, page
        return 0

    def punch(self, file: int, page: int, count: int) -> None:
        if (chosen := self.files[file]) is not None:
            chosen.file.punch(page * PAGE, count * PAGE)

    def allocate(self, file: int, page: int, count: int) -> None:
        if (chosen := self.files[file]) is not None:
            chosen.file.allocate(page * PAGE, count * PAGE)

    def close_file(self, file: int) -> None:
        if (chosen := self.files[file]) is not None:
            chosen.close()
        self.files[file] = None

    def new_file(self, file: int) -> None:
        self.close_file(file)
        self.files[file] = self._file()
