"""Broken kernels, each built, booted and looked at by a job: whether it is caught."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from mutant_heads import Mutant

from pyvmm.lab.build import build
from pyvmm.lab.errors import LabError
from pyvmm.validate.jobs.cluster import run_on_cluster
from pyvmm.validate.jobs.job import Job
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.jobs.run import forget_job, run_job
from pyvmm.validate.jobs.workers import Outcome, run_jobs

_WORKERS = int(os.environ.get("PYVMM_WORKERS", "0"))
_DASK = os.environ.get("PYVMM_DASK", "")
_SEED = int(os.environ.get("PYVMM_SEED", "0"))


def run_at_once(mutants: Iterable[Mutant]) -> Mapping[Job, Outcome]:
    """What came of all of them, where they are to run at once; else nothing."""
    if _DASK:
        return dict(run_on_cluster(_jobs(mutants), _DASK, print))
    return dict(run_jobs(_jobs(mutants), _WORKERS, print)) if _WORKERS else {}


def _jobs(mutants: Iterable[Mutant]) -> Iterator[Job]:
    for mutant in mutants:
        with suppress(LabError):  # its own test says so
            build(mutant.recipe, mutant.kernel_name, announce=print)
            yield mutant.job(_SEED)


def check_caught(mutant: Mutant, outcomes: Mapping[Job, Outcome], seed: int) -> None:
    """Fails unless the cases, or the kernel's log, say what was promised."""
    done = outcomes.get(mutant.job(_SEED)) or _alone(mutant, seed)
    assert isinstance(done, JobResult), str(done)
    run = done.run
    said = [
        *((each.name, each.state, each.message) for each in run.results if each.state != "pass"),
        *((each.splat.title, each.splat.cases) for each in run.trouble),
    ]
    print(*said, sep="\n")
    assert mutant.is_caught_by(done), (run.problem, said)


def _alone(mutant: Mutant, seed: int) -> Outcome:
    build(mutant.recipe, mutant.kernel_name, announce=print)
    job = mutant.job(seed)
    try:
        return run_job(job, print)
    finally:
        forget_job(job)
