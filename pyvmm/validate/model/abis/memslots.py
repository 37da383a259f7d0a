"""Memslots on any KVM: all is shared, and a slot shows the pages of a file that the host maps."""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.memfd import Memfd, MemoryFile
from pyvmm.native import lib
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.memory import create_file
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.script import EVERYWHERE, Layout, Rules
from pyvmm.validate.model.state import ALLOWED, MMIO, AccessExit, Place, Refusal, State
from pyvmm.validate.model.system import System

RULES = Rules(
    abi="memslots",
    needs=("guests",),
    steps=EVERYWHERE,
    backings=("shmem", "guest_memfd"),
)


class MemslotsState(State):
    """Slots of one file may overlap in it: then two pages of the guest are one."""

    def place(self, page: int) -> Place | int:
        return self.file_place(page) or MMIO

    def access_exit(self, page: int, reason: int) -> AccessExit:
        return AccessExit(errno.EFAULT, reason, 0, self.gpa(page), PAGE)

    def host_place(self, page: int) -> Place | None:
        return self.file_place(page)

    def refuses(self, slot: int, inode: int | None, page: int) -> Refusal:
        size = len(self.layout.slot_pages(slot))
        if inode is None or inode < 0 or page + size > self.layout.file_pages:
            # There is no such memory; its address is given as one that is not a page's.
            return Refusal((errno.EINVAL,))
        return ALLOWED


class MemslotsSystem(System):
    def __init__(self, tools: Toolbox, layout: Layout) -> None:
        super().__init__(tools, layout, tools.vm(cpus=layout.cpus))
        size = layout.file_pages * PAGE
        self.files: list[MemoryFile] = []
        self.maps: list[Mapping] = []
        for number in range(layout.files):
            if layout.backing == "guest_memfd":
                flags = lib.GUEST_MEMFD_FLAG_MMAP | lib.GUEST_MEMFD_FLAG_INIT_SHARED
                file: MemoryFile = create_file(self.vm, size, flags)
            else:
                file = Memfd(f"model {number}", size)
            self.files.append(tools.keep(file))
            self.maps.append(tools.keep(file.map()))
        self._bound: list[tuple[int, int]] = [(-1, 0)] * layout.slots
        self.create_all()

    def discard(self, page: int, count: int) -> None:
        raise NotImplementedError

    def convert(self, page: int, count: int, private: bool) -> None:
        raise NotImplementedError

    def host_read(self, page: int, offset: int, size: int) -> bytes:
        view, at = self._host(page, offset)
        return bytes(view[at : at + size])

    def host_write(self, page: int, offset: int, data: bytes) -> None:
        view, at = self._host(page, offset)
        view[at : at + len(data)] = data

    def _host(self, page: int, offset: int) -> tuple[memoryview, int]:
        slot = self.layout.slot_of(page)
        file, first = self._bound[slot]
        at = (first + page - self.layout.slot_pages(slot).start) * PAGE + offset
        return self.maps[file].view, at

    def punch(self, file: int, page: int, count: int) -> None:
        self.files[file].punch(page * PAGE, count * PAGE)

    def allocate(self, file: int, page: int, count: int) -> None:
        self.files[file].allocate(page * PAGE, count * PAGE)

    def delete_slot(self, slot: int) -> None:
        self.vm.vm.set_user_memory_region(self.slot_numbers[slot], 0, 0, 0)

    def create_slot(self, slot: int, file: int, page: int) -> int:
        pages = self.layout.slot_pages(slot)
        address = 1
        if file >= 0 and page + len(pages) <= self.layout.file_pages:
            address = self.maps[file].address + page * PAGE
        try:
            self.vm.vm.set_user_memory_region(
                self.slot_numbers[slot], self.gpa(pages.start), len(pages) * PAGE, address
            )
        except KvmError as error:
            return error.errno or 0
        self._bound[slot] = (file, page)
        return 0
