"""The merged ABI: the attribute is the state, a slot's guest_memfd has the private pages."""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.native import lib
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.memory import ATTRIBUTE, SharedSide
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.script import EVERYWHERE, Layout, Rules
from pyvmm.validate.model.state import MMIO, UNKNOWN, AccessExit, Place, State
from pyvmm.validate.model.system import System

RULES = Rules(
    abi="guest_memfd",
    needs=("private_memory",),
    steps=EVERYWHERE
    | {"to_private", "to_shared", "discard", "close_file", "new_file", "hypercall"},
    backings=("anonymous", "thp", "shmem"),
)


class GuestMemfdState(State):
    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.private = bytearray(layout.pages)

    def place(self, page: int) -> Place | int:
        if not self.private[page]:
            return Place(-1, page) if self.has_slot(page) else MMIO
        if page in self.mmio:
            # KVM's mapping for MMIO survives the conversion: it may give KVM_EXIT_MMIO still,
            # and with a slot KVM_EXIT_MEMORY_FAULT without a flag, until a shared access.
            return UNKNOWN
        place = self.file_place(page)
        # A file that is closed is gone, and all that was in it.
        if place is None or place.file not in self.files:
            return int(lib.KVM_EXIT_MEMORY_FAULT)
        return place

    def access_exit(self, page: int, reason: int) -> AccessExit:
        flags = lib.KVM_MEMORY_EXIT_FLAG_PRIVATE
        return AccessExit(errno.EFAULT, reason, flags, self.gpa(page), PAGE)

    def convert(self, page: int, count: int, private: bool) -> None:
        self.private[page : page + count] = bytes([private]) * count
        self.note(page, count)


class GuestMemfdSystem(System):
    def __init__(self, tools: Toolbox, layout: Layout) -> None:
        super().__init__(tools, layout, tools.private_vm(layout.cpus))
        self.side: SharedSide = tools.shared_side(layout.gpa, layout.pages * PAGE, layout.backing)
        self.files: list[GuestMemfd | None] = [self._file() for _ in range(layout.files)]
        self.create_all()

    def _file(self) -> GuestMemfd:
        return self.tools.keep(self.vm.vm.create_guest_memfd(self.layout.file_pages * PAGE))

    def convert(self, page: int, count: int, private: bool) -> None:
        attributes = ATTRIBUTE if private else 0
        self.vm.vm.set_memory_attributes(self.gpa(page), count * PAGE, attributes)

    def discard(self, page: int, count: int) -> None:
        self.side.discard(page * PAGE, count * PAGE)

    def host_read(self, page: int, offset: int, size: int) -> bytes:
        at = page * PAGE + offset
        return bytes(self.side.view[at : at + size])

    def host_write(self, page: int, offset: int, data: bytes) -> None:
        at = page * PAGE + offset
        self.side.view[at : at + len(data)] = data

    def delete_slot(self, slot: int) -> None:
        self.vm.vm.set_user_memory_region2(self.slot_numbers[slot], 0, 0, 0)

    def create_slot(self, slot: int, file: int, page: int) -> int:
        pages = self.layout.slot_pages(slot)
        flags, fd, offset = 0, 0, 0
        if file >= 0:
            chosen = self.files[file]
            flags, offset = lib.KVM_MEM_GUEST_MEMFD, page * PAGE
            fd = -1 if chosen is None else chosen.fileno()
        try:
            self.vm.vm.set_user_memory_region2(
                self.slot_numbers[slot],
                self.gpa(pages.start),
                len(pages) * PAGE,
                self.side.address + pages.start * PAGE,
                flags,
                fd,
                offset,
            )
        except KvmError as error:
            return error.errno or 0
        return 0

    def punch(self, file: int, page: int, count: int) -> None:
        if (chosen := self.files[file]) is not None:
            chosen.punch(page * PAGE, count * PAGE)

    def allocate(self, file: int, page: int, count: int) -> None:
        if (chosen := self.files[file]) is not None:
            chosen.allocate(page * PAGE, count * PAGE)

    def close_file(self, file: int) -> None:
        if (chosen := self.files[file]) is not None:
            chosen.close()
        self.files[file] = None

    def new_file(self, file: int) -> None:
        self.close_file(file)
        self.files[file] = self._file()
