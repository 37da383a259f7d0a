"""Guest memory of a case: memslots with a shared side and, behind them, a guest_memfd."""

from __future__ import annotations

import mmap
from array import array
from contextlib import suppress
from typing import NamedTuple

from pyvmm.errors import KvmError
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.memfd import Memfd
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import child
from pyvmm.validate.kit.case import GIB, HUGE, PAGE
from pyvmm.validate.kit.check import CheckFailed, Missing, words
from pyvmm.validate.kit.guest import GuestVm

STRIDE = 1024  # one word in so many bytes is looked at
ATTRIBUTE: int = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE

BACKINGS = ("anonymous", "thp", "shmem", "hugetlb")
# The pages of those that are made of hugetlb pages.
_PAGE_SIZES = {"hugetlb": HUGE, "gigantic": GIB}


class SharedSide:
    """Host memory behind memslots, of one of the :data:`BACKINGS`, or "gigantic": hugetlb pages
    of 1 GiB.

    Its address and ``gpa`` are equal modulo 2 MiB (or 1 GiB), without which KVM maps no huge
    pages.
    Raises :class:`Missing` where the host has no such memory.
    """

    def __init__(self, gpa: int, size: int, backing: str = "anonymous") -> None:
        self.size = size
        self.backing = backing
        self.file: Memfd | None = None
        huge = _PAGE_SIZES.get(backing, 0)
        if huge:
            whole = -(-(size + gpa % huge) // huge) * huge
            _need_huge_pages(whole // huge, huge)
        else:
            whole = -(-(size + 2 * HUGE) // HUGE) * HUGE
        if huge or backing == "shmem":
            self.file = Memfd(f"shared side, {backing}", whole, huge_page_size=huge)
            self._map = mmap.mmap(self.file.fileno(), whole)
        else:
            self._map = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer = ffi.from_buffer(self._map)
        start = int(ffi.cast("uintptr_t", buffer))
        del buffer  # it keeps the map from being closed
        self._offset = (gpa - start) % (huge or HUGE)
        self.address = start + self._offset
        if backing in ("anonymous", "thp"):
            if backing == "thp":
                _need_thp()
            advice = mmap.MADV_HUGEPAGE if backing == "thp" else mmap.MADV_NOHUGEPAGE
            try:
                self._map.madvise(advice)
            except OSError:
                if backing == "thp":
                    raise Missing("transparent huge pages: madvise refuses them") from None

    @property
    def view(self) -> memoryview:
        return memoryview(self._map)[self._offset : self._offset + self.size]

    def fill(self, gpa: int, offset: int, size: int, tag: int) -> None:
        """Let the host write what :meth:`pyvmm.validate.kit.guest.Cpu.fill` would."""
        step = STRIDE // 8
        with self.view[offset : offset + size].cast("Q") as view:
            view[::step] = memoryview(_pattern(gpa + offset, size, tag))

    def expect_filled(self, gpa: int, offset: int, size: int, tag: int, what: str) -> None:
        """The host must see what was written with ``tag``."""
        self._expect(gpa + offset, offset, size, _pattern(gpa + offset, size, tag), what)

    def expect_zero(self, gpa: int, offset: int, size: int, what: str) -> None:
        self._expect(gpa + offset, offset, size, array("Q", bytes(size // STRIDE * 8)), what)

    def _expect(self, gpa: int, offset: int, size: int, wanted: array[int], what: str) -> None:
        with self.view[offset : offset + size].cast("Q") as view:
            seen = view[:: STRIDE // 8].tolist()
        if seen == wanted.tolist():
            return
        at = next(index for index, word in enumerate(seen) if word != wanted[index])
        raise CheckFailed(
            f"{what}: the host reads {words(seen[at])} for GPA {gpa + at * STRIDE:#x}, "
            f"expected {words(wanted[at])}"
        )

    def word(self, offset: int) -> int:
        return int.from_bytes(self.view[offset : offset + 8], "little")

    def discard(self, offset: int, size: int) -> None:
        """Give the pages back; they read zero afterwards. Huge pages only whole."""
        if huge := _PAGE_SIZES.get(self.backing):
            first = -(-(self._offset + offset) // huge) * huge
            end = (self._offset + offset + size) // huge * huge
            self.view[offset : offset + size] = bytes(size)
            if end > first and self.file is not None:
                self.file.punch(first, end - first)
        elif self.file is not None:
            self.file.punch(self._offset + offset, size)
        else:
            self._map.madvise(mmap.MADV_DONTNEED, self._offset + offset, size)

    def close(self) -> None:
        # A failed check's traceback may still hold a view; the map then goes with it.
        with suppress(BufferError):
            self._map.close()
        if self.file is not None:
            self.file.close()


def _pattern(gpa: int, size: int, tag: int) -> array[int]:
    return array("Q", range(tag + gpa, tag + gpa + size, STRIDE))


def _need_thp() -> None:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            state = file.read()
    except OSError:
        raise Missing("transparent huge pages: this kernel has none") from None
    if "[never]" in state:
        raise Missing(
            "transparent huge pages: switched off; "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )


def _need_huge_pages(count: int, size: int) -> None:
    folder = f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB"
    what = f"hugetlb pages of {size >> 20} MiB"
    try:
        with open(f"{folder}/free_hugepages", encoding="ascii") as file:
            free = int(file.read())
    except OSError:
        raise Missing(f"{what}: this kernel has none") from None
    if free < count:
        raise Missing(
            f"{count} free {what}: there are {free}; write a number to {folder}/nr_hugepages"
        )


class Slot(NamedTuple):
    number: int
    gpa: int
    size: int
    address: int
    file_offset: int


class Memory:
    """A range of GPAs with a shared side and a private one, in one or several slots.

    The private side is one guest_memfd whose page for ``gpa`` is at ``file_offset``.
    All ``offset`` arguments count from ``gpa``; all sizes are bytes.
    """

    def __init__(
        self,
        vm: GuestVm,
        gpa: int,
        size: int,
        *,
        backing: str = "anonymous",
        slots: int = 1,
        file_offset: int = 0,
        file_size: int = 0,
        file: GuestMemfd | None = None,
        first_slot: int | None = None,
    ) -> None:
        self.vm = vm
        self.gpa = gpa
        self.size = size
        self.file_offset = file_offset
        self.shared = SharedSide(gpa, size, backing)
        # Someone else's file is closed by them.
        self._owns_file = file is None
        self.file = file or vm.vm.create_guest_memfd(file_size or file_offset + size)
        pages, rest = divmod(size // PAGE, slots)
        self.slots: list[Slot] = []
        at = 0
        for index in range(slots):
            length = (pages + (index < rest)) * PAGE
            number = vm.new_slot() if first_slot is None else first_slot + index
            self.slots.append(
                Slot(number, gpa + at, length, self.shared.address + at, file_offset + at)
            )
            at += length
        self.create()

    def create(self) -> None:
        """Make the slots; after :meth:`delete` they are made again."""
        for slot in self.slots:
            self.vm.vm.set_user_memory_region2(
                slot.number,
                slot.gpa,
                slot.size,
                slot.address,
                lib.KVM_MEM_GUEST_MEMFD,
                self.file.fileno(),
                slot.file_offset,
            )

    def delete(self) -> None:
        for slot in self.slots:
            self.vm.vm.set_user_memory_region2(
                slot.number, slot.gpa, 0, slot.address, lib.KVM_MEM_GUEST_MEMFD
            )

    # ---- the steps of a conversion ----

    def set_private(self, offset: int, size: int) -> None:
        """Only the attribute."""
        self.vm.vm.set_memory_attributes(self.gpa + offset, size, ATTRIBUTE)

    def set_shared(self, offset: int, size: int) -> None:
        """Only the attribute."""
        self.vm.vm.set_memory_attributes(self.gpa + offset, size, 0)

    def allocate(self, offset: int, size: int) -> None:
        self.file.allocate(self.file_offset + offset, size)

    def punch(self, offset: int, size: int) -> None:
        self.file.punch(self.file_offset + offset, size)

    # ---- whole conversions, the stale side given back ----

    def to_private(self, offset: int, size: int) -> None:
        self.set_private(offset, size)
        self.shared.discard(offset, size)

    def to_shared(self, offset: int, size: int) -> None:
        self.set_shared(offset, size)
        self.punch(offset, size)

    # ---- what the host writes and sees ----

    def fill(self, offset: int, size: int, tag: int) -> None:
        self.shared.fill(self.gpa, offset, size, tag)

    def expect_host(self, offset: int, size: int, tag: int, what: str) -> None:
        self.shared.expect_filled(self.gpa, offset, size, tag, what)

    # ---- what the guest does ----

    def guest_fill(self, offset: int, size: int, tag: int, cpu: int = 0) -> None:
        self.vm.cpus[cpu].fill(self.gpa + offset, size, tag, STRIDE)

    def expect_guest(self, offset: int, size: int, tag: int, what: str, cpu: int = 0) -> None:
        self.vm.cpus[cpu].expect_filled(self.gpa + offset, size, tag, what, STRIDE)

    def expect_guest_zero(self, offset: int, size: int, what: str, cpu: int = 0) -> None:
        self.vm.cpus[cpu].expect_zero(self.gpa + offset, size, what, STRIDE)

    def close(self) -> None:
        if self._owns_file:
            self.file.close()
        self.shared.close()


def touch(address: int, write: bool = False) -> int:
    """Touch a byte in a child process: 0, or the number of the signal that ended the child."""

    def touch_it() -> int:
        byte = ffi.cast("volatile char *", address)
        if write:
            byte[0] = b"x"
        else:
            _ = byte[0]
        return 0

    return -child.run(touch_it)


def create_file(vm: GuestVm, size: int, flags: int = 0) -> GuestMemfd:
    """A guest_memfd; :class:`Missing` where the VM cannot have one of these flags."""
    try:
        return vm.vm.create_guest_memfd(size, flags)
    except KvmError as error:
        raise Missing(f"guest_memfd with flags {flags:#x}: {error.strerror}") from None
