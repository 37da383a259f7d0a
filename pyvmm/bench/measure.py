"""Cases measured beside their floors: rounds in which each bench has a turn.

Each turn sets a case up anew, and each round is in a process of its own where that costs
little, so that what differs from one machine and process to the next, and what changes on
the host meanwhile, is in the interval. A case's ratio is the median of its turns'. What
time is left goes to the cases whose turns agree least.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from pyvmm.bench import turn
from pyvmm.bench.case import Bench, Case
from pyvmm.bench.priority import is_real_time, real_time
from pyvmm.bench.result import BenchResult, CaseResult, Skipped
from pyvmm.bench.statistics import (
    Interval,
    bootstrap_of_median,
    lower_quartile,
    median,
    quantile,
)
from pyvmm.bench.surroundings import Surroundings
from pyvmm.bench.worker import Worker
from pyvmm.errors import ConfigurationError, UnsupportedError
from pyvmm.native import ffi, lib
from pyvmm.report import Latency

ROUNDS = 16
_LEAST_ROUNDS = 3
_MOST_OVER = 1.15
# The rest of the time goes to the cases that are known least.
_IN_ROUNDS = 0.65
_KNOWN_LEAST = 1 / 3
# Of the time: what starting processes may take.
_STARTING = 0.2
# A ratio that is not known better than this is not known.
_UNCERTAIN = 0.025
_DRIFT = 0.15
# The parts of a split come from other batches than the whole, but they are the same thing.
_SPLIT_MISSES = 0.05
# So many preemptions for each of the slowest thousandth of the samples spoil p99.9.
_SPOILT = 0.5


@dataclass(slots=True)
class _Gathered:
    """What is known of one case so far."""

    case: Case
    latency: Any
    ratios: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    preempted: int = 0

    def add(self, found: turn.CaseTurn, preempted: int) -> None:
        self.ours.append(found.ours)
        self.floors.append(found.floor)
        self.ratios.append(found.ours / found.floor)
        self.parts += found.parts
        self.preempted += preempted
        lib.histogram_add(self.latency, ffi.from_buffer("struct histogram *", found.latency))


Progress = Callable[[str, float], None]


def processes_for(seconds: float) -> int:
    """How many processes should share a measurement of ``seconds``; 0: this one alone."""
    # What this process has cost until now is what starting another one costs.
    count = min(ROUNDS, int(_STARTING * seconds / time.process_time()))
    return count if count > 1 else 0


def run(
    benches: Sequence[Bench],
    seconds: float,
    *,
    cpu: int | None = None,
    processes: int = 0,
    progress: Progress = lambda name, share: None,
) -> BenchResult:
    """Measure for about ``seconds``, on CPU ``cpu`` (None: the last that is allowed).

    The turns are shared by ``processes``, and those for the cases that are known least by
    more of them; 0 takes all in this one. ``progress`` is told the name of what comes next
    and the share that is done.
    """
    allowed = os.sched_getaffinity(0)
    chosen = max(allowed) if cpu is None else cpu
    if chosen not in allowed:
        raise ConfigurationError(
            f"--cpu {chosen}", "this process may not run there", f"use one of {sorted(allowed)}"
        )
    surroundings = Surroundings(chosen)
    schedule = _Schedule(benches, seconds)
    gathered = {bench: [_gather(case) for case in bench.cases] for bench in benches}
    operations: dict[Bench, int] = {}
    skipped: dict[Bench, str] = {}
    with real_time(), _Takers(processes) as takers:
        surroundings.facts["real_time"] = is_real_time()
        for number, some in enumerate(schedule.rounds(gathered)):
            taker = takers.of_round(number)
            for bench in some:
                progress(bench.cases[0].name, min(1.0, schedule.share()))
                slice_s = schedule.next_slice_s()
                try:
                    found = taker.take(bench, operations.get(bench, 0), slice_s, chosen)
                except UnsupportedError as error:
                    skipped[bench] = str(error)
                    schedule.skip(bench)
                    continue
                operations[bench] = found.operations
                for known, case in zip(gathered[bench], found.cases, strict=True):
                    known.add(case, found.preempted)
    progress("", 1.0)
    warnings = surroundings.end()
    return BenchResult(
        surroundings.facts,
        tuple(_finish(g, b) for b in benches if b not in skipped for g in gathered[b]),
        tuple(Skipped(case.name, why) for bench, why in skipped.items() for case in bench.cases),
        tuple(warnings),
    )


class Taker(Protocol):
    """Whoever takes a turn: the module of that name, or a :class:`Worker`."""

    def take(self, bench: Bench, operations: int, seconds: float, cpu: int) -> turn.Turn: ...


class _Takers:
    """One process after the other; with ``processes`` 0 this one."""

    def __init__(self, processes: int) -> None:
        self._rounds_each = math.ceil(ROUNDS / processes) if processes else 0
        self._stack = ExitStack()
        self._now: Taker = turn

    def of_round(self, number: int) -> Taker:
        if self._rounds_each and number % self._rounds_each == 0:
            self._stack.close()
            self._now = self._stack.enter_context(Worker())
        return self._now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class _Schedule:
    """Whose turn it is: everybody's, round by round, and then of those known the least."""

    def __init__(self, benches: Sequence[Bench], seconds: float) -> None:
        self._start = time.monotonic()
        self._seconds = seconds
        self._benches = list(benches)
        self._turns_left = ROUNDS * len(benches)

    def share(self) -> float:
        return (time.monotonic() - self._start) / self._seconds

    def skip(self, bench: Bench) -> None:
        """It cannot run: it has no more turns."""
        self._benches.remove(bench)
        self._turns_left = max(0, self._turns_left - (ROUNDS - 1))

    def next_slice_s(self) -> float:
        """Seconds for the turn that begins now."""
        left = self._start + self._seconds * _IN_ROUNDS - time.monotonic()
        slice_s = left / self._turns_left if self._turns_left else self._extra_slice_s()
        self._turns_left = max(0, self._turns_left - 1)
        return max(0.0, slice_s)

    def _extra_slice_s(self) -> float:
        return self._seconds * _IN_ROUNDS / (ROUNDS * len(self._benches))

    def rounds(self, gathered: Mapping[Bench, Sequence[_Gathered]]) -> Iterator[list[Bench]]:
        """The benches of each round; ``gathered`` is looked at while they are measured."""
        for number in range(ROUNDS):
            # On a machine too slow for all rounds some must do.
            if number >= _LEAST_ROUNDS and self.share() >= _MOST_OVER:
                return
            yield list(self._benches)
        while self._benches:
            left = (1 - self.share()) * self._seconds
            fits = int(left / self._extra_slice_s())
            if fits < 1:
                return
            some = min(fits, math.ceil(_KNOWN_LEAST * len(self._benches)))
            yield sorted(self._benches, key=lambda each: -_unknown(gathered[each]))[:some]


def _unknown(cases: Sequence[_Gathered]) -> float:
    """How little the median of the ratios is known, of the case where it is least."""
    return max(_spread(each.ratios) for each in cases)


def _spread(ratios: Sequence[float]) -> float:
    """How little the median of some ratios is known."""
    # Two rounds of eight that disagree with the others already widen its interval.
    most = quantile(ratios, 0.875) - quantile(ratios, 0.125)
    return most / median(ratios) / math.sqrt(len(ratios))


def _gather(case: Case) -> _Gathered:
    latency = ffi.new("struct histogram *")
    lib.histogram_clear(latency)
    return _Gathered(case, latency)


def _finish(gathered: _Gathered, bench: Bench) -> CaseResult:
    case = gathered.case
    ns, floor_ns, ratio = (
        median(each) for each in (gathered.ours, gathered.floors, gathered.ratios)
    )
    interval = bootstrap_of_median(gathered.ratios)
    split = bench.split(_typical(gathered.parts)) if gathered.parts else {}
    latency = Latency.of(gathered.latency)
    percentiles = {
        "min": latency.min or 0,
        "p50": latency.p50 or 0,
        "p90": latency.p90 or 0,
        "p99": latency.p99 or 0,
        "p999": latency.p999 or 0,
        "max": latency.max or 0,
    }
    return CaseResult(
        name=case.name,
        floor_ns=floor_ns,
        ns=ns,
        ratio=ratio,
        ci=(interval.low, interval.high),
        percentiles=percentiles,
        split=split,
        title=case.title,
        samples=latency.count,
        mean_ns=gathered.latency.sum / max(latency.count, 1),
        promise=str(case.promise) if case.promise else "",
        kept=_kept(case, floor_ns, ratio, interval),
        warnings=tuple(_doubts(gathered, ratio, interval, split, ns)),
        buckets=tuple(
            (lib.histogram_bucket_floor(at), count)
            for at, count in enumerate(ffi.unpack(gathered.latency.buckets, _buckets()))
            if count
        ),
    )


def _kept(case: Case, floor_ns: float, ratio: float, interval: Interval) -> bool | None:
    """Whether the promise is kept; None: there is none, or the ratio is not known so well."""
    if case.promise is None:
        return None
    kept = case.promise.kept(floor_ns, ratio)
    if _half(interval) > _UNCERTAIN * ratio and any(
        case.promise.kept(floor_ns, end) is not kept for end in interval
    ):
        return None
    return kept


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def _typical(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each quantity while nothing disturbs: its lower quartile."""
    return {name: lower_quartile([each[name] for each in measured]) for name in measured[0]}


def _buckets() -> int:
    return int(ffi.sizeof(ffi.new("struct histogram *").buckets) // 8)


def _doubts(
    gathered: _Gathered, ratio: float, interval: Interval, split: Mapping[str, float], ns: float
) -> Iterator[str]:
    """Which figures of a case are not to be believed."""
    half = _half(interval)
    if half > _UNCERTAIN * ratio:
        yield f"ratio: known only to within {half / ratio:.1%}"
    drift = max(gathered.ours) / min(gathered.ours) - 1
    if drift > _DRIFT:
        yield f"ns: rounds differ by {drift:.0%}; believe the ratio, not the time"
    if gathered.preempted:
        spoilt = gathered.preempted > _SPOILT * gathered.latency.count / 1000
        figures = "p999, max" if spoilt else "max"
        yield f"{figures}: the thread was preempted {gathered.preempted} times"
    if split:
        whole = sum(split.values()) / ns
        if abs(whole - 1) > _SPLIT_MISSES:
            yield f"split: its parts add up to {whole:.0%} of the whole"
        for name, part in split.items():
            if part < -_SPLIT_MISSES * ns:
                yield f"split: {name} is {part / ns:.0%} of the whole, which nothing can be"
