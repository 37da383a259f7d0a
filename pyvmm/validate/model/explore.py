"""Hypothesis makes scripts of an ABI; one that fails is shrunk to the steps that it needs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pyvmm.errors import PyvmmError
from pyvmm.native import lib
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed, Missing
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.play import play, rules_of
from pyvmm.validate.model.script import (
    NEEDS_OF_STEPS,
    STEPS,
    TAG_BITS,
    Layout,
    Rules,
    Script,
    Step,
    bounds_of,
    problem_with,
    to_text,
)
from pyvmm.validate.model.shrink import shrink

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
_CHANCES = 3  # of a shorter script to fail too, where a vCPU runs beside its steps
_GROUPS = 6  # of steps, at least; they may be empty
# Arguments of hypercalls that a VMM must refuse, or KVM itself.
_HOSTILE_GPAS = (1, PAGE - 1, 1 << 52, 0x1_2345_6789_A000, _ALL, _ALL - PAGE + 1, 1 << 63, 0)
_HOSTILE_COUNTS = (0, 1 << 32, (1 << 32) + 1, 1 << 52, (1 << 52) - 1, _ALL, _ALL - 1)
_HOSTILE_ATTRIBUTES = (0x1F, 0x20, 0xFFFF_FFFF, (1 << 32) + 0x10, (1 << 63) + 0x10, _ALL)


class Found(NamedTuple):
    script: Script
    failure: CheckFailed


class _Enough(BaseException):
    """Ends Hypothesis at once."""


def explore(
    abi: str,
    layout: Layout,
    *,
    seed: int,
    examples: int,
    running: Path,
    seconds: float,
    shrink_seconds: float,
    watch: bool = True,
    player: Callable[[Script, Toolbox], None] = play,
    raced: Callable[[int], None] = lambda races: None,
) -> Found | None:
    """Play random scripts; one that fails, shrunk, or None.

    Deterministic: the same ``seed`` makes the same scripts, unless ``seconds`` end it early.
    A script that fails is shrunk for ``shrink_seconds``. Each script is in the file ``running``
    before it is played, for one that ends the process; later the best that failed is.
    Without ``watch`` no vCPU stays inside the guest, which needs a CPU for itself; with it
    ``raced`` is told after each script how many steps found it at work.
    Raises :class:`Missing` where Hypothesis, or what the layout needs, is not there.
    """
    start = time.monotonic()
    try:
        import hypothesis
        from hypothesis import HealthCheck, Phase, Verbosity
    except ImportError:
        raise Missing("hypothesis is not installed: pip install 'pyvmm-kvm[test]'") from None
    rules = rules_of(abi)
    assert rules is not None
    left_out = () if watch else ("watch", "unwatch")
    names = [
        name for name in STEPS if name in rules.steps and name not in left_out and not _lacks(name)
    ]
    search = _Search(abi, layout, seed, running, player, start + seconds, raced)
    search.try_out(())  # a layout that cannot be had is no failure
    scripts = _scripts(layout, rules, names)

    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(seed)
    @hypothesis.given(scripts)
    def run(groups: list[list[Step]]) -> None:
        search.example(tuple(step for group in groups for step in group))

    with tempfile.TemporaryDirectory(prefix="pyvmm-model-") as home:
        hypothesis.configuration.set_hypothesis_home_dir(home)
        with suppress(_Enough):
            run()
    search.shrink(rules, shrink_seconds)
    running.unlink(missing_ok=True)
    return search.found


def _lacks(name: str) -> bool:
    return any(missing(need) for need in NEEDS_OF_STEPS.get(name, ()))


class _Search:
    """Plays scripts, and keeps the one that failed."""

    def __init__(
        self,
        abi: str,
        layout: Layout,
        seed: int,
        running: Path,
        player: Callable[[Script, Toolbox], None],
        until: float,
        raced: Callable[[int], None],
    ) -> None:
        self.empty = Script(abi, layout, (), seed, kernel=os.uname().release)
        self.running = running
        self.player = player
        self.until = until
        self.raced = raced
        self.found: Found | None = None

    def try_out(self, steps: Sequence[Step]) -> CheckFailed | None:
        script = replace(self.empty, steps=tuple(steps), failure="its process ended meanwhile")
        self.running.write_text(to_text(script), encoding="utf-8")
        try:
            with Toolbox(str(script.seed)) as tools:
                self.player(script, tools)
                self.raced(tools.races)
        except CheckFailed as error:
            return error
        except Missing:
            raise
        except PyvmmError as error:
            return CheckFailed(f"a call that must succeed failed: {error}")
        return None

    def example(self, steps: tuple[Step, ...]) -> None:
        if time.monotonic() > self.until:
            raise _Enough
        if (failure := self.try_out(steps)) is not None:
            self.keep(steps, failure)
            # Hypothesis would play it again and again; steps are quicker to leave out by hand.
            raise _Enough

    def keep(self, steps: Sequence[Step], failure: CheckFailed) -> None:
        text = f"{failure} ({failure.detail})" if failure.detail else str(failure)
        script = replace(self.empty, steps=tuple(steps), failure=text)
        self.found = Found(script, failure)
        self.running.write_text(to_text(script), encoding="utf-8")

    def shrink(self, rules: Rules, seconds: float) -> None:
        """To the shortest that fails in the same way, as far as the time goes."""
        if self.found is None:
            return
        until = time.monotonic() + seconds
        message = str(self.found.failure)

        def fails(steps: Sequence[Step]) -> int | None:
            """After how many steps, if it does."""
            if time.monotonic() > until:
                return None
            for _ in range(_CHANCES if replace(self.empty, steps=tuple(steps)).has_chances else 1):
                failure = self.try_out(steps)
                if failure is not None and str(failure) == message:
                    self.keep(steps, failure)
                    return getattr(failure, "steps", len(steps))
            return None

        shrink(
            self.found.script.steps,
            fails,
            lambda step: not problem_with(step, self.empty.layout, rules),
        )


Draw = Callable[[Any], Any]


class _Drawing:
    """Draws steps and what they are about, each with a ``draw`` of Hypothesis."""

    def __init__(self, layout: Layout, rules: Rules, names: list[str]) -> None:
        from hypothesis import strategies

        self._layout, self._rules, self._names = layout, rules, names
        # Strategies are slow to make, so each is made once.
        self._below = cache(lambda count: strategies.integers(0, count - 1))
        self._weighted = [name for name in names for _ in range(_WEIGHTS.get(name, 1))]
        self._pages = pages = _pages(layout)
        self._preferred: dict[str, Sequence[int]] = {
            "page": pages,
            "guest_page": [
                page + view * layout.pages for view in range(rules.views) for page in pages
            ],
            "offset": _OFFSETS,
            "copy_count": _COUNTS[:3],
        }
        usual = ("to_private", "to_shared", "punch", "discard", "delete_slot", "create_slot")
        changes = [*usual, *usual[:4], "punch", "new_file", "hypercall"]
        self._changes = [name for name in changes if name in names]

    def _one_of(self, draw: Draw, values: Sequence[Any]) -> Any:
        return values[draw(self._below(len(values)))]

    def step(self, draw: Draw) -> Step:
        name = self._one_of(draw, self._weighted)
        if name == "hypercall":
            page = self._one_of(draw, self._pages)
            count = self._number(draw, "count", range(1, self._layout.pages - page + 1))
            return (name, *self._hypercall(draw, page, count))
        numbers: list[int] = []
        for kind in STEPS[name]:
            bounds = bounds_of(kind, numbers, self._layout, self._rules)
            numbers.append(self._number(draw, kind, bounds))
        return (name, *numbers)

    def _number(self, draw: Draw, kind: str, bounds: range | tuple[int, ...]) -> int:
        if kind in ("tag", "value"):
            return int(draw(self._below(1 << (TAG_BITS if kind == "tag" else 64))))
        if kind in ("count", "guest_count", "file_count"):
            longest = len(bounds)
            counts = [*(each for each in _COUNTS if each < longest), longest]
            return int(self._one_of(draw, counts))
        if kind in self._preferred:
            preferred = [each for each in self._preferred[kind] if each in bounds]
            return int(self._one_of(draw, preferred))
        return int(self._one_of(draw, bounds))

    def _hypercall(self, draw: Draw, page: int, count: int) -> tuple[int, ...]:
        cpu = self._one_of(draw, range(self._layout.cpus))
        states = (lib.KVM_MAP_GPA_RANGE_ENCRYPTED, lib.KVM_MAP_GPA_RANGE_DECRYPTED)
        given = [self._layout.gpa + page * PAGE, count, self._one_of(draw, states)]
        hostile = self._one_of(draw, (-1, -1, -1, 0, 1, 1, 2))
        if hostile >= 0:
            values = (_HOSTILE_GPAS, _HOSTILE_COUNTS, _HOSTILE_ATTRIBUTES)[hostile]
            given[hostile] = self._one_of(draw, values)
        return (cpu, *given)

    def _change(self, draw: Draw, first: int, count: int) -> list[Step]:
        """What may happen to a range of pages: to a part of it, or to its slot or file."""
        layout = self._layout
        start = first + draw(self._below(count))
        part = 1 + draw(self._below(first + count - start))
        slot = layout.slot_of(first)
        back: Step = ("create_slot", slot, 0, layout.file_offset + layout.slot_pages(slot).start)
        match name := self._one_of(draw, self._changes):
            case "punch":
                return [(name, 0, layout.file_offset + start, part)]
            case "hypercall":
                return [(name, *self._hypercall(draw, start, part))]
            case "create_slot":
                return [(name, slot, 0, draw(self._below(layout.file_pages)))]
            case "delete_slot":
                return [(name, slot), ("look", 0), back]
            case "new_file":
                return [(name, 0), ("look", 0), back]
        return [(name, start, part)]

    def story(self, draw: Draw) -> list[Step]:
        """Pages of one state are written to, something happens to them, and they are read."""
        layout, below = self._layout, self._below
        first = self._one_of(draw, self._pages)
        count = self._number(draw, "count", range(1, layout.pages - first + 1))
        private = draw(below(3)) > 0
        states = [("to_private" if private else "to_shared", first, count)]
        view = first + layout.pages * (self._rules.views - 1) * (not private)
        cpu = self._one_of(draw, range(layout.cpus))
        fill = ("guest_fill", cpu, view, count, 1 + draw(below((1 << TAG_BITS) - 1)))
        watch = [("watch", view)] if "watch" in self._names and draw(below(4)) == 3 else []
        after = [
            *self._change(draw, first, count),
            ("look", self._one_of(draw, range(layout.cpus))),
        ]
        steps = [*(states if states[0][0] in self._names else []), fill, *watch, *after]
        # Each can be left out, so that a failure shrinks to those that it needs.
        return [step for step in steps if draw(below(16))]


def _scripts(layout: Layout, rules: Rules, names: list[str]) -> Any:
    """Lists of lists of steps: of Hypothesis's lists, long ones are rare."""
    from hypothesis import strategies

    drawing = _Drawing(layout, rules, names)
    step, story = strategies.composite(drawing.step), strategies.composite(drawing.story)
    group = strategies.lists(step(), max_size=12) | story() | story()
    return strategies.lists(group, min_size=_GROUPS, max_size=3 * _GROUPS)


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
