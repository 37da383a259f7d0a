"""Take a script's steps on the model and on KVM, and compare what the two say."""

from __future__ import annotations

import errno
from collections.abc import Callable

from pyvmm.errors import KvmError
from pyvmm.kvm.uapi import reason_name
from pyvmm.native import lib
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed, errno_name, words
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.abis import ABIS
from pyvmm.validate.model.script import TAG_BITS, Rules, Script, Step
from pyvmm.validate.model.state import MMIO, UNKNOWN, AccessExit, Place, State
from pyvmm.validate.model.system import LOOK_PAGES, System

_ALL = (1 << 64) - 1
_WINDOW = 64  # so many pages are looked at around what changed, where memory is large
_GUEST_SHIFT = 64 - TAG_BITS


def play(script: Script, tools: Toolbox) -> None:
    """Take all steps. Raises :class:`CheckFailed` where the model and KVM differ.

    The message is the same whatever the numbers are; the detail has the step and them.
    """
    rules, state, system = ABIS[script.abi]
    Play(rules, state(script.layout), system(tools, script.layout)).all(script.steps)


class StepFailed(CheckFailed):
    """``steps`` were taken, the one that failed among them."""

    def __init__(self, message: str, detail: str, steps: int) -> None:
        super().__init__(message, detail)
        self.steps = steps


class Play:
    def __init__(self, rules: Rules, state: State, system: System) -> None:
        self.state = state
        self.system = system
        self.views = rules.views
        self.pages = state.layout.pages
        self.watched: int | None = None
        # The names are those of STEPS.
        self.steps: dict[str, Callable[..., None]] = {
            "to_private": self._to_private,
            "to_shared": self._to_shared,
            "guest_read": self._guest_read,
            "guest_write": self._guest_write,
            "guest_add": self._guest_add,
            "guest_fill": self._guest_fill,
            "guest_copy": self._guest_copy,
            "host_read": self._host_read,
            "host_write": self._host_write,
            "host_fill": self._host_fill,
            "discard": self._discard,
            "punch": self._punch,
            "allocate": self._allocate,
            "delete_slot": self._delete_slot,
            "create_slot": self._create_slot,
            "close_file": self._close_file,
            "new_file": self._new_file,
            "hypercall": self._hypercall,
            "watch": self._watch,
            "unwatch": self._unwatch,
            "look": self._look,
        }

    def all(self, steps: tuple[Step, ...]) -> None:
        for number, step in enumerate(steps, 1):
            self._take(f"step {number} {list(step)}", number, self.step, step)
        self._take("at the end", len(steps), self.end)

    def _take(self, where: str, number: int, take: Callable[..., None], *arguments: Step) -> None:
        try:
            take(*arguments)
        except CheckFailed as error:
            detail = f"{where}: {error.detail}" if error.detail else where
            raise StepFailed(str(error), detail, number) from None
        except KvmError as error:
            message = (
                f"a call that must succeed failed: {error.call}, {errno_name(error.errno or 0)}"
            )
            raise StepFailed(message, f"{where}: {error}", number) from None

    def step(self, step: Step) -> None:
        self.steps[step[0]](*step[1:])
        self._expect_watched(step[0])

    def end(self) -> None:
        """Whatever the steps left must be right, in every byte."""
        self._unwatch()
        self._look(0)
        self._look_at(0, range(self.state.layout.pages * self.views))

    # ---- conversions ----

    def _to_private(self, page: int, count: int) -> None:
        self._convert(page, count, True)

    def _to_shared(self, page: int, count: int) -> None:
        self._convert(page, count, False)

    def _convert(self, page: int, count: int, private: bool) -> None:
        self.state.convert(page, count, private)
        self.system.convert(page, count, private)

    # ---- the guest's accesses ----

    def _places(self, page: int, offset: int, width: int) -> list[tuple[Place, int, int]] | None:
        """The pieces of an access as (place, offset, bytes); None if one of them is no memory."""
        first = min(width, PAGE - offset)
        pieces = []
        for each, at, size in ((page, offset, first), (page + 1, 0, width - first)):
            if not size:
                continue
            place = self.state.place(each)
            if not isinstance(place, Place):
                return None
            pieces.append((place, at, size))
        return pieces

    def _held(self, pieces: list[tuple[Place, int, int]]) -> int:
        data = b"".join(self.state.read(*piece) for piece in pieces)
        return int.from_bytes(data, "little")

    def _write(self, pieces: list[tuple[Place, int, int]], value: int, width: int) -> None:
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        for place, offset, size in pieces:
            self.state.write(place, offset, data[:size])
            data = data[size:]

    def _guest_read(self, cpu: int, page: int, offset: int, width: int) -> None:
        pieces = self._places(page, offset, width)
        if pieces is None:
            if offset + width <= PAGE and self.state.place(page) != UNKNOWN:
                seen = self.system.guest_read(cpu, page, offset, width)
                self._expect_exit(seen, page, offset, width, None)
                if self._implicit(page):
                    self._guest_read(cpu, page, offset, width)
            return
        seen = self.system.guest_read(cpu, page, offset, width)
        self._expect_value(seen, self._held(pieces), page, offset, "a guest reads")

    def _guest_write(self, cpu: int, page: int, offset: int, width: int, value: int) -> None:
        pieces = self._places(page, offset, width)
        if pieces is None:
            if offset + width <= PAGE and self.state.place(page) != UNKNOWN:
                seen = self.system.guest_write(cpu, page, offset, width, value)
                self._expect_exit(seen, page, offset, width, value)
                if self._implicit(page):
                    self._guest_write(cpu, page, offset, width, value)
            return
        seen = self.system.guest_write(cpu, page, offset, width, value)
        if isinstance(seen, AccessExit):
            raise CheckFailed(
                f"a guest's write to a {self._kind(page)} page got {_reason(seen)}", _exit(seen)
            )
        self._write(pieces, value, width)

    def _implicit(self, page: int) -> bool:
        """Convert as the exit asks, where it does; the access can then be repeated."""
        if self.state.place(page) != lib.KVM_EXIT_MEMORY_ERROR:
            return False
        self._convert(page % self.pages, 1, page < self.pages)
        return True

    def _guest_add(self, cpu: int, page: int, offset: int, width: int, value: int) -> None:
        # Never across a cache line: many hosts forbid split locks.
        offset &= -width
        pieces = self._places(page, offset, width)
        if pieces is None:
            return
        before = self._held(pieces)
        seen = self.system.guest_add(cpu, page, offset, width, value)
        self._expect_value(seen, before, page, offset, "a locked addition reads")
        self._write(pieces, before + value, width)

    def _guest_fill(self, cpu: int, page: int, count: int, tag: int) -> None:
        """Runs of pages that are memory; the others are passed over."""
        for run in self._runs(page, count):
            value = tag << _GUEST_SHIFT
            self.system.guest_fill(cpu, run.start, len(run), value)
            for each in run:
                place = self.state.place(each)
                assert isinstance(place, Place)
                self.state.fill(place, self.state.gpa(each), value)

    def _guest_copy(self, cpu: int, source: int, target: int, count: int) -> None:
        if source == target:
            return
        for start in (source, target):
            if [range(start, start + count)] != list(self._runs(start, count)):
                return
        self.system.guest_copy(cpu, source, target, count)
        # Overlapping or not: rep movsq goes upwards, and so does this.
        for index in range(count):
            places = [self.state.place(start + index) for start in (source, target)]
            assert isinstance(places[0], Place) and isinstance(places[1], Place)
            self.state.copy(places[0], places[1])

    def _runs(self, page: int, count: int) -> list[range]:
        """The pages of a range that are memory, as ranges inside one view."""
        runs: list[range] = []
        for each in range(page, page + count):
            if not isinstance(self.state.place(each), Place):
                continue
            if runs and runs[-1].stop == each and each % self.pages:
                runs[-1] = range(runs[-1].start, each + 1)
            else:
                runs.append(range(each, each + 1))
        return runs

    # ---- the host's accesses ----

    def _host_read(self, page: int, offset: int, width: int) -> None:
        width = min(width, PAGE - offset)
        if (place := self.state.host_place(page)) is None:
            self.system.expect_no_host(page)
            return
        seen = int.from_bytes(self.system.host_read(page, offset, width), "little")
        expected = self._held([(place, offset, width)])
        self._expect_value(seen, expected, page, offset, "the host reads")

    def _host_write(self, page: int, offset: int, width: int, value: int) -> None:
        width = min(width, PAGE - offset)
        if (place := self.state.host_place(page)) is None:
            self.system.expect_no_host(page)
            return
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        self.system.host_write(page, offset, data)
        self.state.write(place, offset, data)

    def _host_fill(self, page: int, count: int, tag: int) -> None:
        for each in range(page, page + count):
            if (place := self.state.host_place(each)) is None:
                self.system.expect_no_host(each)
            else:
                self.state.fill(place, self.state.gpa(each), tag << _GUEST_SHIFT)
                self.system.host_write(each, 0, self.state.read(place, 0, PAGE))

    # ---- files, slots ----

    def _discard(self, page: int, count: int) -> None:
        self.state.discard(page, count)
        self.system.discard(page, count)

    def _punch(self, file: int, page: int, count: int) -> None:
        self.state.punch(file, page, count)
        self.system.punch(file, page, count)

    def _allocate(self, file: int, page: int, count: int) -> None:
        self.state.allocate(file, page, count)
        self.system.allocate(file, page, count)

    def _delete_slot(self, slot: int) -> None:
        if self.state.slots[slot] is not None:
            self.state.delete_slot(slot)
            self.system.delete_slot(slot)

    def _create_slot(self, slot: int, file: int, page: int) -> None:
        self._delete_slot(slot)
        expected = self.state.create_slot(slot, file, page)
        seen = self.system.create_slot(slot, file, page)
        if seen not in (expected.errnos or (0,)):
            wanted = " or ".join(map(errno_name, expected.errnos)) or "success"
            raise CheckFailed(f"creating a memslot: {errno_name(seen)}, expected {wanted}")
        if not seen:
            self._forget_mmio(slot)

    def _forget_mmio(self, slot: int) -> None:
        """A shared access to each page that KVM may take for MMIO still."""
        pages = self.state.layout.slot_pages(slot)
        for page in sorted(self.state.mmio):
            if page % self.pages not in pages:
                continue
            was_unknown = self.state.place(page) == UNKNOWN
            if was_unknown:
                self.system.convert(page, 1, False)
            self.system.guest_read(0, page, 0, 1)
            if was_unknown:
                self.system.convert(page, 1, True)
            self.state.mmio.discard(page)

    def _close_file(self, file: int) -> None:
        self.state.close_file(file)
        self.system.close_file(file)

    def _new_file(self, file: int) -> None:
        self.state.new_file(file)
        self.system.new_file(file)

    # ---- hypercalls ----

    def _hypercall(self, cpu: int, gpa: int, pages: int, attributes: int) -> None:
        """As a VMM does it: convert what is whole memory, refuse everything else."""
        given = (gpa, pages, attributes)
        seen = self.system.hypercall(cpu, given)
        first = gpa // PAGE
        if gpa % PAGE or not pages or (first + pages) & _ALL <= first:
            if seen != -errno.EINVAL & _ALL:
                raise CheckFailed("a hypercall that KVM must refuse is not", str(seen))
            return
        if isinstance(seen, int):
            raise CheckFailed("KVM answers a hypercall that is userspace's", words(seen))
        if seen != given:
            raise CheckFailed(
                "a hypercall's arguments are not those that the guest gave",
                f"seen {_hexes(seen)}, expected {_hexes(given)}",
            )
        answer = -errno.EINVAL & _ALL
        start = (gpa - self.state.layout.gpa) // PAGE
        if 0 <= start < self.pages and start + pages <= self.pages and not attributes & ~0x1F:
            self._convert(start, pages, bool(attributes & 0x10))
            answer = 0
        after = self.system.answer_hypercall(cpu, answer)
        if after != (answer, *given):
            raise CheckFailed(
                "registers after a hypercall are not as they must be",
                f"seen {_hexes(after)}, expected {_hexes((answer, *given))}",
            )

    # ---- a vCPU that stays inside the guest ----

    def _watch(self, page: int) -> None:
        self._unwatch()
        if isinstance(self.state.place(page), Place):
            self.system.watch(page)
            self.watched = page

    def _unwatch(self) -> None:
        self.system.unwatch()
        self.watched = None

    def _expect_watched(self, step: str) -> None:
        page = self.watched
        if page is None:
            return
        seen = self.system.watched()
        place = self.state.place(page)
        if place == UNKNOWN:
            self._unwatch()
            return
        if step == "create_slot" and seen == AccessExit(0, MMIO, 0, self.state.gpa(page), 8):
            # There was no slot for a moment.
            self._unwatch()
            self.state.mmio.add(page)
            if self.state.has_slot(page):
                self._forget_mmio(self.state.layout.slot_of(page % self.pages))
                self._watch(page)
            return
        if not isinstance(place, Place):
            self._expect_end_of_watch(seen, page)
            return
        if isinstance(seen, AccessExit):
            # It lost a race with the step; the exit shows what was before it.
            self._expect_lost_race(seen, page)
            self._watch(page)
            seen = self.system.watched()
        expected = self._held([(place, 0, 8)])
        self._expect_value(seen, expected, page, 0, "a vCPU that stayed inside the guest reads")

    def _expect_end_of_watch(self, seen: int | AccessExit, page: int) -> None:
        if not isinstance(seen, AccessExit):
            raise CheckFailed(
                "a vCPU that stayed inside the guest goes on to use a page that is gone",
                f"GPA {self.state.gpa(page):#x}",
            )
        self._unwatch()
        if seen.reason == lib.KVM_EXIT_MEMORY_FAULT:
            # It may show what was before the step; the next one may not.
            self._expect_lost_race(seen, page)
            self._expect_missing(0, page)
        else:
            self._expect_exit(seen, page, 0, 8, None)

    def _expect_lost_race(self, seen: AccessExit, page: int) -> None:
        flags = (0, int(lib.KVM_MEMORY_EXIT_FLAG_PRIVATE))
        wanted = self.state.access_exit(page, int(lib.KVM_EXIT_MEMORY_FAULT))
        if seen._replace(flags=wanted.flags) != wanted or seen.flags not in flags:
            raise CheckFailed("the exit of a vCPU that lost a race is wrong", _exit(seen))

    # ---- looking ----

    def _look(self, cpu: int) -> None:
        # Before anything else faults: it could be given the page that a stale mapping shows.
        for changed in self.state.changed:
            for page in range(changed, self.pages * self.views, self.pages):
                if isinstance(self.state.place(page), Place):
                    self._look_at(cpu, range(page, page + 1))
                else:
                    self._expect_missing(cpu, page)
        around = range(self.pages)
        if self.pages > _WINDOW:
            middle = self.state.changed[0] if self.state.changed else 0
            start = max(0, min(middle - _WINDOW // 2, self.pages - _WINDOW))
            around = range(start, start + _WINDOW)
        for view in range(self.views):
            first = view * self.pages + around.start
            self._look_at(cpu, range(first, first + len(around)))

    def _expect_missing(self, cpu: int, page: int) -> None:
        if self.state.place(page) != UNKNOWN:
            self._expect_exit(self.system.guest_read(cpu, page, 0, 8), page, 0, 8, None)

    def _look_at(self, cpu: int, pages: range) -> None:
        for run in self._runs(pages.start, len(pages)):
            for start in range(run.start, run.stop, LOOK_PAGES):
                count = min(LOOK_PAGES, run.stop - start)
                self._compare(start, count, self.system.look(cpu, start, count))

    def _compare(self, page: int, count: int, seen: bytes) -> None:
        places = [self.state.place(each) for each in range(page, page + count)]
        pieces = [self.state.read(each, 0, PAGE) for each in places if isinstance(each, Place)]
        expected = b"".join(pieces)
        if seen == expected:
            return
        at = next(at for at in range(0, len(seen), 8) if seen[at : at + 8] != expected[at : at + 8])
        self._expect_value(
            int.from_bytes(seen[at : at + 8], "little"),
            int.from_bytes(expected[at : at + 8], "little"),
            page + at // PAGE,
            at % PAGE,
            "a guest reads",
        )

    # ---- what is expected ----

    def _kind(self, page: int) -> str:
        place = self.state.place(page)
        if isinstance(place, Place):
            return "shared" if place == self.state.host_place(page) else "private"
        return "missing"

    def _expect_value(
        self, seen: int | AccessExit, expected: int, page: int, offset: int, who: str
    ) -> None:
        if seen == expected:
            return
        kind = self._kind(page)
        gpa = self.state.gpa(page) + offset
        if isinstance(seen, AccessExit):
            raise CheckFailed(f"{who} a {kind} page and gets {_reason(seen)}", _exit(seen))
        raise CheckFailed(
            f"{who} other contents in a {kind} page than it must",
            f"GPA {gpa:#x} (page {page}, offset {offset}): seen {words(seen)}, "
            f"expected {words(expected)}",
        )

    def _expect_exit(
        self, seen: int | AccessExit, page: int, offset: int, width: int, value: int | None
    ) -> None:
        """``value`` is what a write writes."""
        reason = self.state.place(page)
        assert not isinstance(reason, Place)
        if reason == MMIO:
            self.state.mmio.add(page)
            written = 0 if value is None else value & (1 << 8 * width) - 1
            gpa = self.state.gpa(page) + offset
            expected = AccessExit(0, MMIO, int(value is not None), gpa, width, written)
        else:
            expected = self.state.access_exit(page, reason)
        if seen == expected:
            return
        what = _reason(expected)
        if isinstance(seen, AccessExit):
            raise CheckFailed(
                f"an access that must give {what} gives {_reason(seen)} with other fields",
                f"seen {_exit(seen)}; expected {_exit(expected)}",
            )
        raise CheckFailed(
            f"an access that must give {what} reaches memory", f"GPA {self.state.gpa(page):#x}"
        )


def _reason(seen: AccessExit) -> str:
    return reason_name(seen.reason)


def _exit(seen: AccessExit) -> str:
    return (
        f"{_reason(seen)} ({errno_name(seen.errno)}), flags {seen.flags:#x}, GPA {seen.gpa:#x}, "
        f"size {seen.size}, value {seen.value:#x}"
    )


def _hexes(values: tuple[int, ...]) -> str:
    return ", ".join(f"{value:#x}" for value in values)
