"""The system calls of a conversion, as bare C makes them: the floor, and its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyvmm.errors import UnsupportedError
from pyvmm.kvm.mapping import PAGE_SIZE, PROT_NONE, PROT_READ_WRITE
from pyvmm.machine import Machine
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism, PageState


class Directions:
    """The system calls of both directions for ``pages`` from ``first``, as bare C makes them.

    ``early`` discards the stale side before the views are switched, which no backend does:
    what it would cost.
    """

    def __init__(self, machine: Machine, first: int, pages: int, *, early: bool = False) -> None:
        region = machine.memory.regions[0]
        self._machine = machine
        self._region = region
        self._offset, self._size = first * PAGE_SIZE, pages * PAGE_SIZE
        self._has_two_views = region.shared_gpa != region.gpa
        completes = machine.memory.mechanism in (Mechanism.PROT_NONE, Mechanism.SLOTS)
        self._kept: list[Any] = []
        self.to_private = self._direction(
            region.gpa,
            region.backing.private_host.pointer if completes else ffi.NULL,
            list(self._steps(PageState.PRIVATE)),
            early,
        )
        self.to_shared = self._direction(
            region.shared_gpa,
            region.backing.shared_host.pointer if completes else ffi.NULL,
            list(self._steps(PageState.SHARED)),
            early,
        )

    def _direction(self, gpa: int, host: Any, steps: list[dict[str, Any]], early: bool) -> Any:
        if early:  # allocate, discard, switch
            steps.sort(key=lambda each: _EARLY.index(each["part"]))
        array = ffi.new("struct bare_step[]", steps)
        direction = ffi.new("struct bare_direction *")
        direction.gpa, direction.size = gpa + self._offset, self._size
        direction.host = host if host == ffi.NULL else _at(host, self._offset)
        direction.steps, direction.step_count = array, len(steps)
        lib.record_clock_init(ffi.addressof(direction, "clock"))
        self._kept.append(array)
        return direction

    def start_over(self) -> None:
        """Forget what has been added up."""
        Sums(self.to_private)
        Sums(self.to_shared)

    def _steps(self, to: PageState) -> Iterator[dict[str, Any]]:
        """The order is that of csrc/backends/: what can fail comes before the discard."""
        backing = self._region.backing
        is_private = to is PageState.PRIVATE
        if backing.private_file is backing.shared_file:
            yield from self._in_place(to)
            return
        files = (backing.private_file, backing.shared_file)
        target, source = files if is_private else files[::-1]
        yield self._file_step(lib.BARE_ALLOCATE, lib.BARE_PART_ALLOCATE, target)
        yield from self._switch(to)
        yield self._file_step(lib.BARE_PUNCH, lib.BARE_PART_DISCARD, source)

    def _switch(self, to: PageState) -> Iterator[dict[str, Any]]:
        is_private = to is PageState.PRIVATE
        mechanism, backing = self._machine.memory.mechanism, self._region.backing
        if mechanism == Mechanism.PROT_NONE:
            hosts = (backing.private_host, backing.shared_host)
            shown, hidden = hosts if is_private else hosts[::-1]
            yield self._protect(shown, PROT_READ_WRITE)
            yield self._protect(hidden, PROT_NONE)
        elif mechanism == Mechanism.SLOTS:
            yield self._slot(lib.BARE_ADD_SLOT, to)
            yield self._slot(lib.BARE_DELETE_SLOT, PageState(1 - to))
        elif mechanism == Mechanism.ATTRIBUTES and not self._has_two_views:
            yield self._attributes(lib.KVM_MEMORY_ATTRIBUTE_PRIVATE if is_private else 0)
        elif mechanism == Mechanism.ATTRIBUTES and is_private:
            yield self._attributes(lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
            yield self._slot(lib.BARE_ADD_SLOT, PageState.PRIVATE)
        elif mechanism == Mechanism.ATTRIBUTES:
            yield self._slot(lib.BARE_DELETE_SLOT, PageState.PRIVATE)
            yield self._attributes(0)
        elif mechanism != Mechanism.PRESENCE:  # where a page's presence is its state
            raise UnsupportedError(
                f"bench conversions of {self._machine.memory.backend.name}",
                f"bare C does not know what {mechanism.name.lower()} switches",
            )

    def _in_place(self, to: PageState) -> Iterator[dict[str, Any]]:
        """One file has both halves: its ioctl, a slot in each view, and what was there is freed."""
        file, other = self._region.backing.private_file, PageState(1 - to)
        yield {
            "call": lib.BARE_FILE_ATTRIBUTES,
            "part": lib.BARE_PART_ATTRIBUTES,
            "fd": file.fileno(),
            "offset": self._offset,
            "size": self._size,
            "attributes": to is PageState.PRIVATE and lib.KVM_MEMORY_ATTRIBUTE_PRIVATE,
        }
        if self._has_two_views:
            yield self._slot_of_file(lib.BARE_DELETE_SLOT, other)
            yield self._slot_of_file(lib.BARE_DELETE_SLOT, to, nothing=True)
            yield self._slot_of_file(lib.BARE_ADD_SLOT, to)
            yield self._slot_of_file(lib.BARE_ADD_CLOSED_SLOT, other, nothing=True)
        yield self._file_step(lib.BARE_PUNCH, lib.BARE_PART_DISCARD, file)

    def _slot_of_file(self, call: int, view: PageState, nothing: bool = False) -> dict[str, Any]:
        """A slot of a view: of the file, or of a file that is closed, without memory."""
        region, raw = self._region, self._machine.memory.raw.regions[0]
        is_private = view is PageState.PRIVATE
        window = raw.private_window if is_private else raw.shared_window
        if nothing:
            window = raw.private_nothing if is_private else raw.shared_nothing
        page = self._offset // PAGE_SIZE
        own = window.slot_of_page[page]
        # A page that has no slot now gets a number from the end, which nobody else takes.
        most = self._machine.vm.check_extension(lib.KVM_CAP_NR_MEMSLOTS)
        free = most - 1 - page - nothing * (region.size // PAGE_SIZE)
        host = region.backing.private_host if nothing else region.backing.shared_host
        return {
            "call": call,
            "part": lib.BARE_PART_SWITCH,
            "fd": self._machine.vm.fileno(),
            "slot": free if own == 0xFFFFFFFF else window.slot_base + own,
            "gpa": (region.gpa if is_private else region.shared_gpa) + self._offset,
            "offset": self._offset,
            "size": self._size,
            "host": _at(host.pointer, self._offset),
            "guest_memfd": region.backing.private_file.fileno(),
        }

    def _file_step(self, call: int, part: int, file: Any) -> dict[str, Any]:
        where = {"offset": self._offset, "size": self._size}
        return {"call": call, "part": part, "fd": file.fileno(), **where}

    def _protect(self, host: Any, protection: int) -> dict[str, Any]:
        return {
            "call": lib.BARE_PROTECT,
            "part": lib.BARE_PART_SWITCH,
            "host": _at(host.pointer, self._offset),
            "size": self._size,
            "protection": protection,
        }

    def _attributes(self, attributes: int) -> dict[str, Any]:
        return {
            "call": lib.BARE_ATTRIBUTES,
            "part": lib.BARE_PART_ATTRIBUTES,
            "fd": self._machine.vm.fileno(),
            "gpa": self._region.shared_gpa + self._offset,
            "size": self._size,
            "attributes": attributes,
        }

    def _slot(self, call: int, side: PageState) -> dict[str, Any]:
        region, backing = self._region, self._region.backing
        is_private = side is PageState.PRIVATE
        raw = self._machine.memory.raw.regions[0]
        window = raw.private_window if is_private else raw.shared_window
        page = self._offset // PAGE_SIZE
        own = window.slot_of_page[page]
        # A page that has no slot now gets a number from the end, which nobody else takes.
        most = self._machine.vm.check_extension(lib.KVM_CAP_NR_MEMSLOTS)
        host = backing.private_host if is_private else backing.shared_host
        uses_file = is_private and self._machine.memory.mechanism == Mechanism.ATTRIBUTES
        return {
            "call": call,
            "part": lib.BARE_PART_SWITCH,
            "fd": self._machine.vm.fileno(),
            "slot": most - 1 - page if own == 0xFFFFFFFF else window.slot_base + own,
            "gpa": (region.gpa if is_private else region.shared_gpa) + self._offset,
            "offset": self._offset,
            "size": self._size,
            "host": _at(host.pointer, self._offset),
            "guest_memfd": backing.private_file.fileno() if uses_file else -1,
        }


PARTS = {
    lib.BARE_PART_ALLOCATE: "allocate",
    lib.BARE_PART_ATTRIBUTES: "attributes",
    lib.BARE_PART_SWITCH: "switch",
    lib.BARE_PART_DISCARD: "discard",
}


class Sums:
    """What a ``struct bare_direction`` has added up, for one conversion; starts over."""

    def __init__(self, direction: Any) -> None:
        count = direction.conversions or 1
        self.whole = direction.whole_ns / count
        taken = {direction.steps[at].part for at in range(direction.step_count)}
        self.parts = {
            name: direction.parts_ns[part] / count for part, name in PARTS.items() if part in taken
        }
        direction.conversions = direction.whole_ns = 0
        for at in range(lib.BARE_PARTS):
            direction.parts_ns[at] = 0


_EARLY = (
    lib.BARE_PART_ALLOCATE,
    lib.BARE_PART_DISCARD,
    lib.BARE_PART_ATTRIBUTES,
    lib.BARE_PART_SWITCH,
)


def _at(pointer: Any, offset: int) -> Any:
    return ffi.cast("char *", pointer) + offset
