"""A case about races passes only with races, and says how many; what a machine can see of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pyvmm.validate.kit.case import Case
from pyvmm.validate.kit.check import CheckFailed, Missing
from pyvmm.validate.kit.race import Overlaps
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run import calibration
from pyvmm.validate.run.catalogue import select
from pyvmm.validate.run.worker import run_case


def outcome(function: Callable[[Toolbox], None]) -> tuple[State, str, str]:
    result = run_case(Case("X1", "a title", function, "tests"), 1)
    return result.state, result.message, result.detail


def provokes(count: int) -> Callable[[Toolbox], None]:
    return lambda tools: tools.provoked(count, "lost races in 1,000 flips")


def fails_before_it_counts(tools: Toolbox) -> None:
    tools.tried(False, "calls met")
    raise CheckFailed("wrong")


def says_nothing(tools: Toolbox) -> None:
    tools.is_race = True


def lacks(tools: Toolbox) -> None:
    tools.tried(True, "calls met")
    raise Missing("a thing")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (provokes(1234), (State.PASS, "", "1,234 lost races in 1,000 flips")),
        (provokes(0), (State.SKIP, "no race happened here", "0 lost races in 1,000 flips")),
        (says_nothing, (State.SKIP, "no race happened here", "")),
        (fails_before_it_counts, (State.FAIL, "wrong", "")),
        (lacks, (State.SKIP, "a thing", "1 of 1 calls met")),
        (lambda tools: None, (State.PASS, "", "")),
    ],
)
def test_without_a_race_nothing_is_proven(
    function: Callable[[Toolbox], None], expected: tuple[State, str, str]
) -> None:
    assert outcome(function) == expected


def test_a_case_that_needs_two_cpus_is_about_races() -> None:
    for each in select("RC1 or MR7", ""):
        with Toolbox("1", each) as tools:
            assert tools.is_race


def test_rounds_go_on_until_there_is_a_race() -> None:
    with Toolbox("1") as tools:
        for number in tools.enough(3):
            tools.tried(number >= 7, "tries met")
        assert tools.told == "1 of 8 tries met"
        assert list(tools.enough(3)) == [0, 1, 2]


def test_rounds_without_a_race_end() -> None:
    start = time.monotonic()
    with Toolbox("1") as tools:
        assert sum(1 for _ in tools.enough(3, 0.1)) > 3
    assert 0.1 <= time.monotonic() - start < 10


def test_calls_that_overlap_are_races() -> None:
    with Toolbox("1") as tools:
        beside = Overlaps(tools)
        assert beside(lambda: 5) == 5
        assert tools.races == 0
        beside(lambda: beside(int, "7"))
        with pytest.raises(ZeroDivisionError):
            beside(divmod, 1, 0)
        assert tools.told == "1 of 4 calls began while another went on"


@pytest.mark.parametrize(
    ("state", "message", "detail", "said"),
    [
        (State.PASS, "", "5 lost races", "5 lost races"),
        (
            State.SKIP,
            "no race happened here",
            "0 lost races",
            "none (0 lost races); cases that provoke none are skipped",
        ),
        (State.SKIP, "two_cpus: one", "", "not measured (two_cpus: one)"),
        (State.HANG, "no end after 15 s", "", "not measured (no end after 15 s)"),
    ],
)
def test_what_is_said_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, state: State, message: str, detail: str, said: str
) -> None:
    result = CaseResult("RACES", "RACES", "", "races", state, message, detail)
    monkeypatch.setattr(calibration, "Runner", lambda cases, seed: iter([result]))
    race, other = (Case("X1", "", lacks, "tests", needs) for needs in (("two_cpus",), ()))
    assert calibration.races_here([other, race]) == said
    assert calibration.races_here([other]) == ""
