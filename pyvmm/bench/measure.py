"""Cases measured in turns with their floors: A B A B.

Every case is set up anew in each round, and each round visits every case, so that what
differs from one machine to the next, and what changes on the host meanwhile, is in the
interval. What time is left goes to the cases whose rounds agree least.

Within a round both sides run short batches by turns on the same vCPU, after one batch
each to warm up; a batch's operations are doubled until it is long enough.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from pyvmm.bench.result import BenchResult, CaseResult, Skipped
from pyvmm.bench.statistics import bootstrap_of_median, lower_quartile, median, quantile
from pyvmm.bench.surroundings import Surroundings
from pyvmm.errors import ConfigurationError, UnsupportedError
from pyvmm.native import ffi, lib
from pyvmm.report import Latency

ROUNDS = 8
_LEAST_ROUNDS = 3
_MOST_OVER = 1.15
# The rest of the time goes to the cases that are known least.
_IN_ROUNDS = 0.65
_MOST_EXTRA_ROUNDS = 12 * ROUNDS
# A batch is long enough that starting it from Python costs little, and short enough that
# many are not disturbed: so many times a call from Python, which is slow on an emulated CPU.
_BATCH_CALLS = 1000
_LEAST_BATCH_NS = 200_000
# The lower quartile of fewer is that of nothing, on a CPU shared with others.
_LEAST_PAIRS = 12
# Of a case's time: how much goes to the distribution of single operations.
_SAMPLING = 0.35
_LEAST_SAMPLES = 4
# A ratio that is not known better than this is not known.
_UNCERTAIN = 0.025
_DRIFT = 0.15


@dataclass(frozen=True, slots=True)
class Promise:
    """What a case may cost: a ratio to its floor, or so many nanoseconds more."""

    ratio: float = math.inf
    more_ns: float = math.inf

    def __str__(self) -> str:
        if self.ratio < math.inf:
            return f"at most {self.ratio - 1:.0%} more"
        return f"at most {self.more_ns:,.0f} ns more"

    def kept(self, floor_ns: float, ratio: float) -> bool:
        return ratio <= self.ratio and (ratio - 1) * floor_ns <= self.more_ns


@dataclass(frozen=True, slots=True)
class Case:
    """A name to know the case by, a title to understand it, and what is promised."""

    name: str
    title: str
    promise: Promise | None = None


# Nanoseconds per operation, in the order of an experiment's cases.
Times = Sequence[float]


class Experiment(Protocol):
    """What measures one case or several at once; set up once for each round."""

    def ours(self, operations: int) -> Times:
        """Do so many operations by way of pyvmm, recording off."""

    def floor(self, operations: int) -> Times:
        """Do as many from bare C."""

    def sample(self, operations: int, latencies: Sequence[Any]) -> Sequence[dict[str, float]]:
        """Do as many by way of pyvmm, each operation's time into its case's histogram.

        Returns for each case what :attr:`Bench.split` makes its split of, or nothing.
        """


@dataclass(frozen=True, slots=True)
class Bench:
    """Cases that one experiment measures. ``set_up`` raises UnsupportedError to skip them.

    ``pinned`` experiments run on one CPU. ``least`` and ``most`` limit a batch's operations.
    ``split`` turns what :meth:`Experiment.sample` measured into parts that add up.
    """

    cases: tuple[Case, ...]
    set_up: Callable[[ExitStack], Experiment]
    pinned: bool = True
    least: int = 1
    most: int = 1 << 16
    split: Callable[[dict[str, float]], dict[str, float]] = dict


@dataclass(slots=True)
class _Gathered:
    """What is known of one case so far."""

    case: Case
    latency: Any
    ratios: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    disturbed: int = 0


Progress = Callable[[str, float], None]


def select(benches: Iterable[Bench], word: str) -> list[Bench]:
    """The benches with a case whose name contains ``word``."""
    chosen = [each for each in benches if any(word in case.name for case in each.cases)]
    if not chosen:
        raise ConfigurationError(f"-k {word}", "no case has that in its name", "see --list")
    return chosen


def run(
    benches: Sequence[Bench],
    seconds: float,
    *,
    cpu: int | None = None,
    progress: Progress = lambda name, share: None,
) -> BenchResult:
    """Measure for about ``seconds``, on CPU ``cpu`` (None: the last that is allowed).

    ``progress`` is told the name of what comes next and the share that is done.
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
    while (bench := schedule.next(gathered)) is not None:
        progress(bench.cases[0].name, min(1.0, schedule.share()))
        try:
            with ExitStack() as stack:
                if bench.pinned:
                    stack.enter_context(_on_cpu(chosen))
                experiment = bench.set_up(stack)
                if bench not in operations:
                    operations[bench] = _long_enough(experiment, bench)
                _round(experiment, operations[bench], schedule.slice_s(), gathered[bench])
        except UnsupportedError as error:
            skipped[bench] = str(error)
            schedule.skip(bench)
    progress("", 1.0)
    warnings = surroundings.end()
    return BenchResult(
        surroundings.facts,
        tuple(_finish(g, b) for b in benches if b not in skipped for g in gathered[b]),
        tuple(Skipped(case.name, why) for bench, why in skipped.items() for case in bench.cases),
        tuple(warnings),
    )


class _Schedule:
    """Whose turn it is: all of them round by round, then whose ratio is known the least."""

    def __init__(self, benches: Sequence[Bench], seconds: float) -> None:
        self._start = time.monotonic()
        self._seconds = seconds
        self._benches = list(benches)
        self._waiting = list(benches) * ROUNDS
        self._turns = dict.fromkeys(benches, 0)

    def share(self) -> float:
        return (time.monotonic() - self._start) / self._seconds

    def skip(self, bench: Bench) -> None:
        self._benches.remove(bench)
        self._waiting = [each for each in self._waiting if each is not bench]

    def slice_s(self) -> float:
        """Seconds for the turn that begins now."""
        left = self._start + self._seconds * _IN_ROUNDS - time.monotonic()
        if self._waiting:
            return max(0.0, left / (len(self._waiting) + 1))
        return self._seconds * _IN_ROUNDS / (ROUNDS * len(self._turns))

    def next(self, gathered: Mapping[Bench, Sequence[_Gathered]]) -> Bench | None:
        # On a machine too slow for all rounds some must do.
        if self.share() >= _MOST_OVER and len(self._waiting) <= (ROUNDS - _LEAST_ROUNDS) * len(
            self._benches
        ):
            return None
        if self._waiting:
            return self._waiting.pop(0)
        wanting = [each for each in self._benches if self._turns[each] < _MOST_EXTRA_ROUNDS]
        if not wanting or self._start + self._seconds < time.monotonic() + self.slice_s():
            return None
        worst = max(wanting, key=lambda each: max(_spread(g.ratios) for g in gathered[each]))
        self._turns[worst] += 1
        return worst


def _spread(ratios: Sequence[float]) -> float:
    """How little the median of some ratios is known."""
    # Two rounds of eight that disagree with the others already widen its interval.
    most = quantile(ratios, 0.875) - quantile(ratios, 0.125)
    return most / median(ratios) / math.sqrt(len(ratios))


@contextmanager
def _on_cpu(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _gather(case: Case) -> _Gathered:
    latency = ffi.new("struct histogram *")
    lib.histogram_clear(latency)
    return _Gathered(case, latency)


def _long_enough(experiment: Experiment, bench: Bench) -> int:
    """Operations of a batch: doubled until the quicker side takes long enough."""
    enough = max(_LEAST_BATCH_NS, _BATCH_CALLS * _call_ns())
    operations = bench.least
    while True:
        quicker = min(sum(experiment.ours(operations)), sum(experiment.floor(operations)))
        if quicker * operations >= enough or 2 * operations > bench.most:
            return operations
        operations *= 2


@cache
def _call_ns() -> int:
    """What a call of C from Python costs here."""
    now = lib.monotonic_ns
    return int(min(-(now() - now()) for _ in range(100)))


def _round(
    experiment: Experiment, operations: int, seconds: float, gathered: Sequence[_Gathered]
) -> None:
    start = time.monotonic()
    # Warm up: the first batches of each side do not count.
    experiment.ours(operations)
    experiment.floor(operations)
    ours: list[Times] = []
    floors: list[Times] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    pair_end = start + seconds * (1 - _SAMPLING)
    while len(ours) < _LEAST_PAIRS or time.monotonic() < pair_end:
        ours.append(experiment.ours(operations))
        floors.append(experiment.floor(operations))
    samples = 0
    while samples < _LEAST_SAMPLES or time.monotonic() < start + seconds:
        measured = experiment.sample(operations, [each.latency for each in gathered])
        samples += 1
        for each, parts in zip(gathered, measured, strict=True):
            if parts:
                each.parts.append(parts)
    disturbed = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before
    for at, each in enumerate(gathered):
        typical = lower_quartile([times[at] for times in ours])
        typical_floor = lower_quartile([times[at] for times in floors])
        each.ours.append(typical)
        each.floors.append(typical_floor)
        each.ratios.append(typical / typical_floor)
        each.disturbed += disturbed


def _finish(gathered: _Gathered, bench: Bench) -> CaseResult:
    case = gathered.case
    ns, floor_ns, ratio = (
        median(each) for each in (gathered.ours, gathered.floors, gathered.ratios)
    )
    interval = bootstrap_of_median(gathered.ratios)
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
        split=bench.split(_typical(gathered.parts)) if gathered.parts else {},
        title=case.title,
        samples=latency.count,
        mean_ns=gathered.latency.sum / max(latency.count, 1),
        promise=str(case.promise) if case.promise else "",
        kept=case.promise.kept(floor_ns, ratio) if case.promise else None,
        warnings=tuple(_doubts(gathered, ratio, interval.low, interval.high)),
        buckets=tuple(
            (lib.histogram_bucket_floor(at), count)
            for at, count in enumerate(ffi.unpack(gathered.latency.buckets, _buckets()))
            if count
        ),
    )


def _typical(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each quantity while nothing disturbs: its lower quartile."""
    return {name: lower_quartile([each[name] for each in measured]) for name in measured[0]}


def _buckets() -> int:
    return int(ffi.sizeof(ffi.new("struct histogram *").buckets) // 8)


def _doubts(gathered: _Gathered, ratio: float, low: float, high: float) -> Iterator[str]:
    """Which figures of a case are not to be believed."""
    half = (high - low) / 2
    if half > _UNCERTAIN * ratio:
        yield f"ratio: known only to within {half / ratio:.1%}"
    drift = max(gathered.ours) / min(gathered.ours) - 1
    if drift > _DRIFT:
        yield f"ns: rounds differ by {drift:.0%}; believe the ratio, not the time"
    if gathered.disturbed:
        yield f"p999, max: the thread was preempted {gathered.disturbed} times"
