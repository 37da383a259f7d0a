"""One turn of a bench: set up anew, then both sides by turns, A B A B.

Both sides run short batches on the same vCPU, after one batch each to warm up; a batch's
operations are doubled until it is long enough. A shared machine can only make a batch
slower: what stands for a turn is each side's lower quartile.
"""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from pyvmm.bench.case import Bench, Experiment, Times
from pyvmm.bench.priority import on_cpu
from pyvmm.bench.statistics import lower_quartile
from pyvmm.native import ffi, lib

# A batch is long enough that starting it from Python costs little, and short enough that
# many are not disturbed: so many times a call from Python, which is slow on an emulated CPU.
_BATCH_CALLS = 1000
_LEAST_BATCH_NS = 200_000
# The lower quartile of few is that of nothing, on a CPU shared with others; but a turn that
# takes many times what it should must end.
_ENOUGH_PAIRS = 12
_LEAST_PAIRS = 4
_MOST_OVER = 4
# Of a turn's time: how much goes to the distribution of single operations.
_SAMPLING = 0.35
_LEAST_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class CaseTurn:
    """What a turn found of one case. Times are nanoseconds per operation.

    ``parts`` are what :meth:`Experiment.sample` measured, ``latency`` the bytes of a
    ``struct histogram``.
    """

    ours: float
    floor: float
    parts: tuple[dict[str, float], ...]
    latency: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn, with a :class:`CaseTurn` for each of the bench's cases.

    ``operations`` are those of a batch. ``preempted``: how often while single operations
    were timed.
    """

    cases: tuple[CaseTurn, ...]
    operations: int
    preempted: int


def take(bench: Bench, operations: int, seconds: float, cpu: int) -> Turn:
    """Measure for about ``seconds``; a batch is of ``operations``, 0: find out how many.

    Raises UnsupportedError where the bench cannot run.
    """
    with ExitStack() as stack:
        if bench.pinned:
            stack.enter_context(on_cpu(cpu))
        experiment = bench.set_up(stack)
        if operations == 0:
            operations = _long_enough(experiment, bench)
        return _measure(experiment, operations, seconds, len(bench.cases))


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


def _measure(experiment: Experiment, operations: int, seconds: float, cases: int) -> Turn:
    start = time.monotonic()
    # Warm up: the first batches of each side do not count.
    experiment.ours(operations)
    experiment.floor(operations)
    ours: list[Times] = []
    floors: list[Times] = []
    while _wants_more(len(ours), (time.monotonic() - start) / max(seconds, 1e-9)):
        ours.append(experiment.ours(operations))
        floors.append(experiment.floor(operations))
    latencies = [_histogram() for _ in range(cases)]
    parts: list[list[dict[str, float]]] = [[] for _ in range(cases)]
    before = _preemptions()
    samples = 0
    while samples < _LEAST_SAMPLES or time.monotonic() < start + seconds:
        for known, measured in zip(parts, experiment.sample(operations, latencies), strict=True):
            if measured:
                known.append(measured)
        samples += 1
    return Turn(
        tuple(
            CaseTurn(
                lower_quartile([times[at] for times in ours]),
                lower_quartile([times[at] for times in floors]),
                tuple(parts[at]),
                bytes(ffi.buffer(latencies[at])),
            )
            for at in range(cases)
        ),
        operations,
        _preemptions() - before,
    )


def _wants_more(pairs: int, share: float) -> bool:
    """Whether another pair of batches is to be measured; ``share`` of the time is over."""
    if pairs < _ENOUGH_PAIRS:
        return pairs < _LEAST_PAIRS or share < _MOST_OVER
    return share < 1 - _SAMPLING


def _histogram() -> Any:
    histogram = ffi.new("struct histogram *")
    lib.histogram_clear(histogram)
    return histogram


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
