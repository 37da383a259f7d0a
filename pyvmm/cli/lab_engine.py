"""What all commands that run jobs have: `--workers` and `--dask`, and jobs from their options."""

from __future__ import annotations

import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cli import arguments
from pyvmm.cli.interruption import Interrupted
from pyvmm.cli.lab_command import Show, live_line, say
from pyvmm.printable import counted

if TYPE_CHECKING:
    from pyvmm.lab.kernels import Kernel
    from pyvmm.validate.jobs.job import Built, Image, Job, Named
    from pyvmm.validate.jobs.runs import Runs
    from pyvmm.validate.jobs.workers import Engine
    from pyvmm.validate.kernels.two_kernels import Choice
    from pyvmm.validate.kit.case import Case
    from pyvmm.validate.results.report import Report


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check came to. ``show`` says it, and the line on where all of it is."""

    status: int
    reports: Mapping[str, Report]
    show: Callable[[str], None]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=arguments.workers,
        metavar="N",
        dest="labs",
        help="labs at once (as many as cores and memory allow)",
    )
    parser.add_argument(
        "--dask",
        default="",
        metavar="tcp://HOST:PORT",
        help="run jobs on the workers of this Dask scheduler instead",
    )


def add_job_seconds(parser: ArgumentParser, option: str) -> None:
    parser.add_argument(
        option,
        type=arguments.seconds,
        default=60.0,
        metavar="S",
        help="that a job may take beside its boot (%(default)g)",
    )


def check(options: Namespace) -> None:
    """A LabUsageError where both are asked for, or the cluster's address is none."""
    from pyvmm.lab.errors import LabUsageError

    if options.dask and options.labs:
        raise LabUsageError("--dask", "its workers are those of the cluster", "leave out --workers")
    if options.dask:
        from pyvmm.validate.jobs.connecting import check_address

        check_address(options.dask)


def labs(options: Namespace, cpus: int, memory_mib: int) -> int:
    """How many labs of this size are there at once on this machine."""
    from pyvmm.validate.jobs.workers import labs_at_once

    return options.labs or labs_at_once(cpus, memory_mib)


def where(options: Namespace, workers: int) -> str:
    if options.dask:
        return f"the cluster at {options.dask}"
    return f"{workers} labs at once" if workers > 1 else "one lab"


def engine(options: Namespace, workers: int, show: Show | None, again: bool = False) -> Engine:
    """What runs jobs: the cluster that is asked for, or so many labs here."""
    from pyvmm.validate.jobs.cluster import run_on_cluster
    from pyvmm.validate.jobs.run import run_job
    from pyvmm.validate.jobs.workers import run_jobs

    watch = show or (lambda line: None)
    if options.dask:
        return partial(run_on_cluster, address=options.dask, announce=say, watch=watch, again=again)
    run = partial(run_job, again=again)
    return partial(run_jobs, workers=workers, announce=say, watch=watch, run=run)


def kernel_of(name: str) -> Named | Image:
    """The kernel that ``pyvmm lab run --kernel`` calls so."""
    from pyvmm.lab.build import check_known, known_recipe
    from pyvmm.lab.kernels import find_built, read_image
    from pyvmm.validate.jobs.job import Named
    from pyvmm.validate.jobs.run import for_a_job

    check_known(name)
    if "/" not in name and (known_recipe(name) or find_built(name)):
        return Named(name)
    return for_a_job(read_image(Path(name)))


def job(
    options: Namespace,
    kernel: Named | Image | Built,
    cases: Sequence[Case],
    seed: int,
    timeout_s: float,
) -> Job:
    """These cases on the machine that is asked for."""
    from pyvmm.validate.jobs.job import HUGE_PAGES, Job

    return Job(
        kernel,
        tuple(each.name for each in cases),
        seed,
        options.cpus,
        options.memory,
        (HUGE_PAGES, *options.param),
        options.model_examples,
        timeout_s,
    )


def choices(options: Namespace) -> list[Choice]:
    """All combinations of the parameters that are varied."""
    return list(itertools.product(*options.vary))


@contextmanager
def runs_of(options: Namespace, kernels: Sequence[Kernel], cases: Sequence[Case]) -> Iterator[Runs]:
    """The catalogue on these kernels, by jobs."""
    from pyvmm.validate.jobs.run import for_a_job
    from pyvmm.validate.jobs.runs import Runs

    template = job(options, for_a_job(kernels[0]), cases, 0, options.timeout)
    if options.workers:
        template = replace(template, beside=options.workers)
    workers = options.labs or labs(options, options.cpus, options.memory)
    with live_line() as show:
        runs = Runs(
            kernels,
            choices(options),
            template,
            engine(options, workers, show),
            job_s=options.job_seconds,
            seed=options.seed,
            announce=say,
        )
        with runs:
            place = where(options, workers)
            told = f"{counted(len(cases), 'case')}, {counted(runs.count, 'job')}"
            say(f"{told} on {place}, seed {runs.seed}")
            try:
                yield runs
            except Interrupted:
                say("what is done is kept; the same command goes on from there")
                raise
