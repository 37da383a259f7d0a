"""A KVM in plain Python for the model's tests: page tables, slots, files, and bugs to choose.

What is mapped stays mapped until it is zapped, as in a real one; each bug is one of those
that a kernel may have.
"""

from __future__ import annotations

import errno

from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.model.abis.guest_memfd import GuestMemfdState
from pyvmm.validate.model.script import Layout
from pyvmm.validate.model.state import MMIO, AccessExit, Place

_EINVAL = -errno.EINVAL & (1 << 64) - 1


class FakeKvm:
    """In place of a System of guest_memfd. ``bug`` names what is wrong with it."""

    def __init__(self, layout: Layout, bug: str = "") -> None:
        self.layout = layout
        self.bug = bug
        self.state = GuestMemfdState(layout)  # its slots, files and states; not its contents
        self.memory: dict[Place, bytearray] = {}
        self.mapped: dict[int, bytearray] = {}
        self.freed: list[bytearray] = []
        self.given: tuple[int, ...] = ()
        self.page = 0

    # ---- pages ----

    def at(self, place: Place) -> bytearray:
        if place not in self.memory:
            fresh = self.freed.pop() if self.freed else bytearray(PAGE)
            if self.bug != "not zeroed":
                fresh[:] = bytes(PAGE)
            self.memory[place] = fresh
        return self.memory[place]

    def free(self, place: Place) -> None:
        if place in self.memory:
            self.freed.append(self.memory.pop(place))

    def zap(self, pages: range | list[int], bug: str) -> None:
        pages = list(pages)
        if self.bug == f"{bug}: no zap":
            return
        if self.bug == f"{bug}: ends early":
            pages = pages[:-1]
        if self.bug == f"{bug}: starts late":
            pages = pages[1:]
        for page in pages:
            self.mapped.pop(page, None)

    def fault(self, page: int) -> bytearray | None:
        if page not in self.mapped:
            place = self.state.place(page)
            if not isinstance(place, Place):
                return None
            self.mapped[page] = self.at(place)
            if self.bug == "huge" and place.file < 0:
                block = (self.layout.gpa // PAGE + page) // 512 * 512 - self.layout.gpa // PAGE
                slot = self.layout.slot_pages(self.layout.slot_of(page))
                if slot.start <= block and block + 512 <= slot.stop:
                    for each in range(block, block + 512):
                        self.mapped[each] = self.at(Place(-1, each))
        return self.mapped[page]

    # ---- what a System does ----

    def convert(self, page: int, count: int, private: bool) -> None:
        self.state.convert(page, count, private)
        self.zap(range(page, page + count), "attributes")

    def discard(self, page: int, count: int) -> None:
        for each in range(page, page + count):
            self.free(Place(-1, each))
            if not self.state.private[each]:
                self.mapped.pop(each, None)

    def punch(self, file: int, page: int, count: int) -> None:
        inode = self.state.files[file]
        if inode is None:
            return
        places = [Place(inode, each) for each in range(page, page + count)]
        self.zap(self.behind(places), "punch")
        for place in places:
            self.free(place)

    def behind(self, places: list[Place]) -> list[int]:
        return [
            page
            for page in range(self.layout.pages)
            if self.state.private[page] and self.state.file_place(page) in places
        ]

    def allocate(self, file: int, page: int, count: int) -> None:
        inode = self.state.files[file]
        if inode is not None:
            for each in range(page, page + count):
                self.at(Place(inode, each))

    def delete_slot(self, slot: int) -> None:
        pages = self.layout.slot_pages(slot)
        if self.bug == "attribute lost with its slot":
            self.state.private[pages.start : pages.stop] = bytes(len(pages))
        self.state.delete_slot(slot)
        self.zap(pages, "slot")

    def create_slot(self, slot: int, file: int, page: int) -> int:
        if self.bug == "slot's offset ignored" and file >= 0:
            page = 0
        errnos = self.state.create_slot(slot, file, page).errnos
        return errnos[0] if errnos else 0

    def close_file(self, file: int) -> None:
        inode = self.state.files[file]
        if inode is not None:
            places = [place for place in self.memory if place.file == inode]
            self.zap(self.behind(places), "close")
            for place in places:
                self.free(place)
        self.state.close_file(file)

    def new_file(self, file: int) -> None:
        self.close_file(file)
        self.state.new_file(file)

    def host_read(self, page: int, offset: int, size: int) -> bytes:
        return bytes(self.at(Place(-1, page))[offset : offset + size])

    def host_write(self, page: int, offset: int, data: bytes) -> None:
        self.at(Place(-1, page))[offset : offset + len(data)] = data

    def _exit(self, page: int, offset: int, width: int, value: int | None) -> AccessExit:
        reason = self.state.place(page)
        assert not isinstance(reason, Place)
        if reason != MMIO:
            seen = self.state.access_exit(page, reason)
            if self.bug == "flag not set":
                seen = seen._replace(flags=0)
            if self.bug == "exit's size":
                seen = seen._replace(size=512 * PAGE)
            if self.bug == "exit's gpa in 32 bits":
                seen = seen._replace(gpa=seen.gpa & 0xFFFFFFFF)
            return seen
        written = 0 if value is None else value & (1 << 8 * width) - 1
        return AccessExit(
            0, MMIO, int(value is not None), self.state.gpa(page) + offset, width, written
        )

    def guest_read(self, cpu: int, page: int, offset: int, width: int) -> int | AccessExit:
        data = bytearray()
        for at in range(offset, offset + width):
            memory = self.fault(page + at // PAGE)
            if memory is None:
                return self._exit(page, offset, width, None)
            data.append(memory[at % PAGE])
        return int.from_bytes(data, "little")

    def guest_write(
        self, cpu: int, page: int, offset: int, width: int, value: int
    ) -> int | AccessExit:
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        for at, byte in zip(range(offset, offset + width), data, strict=True):
            memory = self.fault(page + at // PAGE)
            if memory is None:
                return self._exit(page, offset, width, value)
            memory[at % PAGE] = byte
        return 0

    def guest_add(self, cpu: int, page: int, offset: int, width: int, value: int) -> int:
        before = self.guest_read(cpu, page, offset, width)
        assert isinstance(before, int)
        self.guest_write(cpu, page, offset, width, before + value)
        return before

    def guest_fill(self, cpu: int, page: int, count: int, tag: int) -> None:
        for each in range(page, page + count):
            memory = self.fault(each)
            assert memory is not None
            for offset in range(0, PAGE, 1024):
                word = tag + self.state.gpa(each) + offset
                memory[offset : offset + 8] = word.to_bytes(8, "little")

    def guest_copy(self, cpu: int, source: int, target: int, count: int) -> None:
        for index in range(count):
            there, here = self.fault(target + index), self.fault(source + index)
            assert here is not None and there is not None
            there[:] = here

    def look(self, cpu: int, page: int, count: int) -> bytes:
        pieces = [self.fault(each) for each in range(page, page + count)]
        return b"".join(piece for piece in pieces if piece is not None)

    def hypercall(self, cpu: int, arguments: tuple[int, ...]) -> tuple[int, ...] | int:
        gpa, pages, attributes = self.given = tuple(arguments)
        if self.bug == "hypercall's pages in 32 bits":
            pages &= 0xFFFFFFFF
        if gpa % PAGE or not pages or (gpa // PAGE + pages) >> 64:
            return _EINVAL
        return (gpa, pages, attributes)

    def answer_hypercall(self, cpu: int, value: int) -> tuple[int, ...]:
        return (value & (1 << 64) - 1, *self.given)

    def watch(self, page: int) -> None:
        self.page = page
        self.stale = self.fault(page)

    def watched(self) -> int | AccessExit:
        memory = self.stale if self.bug == "no flush" else self.fault(self.page)
        if memory is None:
            return self._exit(self.page, 0, 8, None)
        return int.from_bytes(memory[:8], "little")

    def unwatch(self) -> None:
        pass


BUGS = (
    *(
        f"{what}: {bug}"
        for what in ("attributes", "punch", "slot")
        for bug in ("no zap", "ends early", "starts late")
    ),
    "close: no zap",
    "not zeroed",
    "attribute lost with its slot",
    "slot's offset ignored",
    "flag not set",
    "exit's size",
    "exit's gpa in 32 bits",
    "hypercall's pages in 32 bits",
    "no flush",
)
