"""The slot table: which memslot numbers and which GPA ranges are taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pyvmm.errors import ConfigurationError
from pyvmm.kvm.arguments import integer
from pyvmm.kvm.mapping import PAGE_SIZE


class GpaRange(NamedTuple):
    """``size`` bytes of guest physical memory from ``gpa``, and what they are."""

    gpa: int
    size: int
    name: str

    @property
    def end(self) -> int:
        return self.gpa + self.size

    def __str__(self) -> str:
        return f"{self.name} {self.gpa:#x}-{self.end - 1:#x}"


class SlotTable:
    """Hands out slot numbers and refuses ranges that overlap.

    ``limit`` is KVM_CAP_NR_MEMSLOTS of the VM; in ``taken`` no memory can be.
    """

    def __init__(self, limit: int, taken: Iterable[GpaRange] = ()) -> None:
        self.limit = limit
        self._next = 0
        self._ranges = list(taken)

    @property
    def free(self) -> int:
        """How many slot numbers are left."""
        return self.limit - self._next

    def claimed(self) -> tuple[int, int]:
        """How many slots and ranges are claimed, for :meth:`give_back`."""
        return self._next, len(self._ranges)

    def give_back(self, claimed: tuple[int, int]) -> None:
        """Undo every claim since :meth:`claimed` said this."""
        self._next, ranges = claimed
        del self._ranges[ranges:]

    def claim_range(self, name: str, gpa: int, size: int) -> GpaRange:
        """Take a GPA range for memory. Raises :class:`ConfigurationError` if it cannot be one."""
        try:
            is_good = gpa >= 0 and size > 0 and (gpa | size) % PAGE_SIZE == 0
        except TypeError:  # also of a float's |
            is_good = False
        if not is_good:
            raise ConfigurationError(
                f"{name} at {integer('GPA', gpa):#x}, {integer('size', size):#x} bytes",
                "it is empty or not aligned",
                f"use multiples of {PAGE_SIZE}",
            )
        return self._claim(name, gpa, size)

    def claim_addresses(self, name: str, gpa: int, size: int) -> GpaRange:
        """Take GPAs for whatever it is. Raises :class:`ConfigurationError` if they are taken."""
        if integer("GPA", gpa) < 0 or integer("size", size) <= 0:
            raise ConfigurationError(
                f"{name} at {gpa:#x}, {size:#x} bytes", "there is no address in it"
            )
        return self._claim(name, gpa, size)

    def _claim(self, name: str, gpa: int, size: int) -> GpaRange:
        wanted, end = GpaRange(gpa, size, name), gpa + size
        if end > 1 << 52:
            integer("GPA", gpa)  # what is too long to be shown is said by these
            integer("size", size)
            raise ConfigurationError(str(wanted), "no x86 CPU has addresses of more than 52 bits")
        for at, length, owner in self._ranges:
            if at < end and gpa < at + length:
                taken = GpaRange(at, length, owner)
                raise ConfigurationError(str(wanted), f"it overlaps {taken}", "move one of them")
        self._ranges.append(wanted)
        return wanted

    def claim_slots(self, count: int, claimed: GpaRange) -> int:
        """Take ``count`` slot numbers in a row for a range; returns the first."""
        if count > self.free:
            raise ConfigurationError(
                str(claimed),
                f"it needs {count} memslots and {self.free} are left",
                "use fewer regions",
            )
        first = self._next
        self._next += count
        return first
