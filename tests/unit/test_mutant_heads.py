"""The patches of broken kernels: their heads say what breaks, and name cases that exist."""

from __future__ import annotations

import re
from dataclasses import replace
from email.message import Message

import pytest
from documents import ROOT
from mutant_heads import (
    FOLDER,
    KEYS,
    KEYS_OF_REAL_BUGS,
    MAY_BE_THERE,
    REAL_BUGS,
    Mutant,
    Promise,
    all_mutants,
    chosen,
)

from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.sources import patched_files
from pyvmm.validate.jobs.job import from_text, to_text
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.kernels.lab_run import LabRun, Trouble
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import all_cases, select

MUTANTS, BUGS = all_mutants(), all_mutants(REAL_BUGS)


def test_there_are_enough_and_five_always_run() -> None:
    assert len(MUTANTS) >= 15
    assert len(chosen(MUTANTS, ())) == 5
    assert chosen(MUTANTS, {"all"}) == MUTANTS
    assert chosen(MUTANTS, {MUTANTS[3].name}) == [MUTANTS[3]]


def test_there_are_enough_real_bugs_and_nine_of_ten_are_caught() -> None:
    caught = [each for each in BUGS if each.promises]
    assert len(caught) >= 15
    assert len(caught) >= 0.9 * len(BUGS)
    assert len(chosen(BUGS, ())) <= 1


@pytest.mark.parametrize("mutant", [*MUTANTS, *BUGS], ids=lambda each: each.name)
def test_head(mutant: Mutant) -> None:
    of_this_kind = KEYS_OF_REAL_BUGS if mutant in BUGS else KEYS
    keys = [key for key in dict.fromkeys(mutant.head.keys()) if key not in MAY_BE_THERE]
    assert ["Caught-by" if key == "Not-caught" else key for key in keys] == list(of_this_kind)
    assert all(re.fullmatch(r"[a-z_.]+=\w+", each) for each in mutant.parameters)
    assert all(patch.is_file() for patch in mutant.recipe.patches)
    assert all(mutant.value(key) for key in keys)
    assert mutant.value("Always") in ("yes", "no")
    assert "GPL-2.0" in mutant.value("License")
    names = {f"{each.id}.{each.function.__name__}" for each in all_cases()}
    selected = {f"{each.id}.{each.function.__name__}" for each in select(mutant.select)}
    for promise in mutant.promises:
        assert promise.case in names, "no such case"
        assert promise.case in selected, "Select leaves it out"
        assert promise.words


@pytest.mark.parametrize("bug", BUGS, ids=lambda each: each.name)
def test_the_fix_of_a_real_bug(bug: Mutant) -> None:
    assert re.fullmatch(r'[0-9a-f]{12} \(".+"\)', bug.value("Fix"))
    assert re.fullmatch(r"202[3-6]-[01]\d(-[0-3]\d)?", bug.value("Date"))
    assert re.fullmatch(r"[67]\.\d+", bug.value("Release"))
    commits = {each.words[6:] for each in bug.promises if each.words.startswith("known ")}
    assert commits <= {bug.value("Fix")[:12]}


@pytest.mark.parametrize("mutant", [*MUTANTS, *BUGS], ids=lambda each: each.name)
def test_patch_changes_kvm_only(mutant: Mutant) -> None:
    files = patched_files(mutant.patch)
    assert files or mutant.is_known
    folders = ("virt/kvm/", "arch/x86/kvm/", "arch/x86/include/asm/kvm_", "include/linux/")
    assert all(name.startswith(folders) for name in files)


def test_the_readme_has_each() -> None:
    table = (FOLDER / "README.md").read_text()
    assert [each.name for each in MUTANTS if f"| {each.name} |" not in table] == []


def test_the_document_of_real_bugs_has_each() -> None:
    table = (ROOT / "docs" / "real-bugs.md").read_text()
    rows = [(each.name, each.value("Fix")[:12]) for each in BUGS]
    assert [row for row in rows if not all(f"`{word}`" in table for word in row)] == []


def failure(name: str, message: str, state: State = State.FAIL) -> CaseResult:
    return CaseResult(name, "", "", "", state, message)


def test_a_promise_is_kept_by_that_failure_alone() -> None:
    promise = Promise("PC7.edges", "the last page")
    kept = failure("PC7.edges[pages=1+1]", "x the last page y")
    assert promise.is_kept_by(kept)
    assert not promise.is_kept_by(replace(kept, state=State.HANG))
    assert not promise.is_kept_by(replace(kept, name="PC77.edges"))
    assert not promise.is_kept_by(replace(kept, message="the first page"))
    assert not promise.is_kept_by_log("the last page")
    bug = KnownBug("3ccbf6f47098", "a title", "6.18")
    known = replace(kept, state=State.KNOWN, bug=bug)
    assert not promise.is_kept_by(known)
    assert Promise("PC7.edges", "known 3ccbf6f47098").is_kept_by(known)
    assert not Promise("PC7.edges", "known 20a6cff3b283").is_kept_by(known)
    assert not Promise("PC7.edges", "known 3ccbf6f47098").is_kept_by(kept)
    assert Promise("AT13.x", "splat BUG: unable").is_kept_by_log("BUG: unable to handle a fault")
    assert not Promise("AT13.x", "splat BUG: unable").is_kept_by_log("WARNING: BUG: unable")


def mutant(*caught_by: str, debug: str = "") -> Mutant:
    head = Message()
    for line in caught_by:
        head["Caught-by"] = line
    if debug:
        head["Debug"] = debug
    return Mutant(FOLDER / "x.patch", head)


def done(*results: CaseResult, splat: Splat | None = None) -> JobResult:
    trouble = (Trouble(splat),) if splat else ()
    run = LabRun((), results, 7, 1.0, trouble=trouble)
    return JobResult("", KernelFacts("", "", ""), run, {})


def test_a_mutant_is_caught_by_a_case_or_by_the_log() -> None:
    wrong = failure("PC7.edges", "the last page")
    cry = Splat("BUG: unable to handle", ("BUG",), ("AT13.x[a=1]",))
    either = mutant("PC7.edges: the last page", "AT13.x: splat BUG: unable")
    assert either.is_caught_by(done(wrong)) and either.is_caught_by(done(splat=cry))
    assert not either.is_caught_by(done(replace(wrong, message="else")))
    # Where only the log tells, it must tell of the case, too.
    watched = mutant("AT13.x: splat BUG: unable", debug="kasan")
    assert watched.is_caught_by(done(splat=cry))
    assert not watched.is_caught_by(done(wrong, splat=replace(cry, cases=("PC7.edges",))))


def test_each_is_a_job() -> None:
    jobs = [mutant.job(5) for mutant in (*MUTANTS, *BUGS)]
    assert [from_text(to_text(job)) for job in jobs] == jobs
    assert len({job.name for job in jobs}) == len(MUTANTS) + len(BUGS)
