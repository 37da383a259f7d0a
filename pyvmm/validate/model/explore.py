"""Plays random scripts of an ABI; one that fails is shrunk to the steps that it needs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pyvmm.errors import PyvmmError
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.check import CheckFailed, Missing
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.abis import rules_of
from pyvmm.validate.model.play import play
from pyvmm.validate.model.random_scripts import RandomScripts
from pyvmm.validate.model.script import (
    NEEDS_OF_STEPS,
    STEPS,
    Layout,
    Rules,
    Script,
    Step,
    problem_with,
    to_text,
)
from pyvmm.validate.model.shrink import shrink

_CHANCES = 3  # of a shorter script to fail too, where a vCPU runs beside its steps


class Found(NamedTuple):
    script: Script
    failure: CheckFailed


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
    Raises :class:`Missing` where what the layout needs is not there.
    """
    until = time.monotonic() + seconds
    rules = rules_of(abi)
    assert rules is not None
    left_out = () if watch else ("watch", "unwatch")
    names = [
        name for name in STEPS if name in rules.steps and name not in left_out and not _lacks(name)
    ]
    search = _Search(abi, layout, seed, running, player, raced)
    search.try_out(())  # a layout that cannot be had is no failure
    made = RandomScripts(layout, rules, names, random.Random(seed))
    for _ in range(examples):
        if time.monotonic() > until or search.fails(made.script()):
            break
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
        raced: Callable[[int], None],
    ) -> None:
        self.empty = Script(abi, layout, (), seed, kernel=os.uname().release)
        self.running = running
        self.player = player
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

    def fails(self, steps: Sequence[Step]) -> bool:
        if (failure := self.try_out(steps)) is None:
            return False
        self.keep(steps, failure)
        return True

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
