"""Kernels broken on purpose: each must be caught, with a message that points at what is wrong.

Five of them in every run; PYVMM_MUTANTS=all, or names joined by commas, tests others.
"""

from __future__ import annotations

import json
import os
import sys

import pytest
from mutant_heads import Mutant, all_mutants, chosen

from pyvmm.lab.build import build
from pyvmm.lab.lab import Lab
from pyvmm.lab.leaks import find_leaks, forget_leaks, looks_for_leaks

pytestmark = [pytest.mark.boots, pytest.mark.timeout(900)]

_WANTED = {name for name in os.environ.get("PYVMM_MUTANTS", "").split(",") if name}


@pytest.mark.parametrize("mutant", chosen(all_mutants(), _WANTED), ids=lambda each: each.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    kernel = build(mutant.recipe, f"mutant-{mutant.name}", announce=print)
    command = [sys.executable, "-m", "pyvmm", "validate", "--json", "-k", mutant.select]
    with Lab(kernel, tcg="multi", params=mutant.parameters) as lab:
        if looks_for_leaks(kernel):
            forget_leaks(lab)
        result = lab.run(command, timeout=400)
        leaks = find_leaks(lab, result.kernel_log) if looks_for_leaks(kernel) else ()
    if mutant.is_told_by_the_log:
        seen = [(splat.title, splat.cases) for splat in (*result.splats, *leaks)]
        print(*seen, sep="\n")
        splats = (*result.splats, *leaks)
        assert any(each.is_named_by(splat) for each in mutant.promises for splat in splats), seen
        return
    cries = [each.title for each in result.splats]
    if any(promise.is_kept_by_log(cry) for promise in mutant.promises for cry in cries):
        return
    assert result.status == 1, (result.problem, result.errors.decode(), result.splats)
    failed = [each for each in json.loads(result.output)["results"] if each["state"] != "pass"]
    said = [(each["name"], each["state"], each["message"]) for each in failed]
    print(*said, sep="\n")
    assert any(promise.is_kept_by(each) for promise in mutant.promises for each in failed), said
