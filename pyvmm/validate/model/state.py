"""The model: which memory a page of the guest is, and what it holds.

A page is found at a place: on the host's side, or in a page of a file. The model keeps what
each place holds, byte by byte; a place that nothing was written to is zero. It knows nothing
of KVM. Each ABI has a subclass that says at which place a page is.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from pyvmm.native import lib
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.model.script import SECOND_VIEW, Layout

FILL_STRIDE = 1024
MMIO: int = lib.KVM_EXIT_MMIO
UNKNOWN = -1


class Place(NamedTuple):
    """A page of memory. ``file`` is the number of an inode, -1 for the host's side."""

    file: int
    page: int


class AccessExit(NamedTuple):
    """The exit that an access gives instead of memory: errno, reason, and what it is about.

    ``flags`` are those of KVM_EXIT_MEMORY_FAULT, the type of KVM_EXIT_MEMORY_ERROR, or
    1 for a write with KVM_EXIT_MMIO; ``value`` is what the write has.
    """

    errno: int
    reason: int
    flags: int
    gpa: int
    size: int
    value: int = 0


class Binding(NamedTuple):
    """What a memslot has behind it: an inode (-1 for none) from a page of it on."""

    inode: int
    page: int


class Refusal(NamedTuple):
    """The numbers of which one must come from a call that is wrong; empty: it must succeed."""

    errnos: tuple[int, ...]


ALLOWED = Refusal(())


class State:
    """Contents, slots and files. Pages that steps changed last are in ``changed``, last first."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.contents: dict[Place, bytearray] = {}
        self.slots: list[Binding | None] = []
        self.files: list[int | None] = list(range(layout.files))
        self.changed: list[int] = []
        # Pages for which KVM may remember that nothing is there, since they gave KVM_EXIT_MMIO.
        self.mmio: set[int] = set()
        self._next_inode = layout.files
        self._slot_of = [0] * layout.pages
        for slot in range(layout.slots):
            pages = layout.slot_pages(slot)
            self.slots.append(Binding(0, layout.file_offset + pages.start))
            for page in pages:
                self._slot_of[page] = slot

    # ---- where a page is ----

    def place(self, page: int) -> Place | int:
        """The place of a guest's page, or the reason of the exit that an access to it gives.

        UNKNOWN is the reason where kernels that are right differ.
        """
        raise NotImplementedError

    def access_exit(self, page: int, reason: int) -> AccessExit:
        """The exit itself, for reasons other than KVM_EXIT_MMIO."""
        raise NotImplementedError

    def host_place(self, page: int) -> Place | None:
        """What the host reads and writes for a page; None where it can reach nothing."""
        return Place(-1, page % self.layout.pages)

    def file_place(self, page: int) -> Place | None:
        """The page of a file behind a guest's page, in use or not; None without one."""
        page %= self.layout.pages
        slot = self._slot_of[page]
        binding = self.slots[slot]
        if binding is None or binding.inode < 0:
            return None
        return Place(binding.inode, binding.page + page - self.layout.slot_pages(slot).start)

    def has_slot(self, page: int) -> bool:
        return self.slots[self._slot_of[page % self.layout.pages]] is not None

    def is_bound(self, inode: int, page: int, count: int) -> bool:
        """Whether a slot has one of these pages of a file behind it."""
        for slot, binding in enumerate(self.slots):
            if binding is None or binding.inode != inode:
                continue
            there = len(self.layout.slot_pages(slot))
            if page < binding.page + there and binding.page < page + count:
                return True
        return False

    def gpa(self, page: int) -> int:
        view, index = divmod(page, self.layout.pages)
        return self.layout.gpa + view * SECOND_VIEW + index * PAGE

    # ---- contents ----

    def read(self, place: Place, offset: int, size: int) -> bytes:
        held = self.contents.get(place)
        return bytes(size) if held is None else bytes(held[offset : offset + size])

    def write(self, place: Place, offset: int, data: bytes) -> None:
        held = self.contents.setdefault(place, bytearray(PAGE))
        held[offset : offset + len(data)] = data

    def fill(self, place: Place, gpa: int, tag: int) -> None:
        """What the routine FILL writes to a page."""
        for offset in range(0, PAGE, FILL_STRIDE):
            self.write(place, offset, (tag + gpa + offset).to_bytes(8, "little"))

    def copy(self, source: Place, target: Place) -> None:
        self.contents[target] = bytearray(self.read(source, 0, PAGE))

    # ---- what steps do ----

    def convert(self, page: int, count: int, private: bool) -> None:
        raise NotImplementedError

    def punch(self, file: int, page: int, count: int) -> None:
        inode = self.files[file]
        if inode is None:
            return
        for each in range(page, page + count):
            self.contents.pop(Place(inode, each), None)
        self._file_changed(inode, page, count)

    def allocate(self, file: int, page: int, count: int) -> None:
        """Pages that are there keep what they hold, others are zero."""
        inode = self.files[file]
        if inode is not None:
            self._file_changed(inode, page, count)

    def discard(self, page: int, count: int) -> None:
        for each in range(page, page + count):
            self.contents.pop(Place(-1, each), None)
        self.note(page, count)

    def delete_slot(self, slot: int) -> None:
        self.slots[slot] = None
        self._slot_changed(slot)

    def create_slot(self, slot: int, file: int, page: int) -> Refusal:
        """As if there were none yet; says what comes of it."""
        inode = -1 if file < 0 else self.files[file]
        refusal = self.refuses(slot, inode, page)
        if not refusal.errnos:
            assert inode is not None
            self.slots[slot] = Binding(inode, page)
        self._slot_changed(slot)
        return refusal

    def refuses(self, slot: int, inode: int | None, page: int) -> Refusal:
        """What a slot that is to have pages of a guest_memfd from ``page`` on is refused with."""
        if inode is None:
            return Refusal((errno.EBADF,))
        if inode < 0:
            return ALLOWED
        size = len(self.layout.slot_pages(slot))
        if page + size > self.layout.file_pages:
            return Refusal((errno.EINVAL,))
        # EEXIST since commit 7ea987a90585, Linux 7.2: MU1 tells which.
        bound = Refusal((errno.EINVAL, errno.EEXIST))
        return bound if self.is_bound(inode, page, size) else ALLOWED

    def close_file(self, file: int) -> None:
        self.files[file] = None

    def new_file(self, file: int) -> None:
        self.close_file(file)
        self.files[file] = self._next_inode
        self._next_inode += 1

    # ---- what changed ----

    def note(self, page: int, count: int) -> None:
        """Both ends of a range, and what is beside it: that is where off-by-ones are."""
        last = page + count - 1
        ends = dict.fromkeys((last, page, last + 1, page - 1))
        self.changed = [each for each in ends if 0 <= each < self.layout.pages]

    def _file_changed(self, inode: int, page: int, count: int) -> None:
        pages = [
            each
            for each in range(self.layout.pages)
            if (place := self.file_place(each)) is not None
            and place.file == inode
            and page <= place.page < page + count
        ]
        if pages:
            self.note(pages[0], pages[-1] - pages[0] + 1)

    def _slot_changed(self, slot: int) -> None:
        pages = self.layout.slot_pages(slot)
        self.note(pages.start, len(pages))
