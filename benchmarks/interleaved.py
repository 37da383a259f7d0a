"""Two ways of doing the same thing, measured in turns: A B A B.

Each side is a function that does ``operations`` of the thing once more; a batch is one
such call, timed with CLOCK_MONOTONIC. The result of a batch is its nanoseconds per
operation. A shared machine can only make a batch slower, so the minimum of many short
batches is what can be compared; the median says what it was like while measuring.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from pyvmm.host import cpu_model, kernel_release, kvm_modules

LEAST_BATCHES = 20


@dataclass(frozen=True, slots=True)
class Side:
    """``run()`` does ``operations`` operations."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Measured:
    """Nanoseconds per operation: the best batch and the middle one."""

    name: str
    minimum: float
    median: float


@dataclass(frozen=True, slots=True)
class Promise:
    """What ours may cost by minimum: a ratio to the floor, so many ns more, or in all."""

    ratio: float = math.inf
    more_ns: float = math.inf
    total_ns: float = math.inf

    def judge(self, ours: Measured, floor: Measured) -> str:
        for limit, text in (
            (floor.minimum * self.ratio, f"ratio at most {self.ratio:.2f}"),
            (floor.minimum + self.more_ns, f"at most {self.more_ns:,.0f} ns more"),
            (self.total_ns, f"at most {self.total_ns:,.0f} ns in all"),
        ):
            if limit < math.inf:
                kept = "kept" if ours.minimum <= limit else "NOT KEPT"
                return f"promise: {text} by minimum - {kept}"
        return "nothing promised"


NOTHING = Promise()


def interleave(ours: Side, floor: Side, operations: int, batches: int) -> tuple[Measured, Measured]:
    """Measure both sides in turns, after one batch of each to warm up."""
    times: dict[str, list[float]] = {ours.name: [], floor.name: []}
    for batch in range(batches + 1):
        for side in (ours, floor):
            start = time.monotonic_ns()
            side.run()
            taken = (time.monotonic_ns() - start) / operations
            if batch > 0:
                times[side.name].append(taken)
    first, second = (Measured(name, min(all), median(all)) for name, all in times.items())
    return first, second


def compare(
    title: str, ours: Side, floor: Side, promise: Promise, *, operations: int, batches: int
) -> None:
    """Measure, and print what was found beside what is promised."""
    show(title, *interleave(ours, floor, operations, batches), promise)


def show(title: str, ours: Measured, floor: Measured, promise: Promise) -> None:
    print(title)
    for side in (ours, floor):
        print(f"  {side.name:34} minimum {side.minimum:12,.0f} ns   median {side.median:12,.0f} ns")
    print(
        f"  {'ratio':34} minimum {ours.minimum / floor.minimum:12.3f}      "
        f"median {ours.median / floor.median:12.3f}"
    )
    print(
        f"  {'difference':34} minimum {ours.minimum - floor.minimum:+12,.0f} ns   "
        f"median {ours.median - floor.median:+12,.0f} ns"
    )
    print(f"  {promise.judge(ours, floor)}", flush=True)


def batches_asked(description: str, default: int) -> int:
    """The number of batches from the command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--batches",
        type=int,
        default=default,
        metavar="N",
        help=f"batches of each side, at least {LEAST_BATCHES} (default: {default})",
    )
    batches: int = parser.parse_args().batches
    if batches < LEAST_BATCHES:
        parser.error(f"--batches {batches}: fewer than {LEAST_BATCHES} say nothing")
    return batches


def describe_machine(*, pin: bool = True) -> None:
    """Stay on one CPU unless told not to; print what machine this is and how busy it was."""
    where = "on all CPUs"
    if pin:
        cpu = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpu})
        where = f"pinned to CPU {cpu}"
    policy = "real-time" if os.sched_getscheduler(0) == os.SCHED_FIFO else f"nice {os.nice(0)}"
    modules = ", ".join(kvm_modules()) or "built in"
    load = os.getloadavg()[0]
    print(
        f"{cpu_model()}, {os.cpu_count()} CPUs, Linux {kernel_release()}, KVM modules: {modules}; "
        f"{where}, {policy}, load {load:.1f}, garbage collector on"
    )
