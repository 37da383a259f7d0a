"""What is made of the turns of a case: the result, and which of its figures are doubtful."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.bench.case import Bench, Case, Promise
from pyvmm.bench.measure import ROUNDS, _finish, _gather, _Schedule
from pyvmm.bench.result import CaseResult
from pyvmm.bench.turn import CaseTurn
from pyvmm.native import ffi, lib

CASE = Case("case", "title")


def bench_named(name: str = "case") -> Bench:
    def set_up(stack: Any) -> Any:
        raise AssertionError("nothing is measured here")

    return Bench((Case(name, "title"),), set_up)


def latency(*values: int) -> bytes:
    histogram = ffi.new("struct histogram *")
    lib.histogram_clear(histogram)
    for value in values:
        lib.histogram_record(histogram, value)
    return bytes(ffi.buffer(histogram))


def finished(*turns: tuple[float, float], preempted: int = 0, **parts: float) -> CaseResult:
    gathered = _gather(CASE)
    for ours, floor in turns:
        measured = (parts,) if parts else ()
        gathered.add(CaseTurn(ours, floor, measured, latency(*[1000] * 500)), preempted)
    return _finish(gathered, bench_named())


def test_the_middle_of_the_turns_counts() -> None:
    result = finished((101, 100), (102, 100), (150, 100))
    assert result.ratio == 1.02 and result.ns == 102 and result.samples == 1500
    assert result.ci[0] <= 1.02 <= result.ci[1]


def test_nothing_is_doubted_when_all_agrees() -> None:
    assert finished((1000, 990), (1001, 990), (1002, 991), exit=600.0, discard=395.0).warnings == ()


@pytest.mark.parametrize(
    ("result", "figure"),
    [
        (finished((1000, 1000), (1070, 1000), (1140, 1000)), "ratio"),
        (finished((1000, 1000), (1300, 1300)), "ns"),
        (finished((1000, 1000), preempted=1), "p999, max"),
        (finished(*[(1000, 1000)] * 20, exit=500.0, discard=560.0), "split"),
        (finished(*[(1000, 1000)] * 20, exit=1100.0, bookkeeping=-100.0), "split"),
    ],
)
def test_what_is_not_to_be_believed_is_named(result: CaseResult, figure: str) -> None:
    assert [warning.split(": ")[0] for warning in result.warnings] == [figure]


def test_one_preemption_among_many_samples_spoils_only_the_maximum() -> None:
    gathered = _gather(CASE)
    gathered.add(CaseTurn(1000, 1000, (), latency(*[1000] * 5000)), 1)
    assert _finish(gathered, bench_named()).warnings == ("max: the thread was preempted 1 times",)


def test_a_round_has_everybody_and_what_is_left_goes_to_the_unknown() -> None:
    known, unknown, absent = (bench_named(name) for name in ("known", "unknown", "absent"))
    schedule = _Schedule([known, unknown, absent], 3600)
    gathered = {bench: [_gather(bench.cases[0])] for bench in (known, unknown, absent)}
    for ours in (100.0, 150.0):
        gathered[known][0].add(CaseTurn(100, 100, (), latency()), 0)
        gathered[unknown][0].add(CaseTurn(ours, 100, (), latency()), 0)
    rounds = schedule.rounds(gathered)
    assert next(rounds) == [known, unknown, absent]
    assert schedule.next_slice_s() == pytest.approx(0.65 * 3600 / (3 * ROUNDS), rel=0.01)
    schedule.skip(absent)
    assert [next(rounds) for _ in range(ROUNDS - 1)] == [[known, unknown]] * (ROUNDS - 1)
    assert next(rounds) == [unknown]


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([(101, 100)] * 9, True),
        ([(103, 100)] * 9, False),
        ([(100, 100), (101, 100), (110, 100)], None),  # who knows
        ([(120, 100), (130, 100), (140, 100)], False),  # little is known, but that it is more
    ],
)
def test_a_promise_is_judged_by_what_is_known(
    turns: list[tuple[float, float]], kept: bool | None
) -> None:
    gathered = _gather(Case("case", "title", Promise(ratio=1.02)))
    for ours, floor in turns:
        gathered.add(CaseTurn(ours, floor, (), latency(100)), 0)
    assert _finish(gathered, bench_named()).kept is kept
