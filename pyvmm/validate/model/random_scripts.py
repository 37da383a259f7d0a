"""Scripts of random steps: some at random, some that tell a story of a few pages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.model.script import STEPS, TAG_BITS, Layout, Rules, Step, bounds_of

# How often a step comes, once if it is not here.
_WEIGHTS = {
    "to_private": 4,
    "to_shared": 3,
    "guest_fill": 4,
    "guest_read": 2,
    "guest_write": 2,
    "punch": 2,
    "look": 5,
    "create_slot": 2,
    "hypercall": 2,
    "watch": 3,
}
_OFFSETS = (0, 8, 4088, 4095, 4093, 4094, 4092, 2047, 1, 1024)
_COUNTS = (1, 2, 3, 5, 8, 13, 511, 512, 513)
_ALL = (1 << 64) - 1
_GROUPS, _LONGEST = (6, 12), 12  # groups of steps: how many, and the steps of one
_MANY = 1 << 12
# Arguments of hypercalls that a VMM must refuse, or KVM itself.
_HOSTILE_GPAS = (1, PAGE - 1, 1 << 52, 0x1_2345_6789_A000, _ALL, _ALL - PAGE + 1, 1 << 63, 0)
_HOSTILE_COUNTS = (0, 1 << 32, (1 << 32) + 1, 1 << 52, (1 << 52) - 1, _ALL, _ALL - 1)
_HOSTILE_ATTRIBUTES = (0x1F, 0x20, 0xFFFF_FFFF, (1 << 32) + 0x10, (1 << 63) + 0x10, _ALL)


class RandomScripts:
    """Makes scripts of a layout; ``names`` are the steps that may come."""

    def __init__(
        self, layout: Layout, rules: Rules, names: list[str], random: random.Random
    ) -> None:
        self.layout, self.rules, self.names = layout, rules, names
        self._random = random
        self._weighted = [name for name in names for _ in range(_WEIGHTS.get(name, 1))]
        self._pages = _pages(layout)
        views = range(rules.views)
        self._preferred: dict[str, Sequence[int]] = {
            "page": self._pages,
            "guest_page": [page + view * layout.pages for view in views for page in self._pages],
            "offset": _OFFSETS,
            "copy_count": _COUNTS[:3],
        }
        usual = ("to_private", "to_shared", "punch", "discard", "delete_slot", "create_slot")
        changes = [*usual, *usual[:4], "punch", "new_file", "hypercall"]
        self._changes = [name for name in changes if name in names]

    def script(self) -> list[Step]:
        steps: list[Step] = []
        for _ in range(self._random.randint(*_GROUPS)):
            if self.below(3):
                steps += self.story()
            else:
                steps += [self.step() for _ in range(self.below(_LONGEST + 1))]
        return steps

    def below(self, count: int) -> int:
        """One of ``count`` numbers; of very many, small ones are as likely as large ones."""
        if count > _MANY:
            count = min(count, 1 << self.below(count.bit_length()))
        return self._random.randrange(count)

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]

    def step(self) -> Step:
        name = self.one_of(self._weighted)
        if name == "hypercall":
            page = self.one_of(self._pages)
            count = self.number("count", range(1, self.layout.pages - page + 1))
            return (name, *self.hypercall(page, count))
        numbers: list[int] = []
        for kind in STEPS[name]:
            bounds = bounds_of(kind, numbers, self.layout, self.rules)
            numbers.append(self.number(kind, bounds))
        return (name, *numbers)

    def number(self, kind: str, bounds: range | tuple[int, ...]) -> int:
        if kind in ("tag", "value"):
            return self.below(1 << (TAG_BITS if kind == "tag" else 64))
        if kind in ("count", "guest_count", "file_count"):
            longest = len(bounds)
            usual = [each for each in _COUNTS if each < longest]
            return int(self.one_of([*usual, longest]))
        if kind in self._preferred:
            inside = [each for each in self._preferred[kind] if each in bounds]
            return int(self.one_of(inside))
        return int(self.one_of(bounds))

    def hypercall(self, page: int, count: int) -> tuple[int, ...]:
        cpu = self.one_of(range(self.layout.cpus))
        given = [self.layout.gpa + page * PAGE, count, self.one_of((0x10, 0))]
        hostile = self.one_of((-1, -1, -1, 0, 1, 1, 2))
        if hostile >= 0:
            hostiles = (_HOSTILE_GPAS, _HOSTILE_COUNTS, _HOSTILE_ATTRIBUTES)
            given[hostile] = self.one_of(hostiles[hostile])
        return (cpu, *given)

    def change(self, first: int, count: int) -> list[Step]:
        """What may happen to a range of pages: to a part of it, or to its slot or file."""
        layout = self.layout
        start = first + self.below(count)
        part = 1 + self.below(first + count - start)
        slot = layout.slot_of(first)
        back: Step = ("create_slot", slot, 0, layout.file_offset + layout.slot_pages(slot).start)
        match name := self.one_of(self._changes):
            case "punch":
                return [(name, 0, layout.file_offset + start, part)]
            case "hypercall":
                return [(name, *self.hypercall(start, part))]
            case "create_slot":
                return [(name, slot, 0, self.below(layout.file_pages))]
            case "delete_slot":
                return [(name, slot), ("look", 0), back]
            case "new_file":
                return [(name, 0), ("look", 0), back]
        return [(name, start, part)]

    def story(self) -> list[Step]:
        """Pages of one state are written to, something happens to them, and they are read."""
        layout, names = self.layout, self.names
        first = self.one_of(self._pages)
        count = self.number("count", range(1, layout.pages - first + 1))
        private = self.below(3) > 0
        states = [("to_private" if private else "to_shared", first, count)]
        view = first + layout.pages * (self.rules.views - 1) * (not private)
        cpu = self.one_of(range(layout.cpus))
        fill = ("guest_fill", cpu, view, count, 1 + self.below((1 << TAG_BITS) - 1))
        watch = [("watch", view)] if "watch" in names and self.below(4) == 3 else []
        change = self.change(first, count)
        after = [*change, ("look", self.one_of(range(layout.cpus)))]
        steps = [*(states if states[0][0] in names else []), fill, *watch, *after]
        # Each can be left out, so that a failure shrinks to those that it needs.
        return [step for step in steps if self.below(16)]


def _pages(layout: Layout) -> list[int]:
    """All pages of a small memory; of a large one those around slots' and blocks' ends."""
    if layout.pages <= 64:
        return list(range(layout.pages))
    ends = {0, layout.pages}
    ends.update(layout.slot_pages(slot).start for slot in range(layout.slots))
    first = -(layout.gpa // PAGE) % 512
    ends.update(range(first, layout.pages, 512))
    near = {end + step for end in ends for step in (-2, -1, 0, 1, 7)}
    near.update(range(100, layout.pages, 201))
    return sorted(page for page in near if 0 <= page < layout.pages)
