"""A run for callers of the library: what the observer is told, and the report."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pyvmm.validate.kit.case import Case
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run import session
from pyvmm.validate.run.observer import Observer


def passes(tools: Toolbox) -> None:
    pass


def fails(tools: Toolbox) -> None:
    raise CheckFailed("it fails")


def hangs(tools: Toolbox) -> None:
    time.sleep(60)


CASES = [
    Case("X1", "alone", passes, "tests", alone=True),
    Case("X2", "fails", fails, "tests"),
]


class Heard(Observer):
    def __init__(self) -> None:
        self.words: list[str] = []

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        self.words.append(f"{len(cases)} cases, seed {seed}")

    def knows(self, machine: dict[str, Any]) -> None:
        self.words.append(f"races {machine['races']!r}")

    def started(self, each: Case) -> None:
        self.words.append(f"{each.id} starts")

    def ended(self, number: int, result: CaseResult) -> None:
        self.words.append(f"{number}: {result.id} {result.state}")


def test_the_observer_hears_all_as_it_comes_and_the_report_has_the_order_of_the_cases() -> None:
    heard = Heard()
    now = session.run(CASES, heard, seed=7)
    assert heard.words == [
        "2 cases, seed 7",
        "races ''",
        "X2 starts",
        "1: X2 fail",
        "X1 starts",
        "2: X1 pass",
    ]
    assert [result.id for result in now.results] == ["X1", "X2"]
    assert (now.seed, now.not_run, now.left_behind) == (7, (), False)


def test_nobody_need_observe_and_any_seed_will_do() -> None:
    assert [result.state for result in session.run(CASES).results] == [State.PASS, State.FAIL]


def test_what_interrupts_a_run_ends_its_processes_and_the_report_has_what_ended() -> None:
    class Impatient(Observer):
        def ended(self, number: int, result: CaseResult) -> None:
            raise KeyboardInterrupt

    cases = [Case("X3", "hangs", hangs, "tests"), *CASES]
    run = session.Session(cases, Impatient(), workers=2)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()
    assert [result.id for result in run.report().results] == ["X2"]
