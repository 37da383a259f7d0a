"""What pyvmm promises of exits, conversions and a machine's life, beside bare C, by minimum.

The cases and their floors are those of `pyvmm bench`; here each is one experiment, A B A B,
and every batch counts: the best and the middle one of both sides are printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

from interleaved import batches_asked, describe_machine

from pyvmm.bench.case import Bench, Experiment
from pyvmm.bench.statistics import median
from pyvmm.bench.subjects import benches
from pyvmm.errors import UnsupportedError

_BATCH_NS = 2_000_000  # long beside what starting a batch from Python costs


def promised() -> Iterator[Bench]:
    for bench in benches("all"):
        if any(case.promise for case in bench.cases):
            yield bench


def operations_per_batch(experiment: Experiment, bench: Bench) -> int:
    nanoseconds = max(experiment.floor(bench.least))
    return max(bench.least, min(bench.most, int(_BATCH_NS / max(nanoseconds, 1.0))))


def measure(bench: Bench, batches: int) -> None:
    with ExitStack() as stack:
        experiment = bench.set_up(stack)
        operations = operations_per_batch(experiment, bench)
        ours, floor = [], []
        experiment.ours(operations)
        for _ in range(batches):
            floor.append(experiment.floor(operations))
            ours.append(experiment.ours(operations))
    for at, case in enumerate(bench.cases):
        if case.promise is None:
            continue
        mine, bare = [batch[at] for batch in ours], [batch[at] for batch in floor]
        ratio = min(mine) / min(bare)
        kept = "kept" if case.promise.kept(min(bare), ratio) else "NOT KEPT"
        print(
            f"{case.name:<32} floor {min(bare):>11,.0f} {median(bare):>11,.0f}   "
            f"pyvmm {min(mine):>11,.0f} {median(mine):>11,.0f}   "
            f"ratio {ratio:.3f} {median(mine) / median(bare):.3f}   {case.promise}: {kept}",
            flush=True,
        )


def main() -> None:
    batches = batches_asked(__doc__ or "", 40)
    describe_machine()
    print(f"{batches} batches of each side, interleaved; ns per operation: minimum, median")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for bench in promised():
        try:
            measure(bench, batches)
        except UnsupportedError as error:
            print(f"{bench.cases[0].name:<32} not here: {error}")


if __name__ == "__main__":
    main()
