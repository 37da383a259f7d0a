"""Hypothesis makes scripts of an ABI, and shrinks one that fails to the shortest that does."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pyvmm.errors import PyvmmError
from pyvmm.validate.capabilities import missing
from pyvmm.validate.case import PAGE
from pyvmm.validate.check import CheckFailed, Missing
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
    to_text,
)
from pyvmm.validate.toolbox import Toolbox

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
# Arguments of hypercalls that a VMM must refuse, or KVM itself.
_HOSTILE_GPAS = (1, PAGE - 1, 1 << 52, 0x1_2345_6789_A000, _ALL, _ALL - PAGE + 1, 1 << 63, 0)
_HOSTILE_COUNTS = (0, 1 << 32, (1 << 32) + 1, 1 << 52, (1 << 52) - 1, _ALL, _ALL - 1)
_HOSTILE_ATTRIBUTES = (0x1F, 0x20, 0xFFFF_FFFF, (1 << 32) + 0x10, (1 << 63) + 0x10, _ALL)


class _Fails(Exception):
    """What Hypothesis is told, whatever the failure is."""


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
    player: Callable[[Script, Toolbox], None] = play,
) -> Script | None:
    """Play random scripts; the shortest that fails, with its failure, or None.

    Deterministic: the same ``seed`` makes the same scripts, unless ``seconds`` end it early.
    Each script is in the file ``running`` before it is played, for one that ends the process.
    Raises :class:`Missing` where Hypothesis, or what the layout needs, is not there.
    """
    try:
        import hypothesis
        from hypothesis import HealthCheck, Phase, Verbosity
    except ImportError:
        raise Missing("hypothesis is not installed: pip install 'pyvmm-kvm[test]'") from None
    rules = rules_of(abi)
    assert rules is not None
    names = [name for name in STEPS if name in rules.steps and not _lacks(name)]
    search = _Search(abi, layout, seed, running, player, seconds, shrink_seconds)
    search.try_out(())  # a layout that cannot be had is no failure
    scripts = _scripts(layout, rules, names)

    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(seed)
    @hypothesis.given(scripts)
    def run(groups: list[list[Step]]) -> None:
        search.example(tuple(step for group in groups for step in group))

    with tempfile.TemporaryDirectory(prefix="pyvmm-model-") as home:
        hypothesis.configuration.set_hypothesis_home_dir(home)
        # Also a failure that does not come again, which Hypothesis calls flaky, was one.
        with suppress(_Fails, _Enough, *_flaky()):
            run()
    return search.found


def _flaky() -> tuple[type[BaseException], ...]:
    import hypothesis.errors

    return (hypothesis.errors.Flaky,)


def _lacks(name: str) -> bool:
    return any(missing(need) for need in NEEDS_OF_STEPS.get(name, ()))


class _Search:
    """Plays examples, and keeps the best that failed."""

    def __init__(
        self,
        abi: str,
        layout: Layout,
        seed: int,
        running: Path,
        player: Callable[[Script, Toolbox], None],
        seconds: float,
        shrink_seconds: float,
    ) -> None:
        self.empty = Script(abi, layout, (), seed, kernel=os.uname().release)
        self.running = running
        self.player = player
        self.until = time.monotonic() + seconds
        self.shrink_seconds = shrink_seconds
        self.found: Script | None = None
        self.failure = CheckFailed("")

    def try_out(self, steps: tuple[Step, ...]) -> CheckFailed | None:
        script = replace(self.empty, steps=steps, failure="its process ended while it ran")
        self.running.write_text(to_text(script), encoding="utf-8")
        try:
            with Toolbox(str(script.seed)) as tools:
                self.player(script, tools)
        except CheckFailed as error:
            return error
        except PyvmmError as error:
            return CheckFailed(f"a call that must succeed failed: {error}")
        finally:
            self.running.unlink(missing_ok=True)
        return None

    def example(self, steps: tuple[Step, ...]) -> None:
        if time.monotonic() > self.until:
            raise _Enough
        failure = self.try_out(steps)
        if failure is None:
            return
        if self.found is None:
            self.until = time.monotonic() + self.shrink_seconds
        text = f"{failure} ({failure.detail})" if failure.detail else str(failure)
        script = replace(self.empty, steps=steps, failure=text)
        if self.found is None or _size(script) <= _size(self.found):
            self.found, self.failure = script, failure
        raise _Fails


def _size(script: Script) -> tuple[int, int]:
    return len(script.steps), len(to_text(replace(script, failure="")))


Draw = Callable[[Any], Any]


def _scripts(layout: Layout, rules: Rules, names: list[str]) -> Any:
    """Lists of lists of steps: of Hypothesis's lists, long ones are rare."""
    from hypothesis import strategies

    # Strategies are slow to make, so each is made once.
    below = cache(lambda count: strategies.integers(0, count - 1))
    weighted = [name for name in names for _ in range(_WEIGHTS.get(name, 1))]
    pages = _pages(layout)
    preferred: dict[str, Sequence[int]] = {
        "page": pages,
        "guest_page": [page + view * layout.pages for view in range(rules.views) for page in pages],
        "offset": _OFFSETS,
        "copy_count": _COUNTS[:3],
    }

    def one_of(draw: Draw, values: Sequence[Any]) -> Any:
        return values[draw(below(len(values)))]

    @strategies.composite
    def steps(draw: Draw) -> Step:
        name = one_of(draw, weighted)
        if name == "hypercall":
            return (name, *hypercall(draw))
        numbers: list[int] = []
        for kind in STEPS[name]:
            numbers.append(number(draw, kind, bounds_of(kind, numbers, layout, rules)))
        return (name, *numbers)

    def number(draw: Draw, kind: str, bounds: range | tuple[int, ...]) -> int:
        if kind in ("tag", "value"):
            return int(draw(below(1 << (TAG_BITS if kind == "tag" else 64))))
        if kind in ("count", "guest_count", "file_count"):
            longest = len(bounds)
            return int(one_of(draw, [*(each for each in _COUNTS if each < longest), longest]))
        if kind in preferred:
            return int(one_of(draw, [each for each in preferred[kind] if each in bounds]))
        return int(one_of(draw, bounds))

    def hypercall(draw: Draw) -> tuple[int, ...]:
        cpu, page = one_of(draw, range(layout.cpus)), one_of(draw, pages)
        count = number(draw, "count", range(1, layout.pages - page + 1))
        given = [layout.gpa + page * PAGE, count, one_of(draw, (0x10, 0))]
        hostile = one_of(draw, (-1, -1, -1, 0, 1, 2))
        if hostile >= 0:
            given[hostile] = one_of(
                draw, (_HOSTILE_GPAS, _HOSTILE_COUNTS, _HOSTILE_ATTRIBUTES)[hostile]
            )
        return (cpu, *given)

    group = strategies.lists(steps(), min_size=1, max_size=12)
    return strategies.lists(group, min_size=1, max_size=8)


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
