"""Bugs that were really fixed, put back: each must be caught, unless its head says why it is not.

One of them in every run; PYVMM_REALBUGS=all, or names joined by commas, tests others. The other
variables are those of test_mutants.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

import pytest
from caught import check_caught, run_at_once
from mutant_heads import REAL_BUGS, Mutant, all_mutants, chosen

from pyvmm.validate.jobs.job import Job
from pyvmm.validate.jobs.workers import Outcome

pytestmark = [pytest.mark.boots, pytest.mark.timeout(900, func_only=True)]

_WANTED = {name for name in os.environ.get("PYVMM_REALBUGS", "").split(",") if name}
_BUGS = chosen([each for each in all_mutants(REAL_BUGS) if each.promises], _WANTED)


@pytest.fixture(scope="module")
def outcomes() -> Mapping[Job, Outcome]:
    return run_at_once(_BUGS)


@pytest.mark.parametrize("bug", _BUGS, ids=lambda each: each.name)
def test_real_bug_is_caught(
    bug: Mutant, outcomes: Mapping[Job, Outcome], rng: random.Random
) -> None:
    check_caught(bug, outcomes, rng.randrange(1 << 32))
