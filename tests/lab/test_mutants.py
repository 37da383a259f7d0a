"""Kernels broken on purpose: each must be caught, with a message that points at what is wrong.

Five of them in every run; PYVMM_MUTANTS=all, or names joined by commas, tests others. With
PYVMM_WORKERS=N, or PYVMM_DASK=tcp://HOST:PORT, all run as jobs before the first is judged, and what
is done is kept: the same command goes on from there. Another PYVMM_SEED (0) runs them anew.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

import pytest
from caught import check_caught, run_at_once
from mutant_heads import Mutant, all_mutants, chosen

from pyvmm.validate.jobs.job import Job
from pyvmm.validate.jobs.workers import Outcome

pytestmark = [pytest.mark.boots, pytest.mark.timeout(900, func_only=True)]

_WANTED = {name for name in os.environ.get("PYVMM_MUTANTS", "").split(",") if name}
_MUTANTS = chosen(all_mutants(), _WANTED)


@pytest.fixture(scope="module")
def outcomes() -> Mapping[Job, Outcome]:
    return run_at_once(_MUTANTS)


@pytest.mark.parametrize("mutant", _MUTANTS, ids=lambda each: each.name)
def test_mutant_is_caught(
    mutant: Mutant, outcomes: Mapping[Job, Outcome], rng: random.Random
) -> None:
    check_caught(mutant, outcomes, rng.randrange(1 << 32))
