"""Guest page tables of every kind, in whatever pages a case wants them in.

Intel SDM, volume 3: 4.3 (32-bit paging), 4.4 (PAE), 4.5 (4-level). All addresses are below 4 GiB,
so that the lower half of an entry is all that ever changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.guest.long_mode import set_long_mode
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.validate.kit.case import PAGE

# Present, writable, user, accessed, dirty; and bit 7, which makes a large page.
_FLAGS, _LARGE = 0x67, 0x80
_PRESENT = 1
_PROTECTED, _PAGING = 0x11, 1 << 31  # CR0
_PSE, _PAE = 0x10, 0x20  # CR4
_CODE, _DATA = 0x08, 0x10


@dataclass(frozen=True, slots=True)
class Mode:
    """One kind of paging: bytes of an entry, levels, and bits of an address that each has."""

    name: str
    entry: int
    levels: int
    bits: int

    @property
    def large(self) -> int:
        """Bytes of a large page: 4 or 2 MiB."""
        return PAGE << self.bits

    def shift(self, level: int) -> int:
        """The first bit of an address that chooses the entry of a table at this level (1: leaf)."""
        return 12 + (level - 1) * self.bits

    @property
    def converted_levels(self) -> range:
        """Levels whose tables are read at each walk; PAE's topmost is in registers."""
        return range(1, 3 if self.name == "pae" else self.levels + 1)


MODES = {
    each.name: each for each in (Mode("32", 4, 2, 10), Mode("pae", 8, 3, 9), Mode("64", 8, 4, 9))
}


class PageTables:
    """Tables for the addresses below 1 GiB, one page for each level from the topmost at ``gpa`` on.

    ``write`` puts one entry (GPA, value, bytes) into memory. The first MiB is mapped to itself by
    a large page, so that routines and mailboxes are where they always are.
    """

    #: Where the pages of :meth:`map` and the large pages of :meth:`map_large` begin.
    LINEAR, LARGE = 12 << 20, 16 << 20

    def __init__(self, mode: Mode, gpa: int, write: Callable[[int, int, int], object]) -> None:
        self.mode, self.gpa, self._write = mode, gpa, write
        self.entries: dict[int, int] = {}  # by their GPA, as they were written

    @property
    def size(self) -> int:
        return self.mode.levels * PAGE

    def table(self, level: int) -> int:
        """The GPA of the table at a level, 1 for the leaf."""
        return self.gpa + (self.mode.levels - level) * PAGE

    def link(self) -> None:
        """Make the tables, but for what :meth:`map` and :meth:`map_large` add."""
        for level in range(self.mode.levels, 1, -1):
            flags = _PRESENT if self.mode.name == "pae" and level == 3 else _FLAGS
            self._put(self.entry(self.LINEAR, level), self.table(level - 1) | flags)
        self._put(self.entry(0, 2), _FLAGS | _LARGE)

    def entry(self, linear: int, level: int = 1) -> int:
        """The GPA of the entry for an address at a level."""
        number = linear >> self.mode.shift(level) & (PAGE // self.mode.entry - 1)
        return self.table(level) + number * self.mode.entry

    def map(self, index: int, gpa: int) -> int:
        """Map the page number ``index`` of LINEAR to ``gpa``; returns its address."""
        linear = self.LINEAR + index * PAGE
        self._put(self.entry(linear), leaf(gpa))
        return linear

    def map_large(self, gpa: int, index: int = 0) -> int:
        """Map the large page number ``index`` from LARGE on to ``gpa``; returns its address."""
        linear = self.LARGE + index * self.mode.large
        self._put(self.entry(linear, 2), gpa | _FLAGS | _LARGE)
        return linear

    def _put(self, gpa: int, value: int) -> None:
        self.entries[gpa] = value
        self._write(gpa, value, self.mode.entry)

    def write_again(self) -> None:
        """All entries, after their pages were zeroed."""
        for gpa, value in self.entries.items():
            self._write(gpa, value, self.mode.entry)

    def enter(self, vcpu: Vcpu) -> None:
        """Let a vCPU use them."""
        if self.mode.name == "64":
            set_long_mode(vcpu, self.gpa)
            return
        set_protected(vcpu, cr3=self.gpa, cr4=_PAE if self.mode.name == "pae" else _PSE)


class Unpaged:
    """Protected mode without paging."""

    def enter(self, vcpu: Vcpu) -> None:
        set_protected(vcpu)


def leaf(gpa: int) -> int:
    """The entry that maps a 4 KiB page."""
    return gpa | _FLAGS


def set_protected(vcpu: Vcpu, cr3: int = 0, cr4: int = 0) -> None:
    """Flat 32-bit segments; paging by the tables at ``cr3`` unless that is 0."""
    sregs = vcpu.get_sregs()
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, _DATA
        segment.type, segment.s, segment.present, segment.dpl = 3, 1, 1, 0
        segment.db, segment.l, segment.g = 1, 0, 1
    sregs.cs.selector, sregs.cs.type = _CODE, 11
    sregs.cr3, sregs.cr4, sregs.efer = cr3, cr4, 0
    sregs.cr0 = _PROTECTED | (_PAGING if cr3 else 0)
    vcpu.set_sregs(sregs)
