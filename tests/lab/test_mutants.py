"""Kernels broken on purpose: each must be caught, with a message that points at what is wrong.

Five of them in every run; PYVMM_MUTANTS=all, or names joined by commas, tests others. With
PYVMM_WORKERS=N, or PYVMM_DASK=tcp://HOST:PORT, all run as jobs before the first is judged, and what
is done is kept: the same command goes on from there. Another PYVMM_SEED (0) runs them anew.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress

import pytest
from mutant_heads import Mutant, all_mutants, chosen

from pyvmm.lab.build import build
from pyvmm.lab.errors import LabError
from pyvmm.validate.jobs.cluster import run_on_cluster
from pyvmm.validate.jobs.job import Job
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.jobs.run import forget_job, run_job
from pyvmm.validate.jobs.workers import Outcome, run_jobs

pytestmark = [pytest.mark.boots, pytest.mark.timeout(900, func_only=True)]

_WANTED = {name for name in os.environ.get("PYVMM_MUTANTS", "").split(",") if name}
_MUTANTS = chosen(all_mutants(), _WANTED)
_WORKERS = int(os.environ.get("PYVMM_WORKERS", "0"))
_DASK = os.environ.get("PYVMM_DASK", "")
_SEED = int(os.environ.get("PYVMM_SEED", "0"))


@pytest.fixture(scope="module")
def outcomes() -> Mapping[Job, Outcome]:
    """What came of all of them, where they are to run at once."""
    if _DASK:
        return dict(run_on_cluster(_jobs(), _DASK, print))
    return dict(run_jobs(_jobs(), _WORKERS, print)) if _WORKERS else {}


def _jobs() -> Iterator[Job]:
    for mutant in _MUTANTS:
        with suppress(LabError):  # its own test says so
            build(mutant.recipe, mutant.kernel_name, announce=print)
            yield mutant.job(_SEED)


@pytest.mark.parametrize("mutant", _MUTANTS, ids=lambda each: each.name)
def test_mutant_is_caught(
    mutant: Mutant, outcomes: Mapping[Job, Outcome], rng: random.Random
) -> None:
    done = outcomes.get(mutant.job(_SEED)) or _alone(mutant, rng.randrange(1 << 32))
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
