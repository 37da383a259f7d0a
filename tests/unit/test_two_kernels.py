"""Two kernels compared: verdicts, the text for a mail, exit status; without booting anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pyvmm.cli import lab_check_text as text
from pyvmm.cli.main import main
from pyvmm.errors import PyvmmError
from pyvmm.lab.errors import KernelFailed, LabError
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs.job import Job, Named
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.kernels.lab_report import report_of
from pyvmm.validate.kernels.lab_run import LabRun, Trouble
from pyvmm.validate.kernels.two_kernels import Came, Place, Variant, compare, judge, variants
from pyvmm.validate.kernels.verdict import Facts, to_json, verdict
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results import kcidb
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

PASS, FAIL, SKIP = State.PASS, State.FAIL, State.SKIP
BEFORE = Kernel("default", Path("/k/1/bzImage"), "6.12.1", "/usr/src/linux-source-6.12.tar.xz")
NOW = Kernel(
    "6.12-ab", Path("/k/2/bzImage"), "6.12.1", "/usr/src/linux.tar.xz", ("0001-fix.patch",)
)


def result(name: str, state: State = PASS, message: str = "") -> CaseResult:
    return CaseResult(name, name.split(".")[0], "a title", "tests", state, message)


def known(name: str, commit: str = "0" * 12) -> CaseResult:
    bug = KnownBug(commit, "KVM: wait for nobody", "6.18")
    return replace(result(name, State.KNOWN, "it waits"), bug=bug)


def run(*results: CaseResult, planned: Sequence[str] = (), **other: Any) -> LabRun:
    names = tuple(planned or [each.name for each in results])
    return LabRun(names, results, 7, 1.5, other.pop("machine", {"kernel": "6.12"}), **other)


def splat(title: str, *cases: str) -> Trouble:
    return Trouble(Splat(title, (title, "a line")), cases)


def facts() -> Facts:
    return Facts(BEFORE, NOW, 7, 2, 2048)


# ---- what a case's results say ----


def test_what_kernels_watch_for_is_told() -> None:
    """Who reads it in a mail has to know that lockdep looked on, and that KASAN did not."""
    both = variant(run(result("X1.a")), run(result("X1.a")))
    assert "watches" not in "\n".join(text.summary(facts(), [both]))
    watching = replace(facts(), now=replace(NOW, debug=("lockdep", "list")))
    told = text.summary(watching, [both])
    assert told[4] == "        which watches itself for lockdep, list"
    assert told[3].startswith("now ")


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ("p", "p", Change.SAME),
        ("p", "f", Change.BROKEN),
        ("f", "p", Change.FIXED),
        ("f", "f", Change.SAME_FAILURE),
        ("f", "g", Change.DIFFERENT),
        ("p", "s", Change.NEWLY_SKIPPED),
        ("s", "p", Change.NO_LONGER_SKIPPED),
        ("p", "", Change.DID_NOT_RUN),
        ("", "", Change.SAME),
        ("", "p", Change.NO_LONGER_SKIPPED),
        ("", "f", Change.BROKEN),
        # A failure that does not come again on the same kernel proves nothing.
        ("ppp", "fpp", Change.UNSTEADY),
        ("fpp", "ppp", Change.UNSTEADY),
        ("fpf", "pfp", Change.UNSTEADY),
        ("pp", "sp", Change.UNSTEADY),
        # One that comes again, and never on the other kernel, does.
        ("pp", "ff", Change.BROKEN),
        ("ppp", "fpf", Change.BROKEN),
        ("ppp", "fgp", Change.BROKEN),
        ("ppp", "fgh", Change.BROKEN),
        ("fpf", "ppp", Change.FIXED),
        # What fails in several ways on both is the same if they have one in common.
        ("fg", "gf", Change.SAME_FAILURE),
        ("ff", "gh", Change.UNSTEADY),
        # A known bug is wrong too, and no failure that counts against the kernel with it.
        ("k", "k", Change.SAME_KNOWN),
        ("kk", "kk", Change.SAME_KNOWN),
        ("k", "p", Change.FIXED),
        ("kkp", "ppp", Change.FIXED),
        ("pp", "kk", Change.BROKEN),
        ("k", "f", Change.DIFFERENT),
        ("k", "s", Change.NEWLY_SKIPPED),
        ("", "k", Change.BROKEN),
    ],
)
def test_what_results_say(before: str, now: str, change: Change) -> None:
    def results(letters: str) -> list[CaseResult]:
        states = {"p": PASS, "s": SKIP, "k": State.KNOWN}
        return [
            result("X1.a", states.get(each, FAIL), each if each not in "p" else "")
            for each in letters
        ]

    assert judge(results(before), results(now)) is change


@pytest.mark.parametrize(
    ("before", "now", "worse"),
    [
        ([PASS], [FAIL], True),
        ([PASS], [SKIP], True),
        ([PASS], [], True),
        ([FAIL], [], True),
        ([SKIP], [], False),
        ([FAIL], [SKIP], False),
        ([State.KNOWN], [FAIL], True),
        ([State.KNOWN], [PASS], False),
        ([State.KNOWN], [State.KNOWN], False),
        ([PASS], [State.KNOWN], True),
        ([FAIL], [PASS], False),
        ([SKIP], [PASS], False),
        ([PASS, PASS, PASS], [FAIL, PASS, PASS], False),
    ],
)
def test_what_is_worse(before: list[State], now: list[State], worse: bool) -> None:
    earlier = [run(result("X1.a", each)) for each in before] or [run(planned=["X1.a"])]
    later = [run(result("X1.a", each)) for each in now] or [run(planned=["X1.a"])]
    (compared,) = compare(earlier, later)
    assert compared.worse is worse


def test_a_known_bug_that_both_kernels_have_is_no_difference() -> None:
    """A race meets it in one case here and in another there."""
    seen, other, unrelated = known("X1.a"), known("X1.b"), known("X1.b", commit="f" * 12)
    passed = result("X1.a"), result("X1.b")

    def changes(before: list[CaseResult], now: list[CaseResult]) -> list[Change]:
        return [each.change for each in compare([run(*before)], [run(*now)])]

    same, known_bug = Change.SAME, Change.SAME_KNOWN
    assert changes([passed[0], other], [seen, passed[1]]) == [known_bug, known_bug]
    assert changes([passed[0], other], [seen, other]) == [known_bug, known_bug]
    assert changes([*passed], [seen, passed[1]]) == [Change.BROKEN, same], "no case saw it before"
    assert changes([seen, passed[1]], [*passed]) == [Change.FIXED, same]
    assert changes([passed[0], unrelated], [seen, unrelated]) == [Change.BROKEN, known_bug]
    failed = result("X1.a", FAIL, "wrong")
    assert changes([failed, other], [seen, other]) == [Change.DIFFERENT, known_bug]
    skipped = result("X1.a", SKIP, "nothing here")
    assert changes([skipped, other], [seen, other]) == [Change.BROKEN, known_bug]


def variant(before: LabRun, now: LabRun, *parameters: str) -> Variant:
    return Variant(parameters, (before,), (now,), compare([before], [now]))


def test_a_splat_only_now_is_worse_whatever_its_numbers() -> None:
    one = "WARNING: CPU: 0 PID: 58 at arch/x86/kvm/mmu/mmu.c:112 f+0xa/0x10"
    same = "WARNING: CPU: 1 PID: 70 at arch/x86/kvm/mmu/mmu.c:113 f+0xb/0x12"
    other = "WARNING: CPU: 1 PID: 70 at arch/x86/kvm/mmu/mmu.c:113 g+0xb/0x12"
    fine = result("X1.a")
    both = variant(run(fine, trouble=(splat(one),)), run(fine, trouble=(splat(same),)))
    assert not both.worse and "before too" in "\n".join(text.summary(facts(), [both]))
    new = variant(run(fine, trouble=(splat(one),)), run(fine, trouble=(splat(other, "X1.a"),)))
    assert new.worse
    said = "\n".join(text.summary(facts(), [new]))
    assert "only now (1):\n  WARNING: CPU: 1" in said
    gone = variant(run(fine, trouble=(splat(one),)), run(fine))
    assert not gone.worse


def test_a_kernel_that_dies_in_the_middle() -> None:
    names = ["X1.a", "X2.b", "X3.c"]
    before = run(*map(result, names))
    now = run(
        result("X1.a"),
        planned=names,
        problem="the lab's kernel died; in the middle of X2.b",
        trouble=(splat("Oops: 0000 [#1]", "X2.b"),),
    )
    died = variant(before, now)
    assert died.worse
    assert [each.name for each in died.of(Change.DID_NOT_RUN)] == ["X2.b", "X3.c"]
    said = "\n".join(text.summary(facts(), [died]))
    assert said.startswith("WORSE: 2 did not run, 1 new splat, kernel died")
    assert "in the middle of X2.b" in said and "Oops: 0000 [#1] (while X2.b ran)" in said
    # The same on both kernels is no difference, though not much of a proof.
    both = variant(now, now)
    assert not both.worse
    said = "\n".join(text.summary(facts(), [both]))
    assert said.startswith("nothing got worse: the kernel before did not come to the end")
    assert "did not come to its end now" in said and "did not come to its end before" in said


# ---- what is said ----


def test_no_difference() -> None:
    both = run(result("X1.a"), result("X2.b", SKIP, "memory_error: it is not there"))
    lines = text.summary(facts(), [variant(both, both)])
    assert lines[0] == "no difference"
    assert "1 skipped: memory_error: it is not there" in lines
    assert not any("WORSE" in line for line in lines)


def test_known_bugs_are_said_with_their_fix() -> None:
    bug = KnownBug("0123456789ab", "KVM: Do it right", "6.18")
    seen = replace(result("X1.a", State.KNOWN, "it hangs"), bug=bug)
    lines = text.summary(facts(), [variant(run(seen), run(seen))])
    assert lines[0] == "no difference: 1 case sees known bugs on both kernels"
    said = "\n".join(lines)
    assert 'same known bug (1):\n  X1.a\n      it hangs; fixed by 0123456789ab ("KVM' in said
    counts = to_json(facts(), [variant(run(seen), run(seen))])["variants"][0]["counts"]
    assert counts["known"] == 1 and counts["same failure"] == 0
    mended = variant(run(seen), run(result("X1.a")))
    assert not mended.worse
    assert text.summary(facts(), [mended])[0] == "nothing got worse: 1 fixed"
    assert variant(run(result("X1.a")), run(seen)).worse


def test_nothing_that_ran_is_said() -> None:
    both = run(result("X1.a", SKIP, "no KVM"))
    lines = text.summary(facts(), [variant(both, both)])
    assert lines[0] == "NOTHING COULD RUN on either kernel"
    partly = variant(run(result("X1.a")), both)
    assert partly.worse and not partly.nothing_ran
    assert text.summary(facts(), [partly])[0] == "WORSE: 1 newly skipped"


def many(count: int, state: State, message: str, first: str = "X") -> list[CaseResult]:
    return [
        result(f"{first}{at % 50}.a[way={'long ' * 12}{at}]", state, f"{message} {at % 70}")
        for at in range(count)
    ]


@pytest.mark.parametrize("variants", [1, 20])
def test_hundreds_of_differences_fit_into_a_mail(variants: int) -> None:
    before = [
        *many(200, PASS, "", "B"),
        *many(200, FAIL, "old", "D"),
        *many(100, FAIL, "old", "F"),
        *many(100, PASS, "", "S"),
        *many(50, FAIL, "same", "A"),
    ]
    now = [
        *many(200, FAIL, "seen 0x11 where 0x22 was written, " * 5, "B"),
        *many(200, State.HANG, "new", "D"),
        *many(100, PASS, "", "F"),
        *many(100, SKIP, "gone", "S"),
        *many(50, FAIL, "same", "A"),
    ]
    trouble = tuple(splat(f"WARNING: at f{chr(97 + at)}", "B1.a") for at in range(20))
    all_variants = [
        variant(run(*before), run(*now, trouble=trouble), f"kvm_amd.npt={at}")
        for at in range(variants)
    ]
    lines = text.summary(facts(), all_variants)
    assert len(lines) < 40
    assert max(map(len, lines)) <= 78
    said = "\n".join(lines)
    for heading in ("broken (", "different failure (", "fixed (", "newly skipped (", "only now"):
        assert heading in said, said
    assert "... and" in said and "more like these" in said
    whole = "\n".join(text.everything(facts(), all_variants))
    for each in now:
        assert each.state is PASS or each.name in whole


def test_cases_with_which_the_same_is_wrong_are_one_group() -> None:
    names = [f"PC3.a[gpa={at}]" for at in range(5)]
    broken = variant(
        run(*(result(name) for name in names)), run(*(result(name, FAIL, "bad") for name in names))
    )
    said = "\n".join(text.summary(facts(), [broken]))
    assert "broken (5):\n  PC3.a[gpa=0], and 4 more of PC3\n      bad" in said
    more = variant(
        run(result("Q1.a", SKIP), result("Q1.b", SKIP)), run(*map(result, ["Q1.a", "Q1.b"]))
    )
    assert "no longer skipped (2):\n  Q1 (2)" in "\n".join(text.summary(facts(), [more]))


def test_text_of_a_kernel_cannot_act_on_the_terminal() -> None:
    odd = variant(run(result("X1.a")), run(result("X1.a", FAIL, "\x1b[2J\nno difference")))
    for lines in (text.summary(facts(), [odd]), text.everything(facts(), [odd])):
        assert not any("\x1b" in line or "\n" in line for line in lines)


def test_a_parameter_that_does_not_take_is_noted() -> None:
    machine = {"kernel": "6.12", "parameters": {"kvm.tdp_mmu": "N", "kvm_amd.npt": "0"}}
    both = run(result("X1.a"), machine=machine)
    asked = ("kvm.tdp_mmu=1", "kvm_amd.npt=off", "kvm.none=1", "quiet", "other.thing=3")
    notes = variant(both, both, *asked).notes
    assert notes == [
        "kvm.tdp_mmu=1 was asked for, the kernel before has N",
        "kvm.tdp_mmu=1 was asked for, the kernel now has N",
        "kvm.none is unknown to the kernel before",
        "kvm.none is unknown to the kernel now",
    ]


def test_json_has_all_of_it() -> None:
    broken = variant(
        run(result("X1.a"), result("X2.b")),
        run(result("X1.a", FAIL, "bad"), result("X2.b"), trouble=(splat("BUG: x", "X1.a"),)),
    )
    data = json.loads(json.dumps(to_json(facts(), [broken])))
    assert (data["schema"], data["worse"], data["seed"]) == (1, True, 7)
    (found,) = data["variants"]
    assert [each["name"] for each in found["changes"]["broken"]] == ["X1.a"]
    assert found["changes"]["broken"][0]["now"][0]["message"] == "bad"
    assert found["kernel_log"][0]["title"] == "BUG: x" and found["kernel_log"][0]["new"]


# ---- what is run, and how often ----


class Kernels:
    """Stands for the jobs: gives each kernel's results by turns, and notes what it ran."""

    def __init__(self, before: Sequence[str], now: Sequence[str]) -> None:
        self.letters = [list(before), list(now)]
        self.ran: list[tuple[str, tuple[str, ...]]] = []

    def run(self, number: int, names: Sequence[str]) -> LabRun:
        letters = self.letters[number].pop(0)
        states = {"p": PASS, "s": SKIP}
        return run(
            *(
                result(name, states.get(letter, FAIL), "" if letter == "p" else letter)
                for name, letter in zip(names, letters, strict=True)
            )
        )

    def first(self, choices: Sequence[tuple[str, ...]] = ((),)) -> dict[Place, Came]:
        return {
            (number, choice): self.run(number, [f"X{at}.a" for at in range(len(letters[0]))])
            for choice in choices
            for number, letters in enumerate(self.letters)
        }

    def again(
        self, folders: Mapping[Place, Path], cases: Sequence[str], number: int, limit_s: float
    ) -> list[LabRun]:
        for place, folder in folders.items():
            when = ("before", "now")[place[0]]
            assert folder.name == f"{when}-{number + 1}" and limit_s == 240
            self.ran.append((when, tuple(cases)))
        return [self.run(place[0], cases) for place in folders]


def variants_of(kernels: Kernels, said: list[str] | None = None) -> list[Variant]:
    announce = (said if said is not None else []).append
    return list(variants(kernels.first(), (0, 1), kernels, Path("results"), announce))


def test_the_same_is_run_once() -> None:
    kernels = Kernels(["ppf"], ["ppf"])
    (only,) = variants_of(kernels)
    assert not only.worse and kernels.ran == []


def test_what_differs_is_run_again_until_it_is_clear() -> None:
    said: list[str] = []
    kernels = Kernels(["ppp", "pp", "p"], ["fpf", "fp", "p"])
    (only,) = variants_of(kernels, said)
    assert kernels.ran == [
        (when, names) for names in (("X0.a", "X2.a"), ("X2.a",)) for when in ("before", "now")
    ]
    assert [each.change for each in only.cases] == [Change.BROKEN, Change.SAME, Change.UNSTEADY]
    assert only.worse
    assert len(said) == 2 and "running 2 cases that differ again" in said[0]
    words = "\n".join(text.summary(facts(), [only]))
    assert "failed 0 of 3 times before, 1 of 3 now" in words


def test_two_different_failures_are_enough() -> None:
    kernels = Kernels(["p", "p"], ["f", "g"])
    (only,) = variants_of(kernels)
    assert only.worse and len(kernels.ran) == 2


def test_no_time_to_run_again_is_nothing_that_the_kernel_did() -> None:
    class Slow(Kernels):
        def again(self, folders: Mapping[Place, Path], *_: Any) -> list[LabRun]:
            return [run(planned=["X1.a"], problem="timed out", out_of_time=True) for _ in folders]

    (only,) = variants_of(Slow(["pf"], ["pp"]))
    assert [each.change for each in only.cases] == [Change.SAME, Change.FIXED]
    assert not only.worse and not only.problem("before")


def test_a_kernel_that_begins_nothing_is_not_tried_again() -> None:
    kernels = Kernels(["pp"], ["pp"])
    first = {**kernels.first(), (1, ()): KernelFailed("kernel x did not boot", "it panics")}
    (only,) = variants(first, (0, 1), kernels, Path("results"))
    assert only.worse and kernels.ran == []
    assert only.new_problem == "kernel x did not boot: it panics"


def test_unsteady_alone_is_not_worse() -> None:
    (only,) = variants_of(Kernels(["p", "p", "p"], ["f", "p", "p"]))
    assert not only.worse
    assert verdict([only]) == "nothing got worse: 1 unsteady"


def test_hundreds_that_differ_are_not_all_run_again() -> None:
    (only,) = variants_of(Kernels(["p" * 300, "p" * 50], ["f" * 300, "f" * 50]))
    assert len(only.of(Change.BROKEN)) == 300


def test_each_choice_is_a_variant() -> None:
    kernels = Kernels(["p"] * 3, ["p", "f", "f"])
    choices = [("a.x=0", "b.y=0"), ("a.x=0", "b.y=1")]
    found = list(variants(kernels.first(choices), (0, 1), kernels, Path("results")))
    assert [each.label for each in found] == ["a.x=0 b.y=0", "a.x=0 b.y=1"]
    assert [each.worse for each in found] == [False, True]


# ---- the command ----


MR6 = [each.name for each in select("MR6")]


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | PyvmmError]:
    """Kernels called a and b. Their jobs' cases end as the letters for them say, or in an error."""
    from pyvmm.lab import build, initramfs, qemu
    from pyvmm.validate.jobs import run as job_run

    kernels = {}
    for name in "ab":
        (tmp_path / name).write_text(name)
        kernels[name] = Kernel(name, tmp_path / name, "6.12")
    letters: dict[str, str | PyvmmError] = {}

    def run_job(job: Job, *_: object, again: bool) -> JobResult:
        assert isinstance(job.kernel, Named) and job.seed == 8 and job.beside == 3
        answer = letters[job.kernel.name]
        if isinstance(answer, PyvmmError):
            raise answer
        states = dict(zip(MR6, answer, strict=True))
        known = {"p": PASS, "s": SKIP, "f": FAIL}
        results = (result(name, known[states[name]]) for name in job.cases)
        machine = {"kernel": "6.12", "build_id": f"0{job.kernel.name}"}
        done = run(*results, machine=machine)
        return JobResult(job.name, KernelFacts(job.kernel.name, "6.12", ""), done, {})

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(qemu, "find_qemu", lambda: "qemu")
    monkeypatch.setattr(initramfs, "find_busybox", lambda: Path("busybox"))
    monkeypatch.setattr(build, "check_known", lambda name: None)
    monkeypatch.setattr(build, "find_or_build", lambda name, *_: kernels[name])
    monkeypatch.setattr(job_run, "run_job", run_job)
    return letters


CHECK = ["lab", "check", "--kernel", "a", "--kernel", "b", "--seed", "8", "-k", "MR6", "-j", "3"]
CHECK += ["--workers", "2"]


@pytest.mark.parametrize(
    ("before", "now", "status", "verdict"),
    [
        ("pp", "pp", 0, "no difference"),
        ("fp", "fp", 0, "no difference: 1 case fails on both kernels"),
        ("fp", "pp", 0, "nothing got worse: 1 fixed"),
        ("pp", "pf", 1, "WORSE: 1 broken"),
        ("ps", "ss", 1, "WORSE: 1 newly skipped"),
        ("ss", "ss", 4, "NOTHING COULD RUN on either kernel"),
    ],
)
def test_exit_status(
    before: str,
    now: str,
    status: int,
    verdict: str,
    jobs: dict[str, str | PyvmmError],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    jobs |= {"a": before, "b": now}
    assert main(CHECK) == status
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == verdict
    whole = tmp_path / "pyvmm/last-check/check.txt"
    assert lines[-1] == f"all of it: {whole}"
    assert whole.read_text().startswith(f"{verdict}\n")
    assert "seed 8" in told.out and "2 cases, 2 jobs on 2 labs at once, seed 8" in told.err
    assert main([*CHECK, "--json", "--results", str(tmp_path / "mine")]) == status
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == verdict
    assert json.loads((tmp_path / "mine/check.json").read_text()) == data
    assert (tmp_path / "mine/now/kernel.log").exists()
    # What the one before left is gone, and so are the jobs.
    assert {path.name.partition(".")[0] for path in (tmp_path / "pyvmm").iterdir()} == {
        "check", "last-check", "jobs",
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "pyvmm/jobs").iterdir()] == ["plans"]
    assert not list((tmp_path / "pyvmm/jobs/plans").iterdir())


def test_a_cache_of_another_user_is_said_before_anything_is_built(
    jobs: dict[str, str | PyvmmError],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    jobs |= {"a": "pp", "b": "pp"}
    from pyvmm.lab import build

    built: list[str] = []
    monkeypatch.setattr(build, "find_or_build", lambda name, *_: built.append(name))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert main(CHECK) == 125
    told = capsys.readouterr().err
    assert "it belongs to another user; XDG_CACHE_HOME names another place" in told
    assert not built and told.count("\n") == 1 and not list((tmp_path / "pyvmm").iterdir())


def test_files_that_other_systems_read(
    jobs: dict[str, str | PyvmmError], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs |= {"a": "pp", "b": "pf"}
    files = [tmp_path / "junit.xml", tmp_path / "kcidb.json"]
    words = ["--junit", str(files[0]), "--kcidb", str(files[1]), "--kcidb-origin", "me"]
    assert main([*CHECK, *words]) == 1
    top = ElementTree.fromstring(files[0].read_bytes())
    suites = {each.get("name"): (each.get("tests"), each.get("failures")) for each in top}
    assert suites == {
        "pyvmm.before.tests": ("2", "0"),
        "pyvmm.before.kernel": ("1", "0"),
        "pyvmm.now.tests": ("2", "1"),
        "pyvmm.now.kernel": ("1", "0"),
    }
    data = json.loads(files[1].read_text())
    assert [each["id"] for each in data["builds"]] == ["me:0a", "me:0b"]
    tests = [(each["build_id"], each["path"], each["status"]) for each in data["tests"]]
    assert len(tests) == 6 and ("me:0b", kcidb.path_of(MR6[1]), "FAIL") in tests
    assert main([*CHECK, *words[2:4]]) == 2
    assert "--kcidb-origin NAME is who you are" in capsys.readouterr().err


def test_a_run_as_a_report() -> None:
    """What ran again counts as it did more often, and the kernel's own trouble is there."""
    first = run(
        *(result("X1.a", FAIL, "once"), result("X2.b", FAIL, "twice")),
        planned=["X1.a", "X2.b", "X3.c"],
        trouble=(splat("BUG: x", "X1.a"), splat("BUG: x", "X2.b")),
        problem="died",
    )
    again = [run(result("X1.a"), result("X2.b", FAIL, "twice")) for _ in range(2)]
    found = report_of([first, *again])
    assert [(each.name, each.state) for each in found.results] == [
        ("X1.a", PASS),
        ("X2.b", FAIL),
        ("kernel", State.CRASH),
    ]
    assert found.results[2].message == "died; BUG: x" and found.not_run == ("X3.c",)
    assert found.why_not_run == "died"
    of_splats = report_of([replace(first, problem="")]).results[-1]
    assert (of_splats.state, of_splats.detail) == (FAIL, "BUG: x\na line")
    assert report_of([again[0]]).results[-1].state is PASS


def test_what_cannot_run_is_125_and_one_line(
    jobs: dict[str, str | PyvmmError], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for error in (
        KernelFailed("kernel b did not boot", "it has no console"),
        LabError("no room in the cache /x", "fewer than 64 MiB are free"),
    ):
        jobs |= {"a": "pp", "b": error}
        assert main(CHECK) == 125
        told = capsys.readouterr()
        assert told.err.splitlines()[1:] == [f"pyvmm: lab: {error}"]
        assert not told.out
        assert not list((tmp_path / "pyvmm").glob("check*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to compare: want --patch FILE, --series FILE, or --kernel BEFORE"),
        (("--source", "."), "nothing to compare"),
        (("--kernel", "default"), "1 --kernel: want two"),
        (("--kernel", "a", "--kernel", "b", "--patch", "c"), "it stands instead of"),
        (("--kernel", "default", "--kernel", "b"), "kernel 'b': there is none of this name"),
        (("--kernel", "default", "--kernel", "./b"), "kernel b: No such file"),
        (("--patch", __file__, "--cpus", "99"), "99 CPUs: the lab has 1 to 32"),
        (("--patch", __file__, "--memory", "1"), "1 MiB of memory"),
        (("--patch", __file__, "--param", "a b"), "kernel parameter 'a b'"),
        (("--patch", "/nowhere/p"), "patch /nowhere/p: want a file"),
        (("--source", "/nowhere", "--patch", __file__), "/nowhere"),
        (("--patch", __file__, "-k", "MR99"), "did you mean MR"),
        (("--patch", __file__, "--vary", "npt"), "'npt' is not NAME=VALUE,VALUE"),
        (("--patch", __file__, "--vary", "a.b=1", "--vary", "a.b=2"), "given twice"),
        (("--patch", __file__, "--vary", "a.b=" + ",".join("abcdefghi" * 1), "--vary",
          "c.d=" + ",".join("abcdefghi")), "81 combinations: at most 64"),
        (("--patch", __file__, "-j", "0"), "0 is not a number from 1 to 256"),
        (("--patch", __file__, "--timeout", "nan"), "nan is not a number of seconds"),
        (("--patch", __file__, "--results", "/dev/null/x"), "results folder /dev/null/x"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")  # nothing must come so far as to build
    try:
        status = main(["lab", "check", *words])
    except SystemExit as stopped:
        status = int(str(stopped.code))
    told = capsys.readouterr()
    assert status == 2, told.err
    assert said in told.err
    assert len(told.err.splitlines()) == 1 and not told.out
    assert not list(tmp_path.rglob("check.*"))
