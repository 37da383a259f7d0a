"""A series, patch by patch: what is built and run, what is said; without building or booting."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from documents import ROOT, blocks

from pyvmm.cli import lab_series
from pyvmm.cli.lab_coverage import shown
from pyvmm.cli.lab_series import _reports
from pyvmm.cli.lab_series_text import summary
from pyvmm.cli.main import main
from pyvmm.lab import build as lab_build
from pyvmm.lab.build import Recipe
from pyvmm.lab.compiler_warnings import CompilerWarning, in_lines
from pyvmm.lab.errors import KernelFailed, LabError, LabUsageError, PatchRefused
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.selftests import DOES_NOT_BUILD, NOT_THERE, SelftestResult
from pyvmm.lab.series import Patch
from pyvmm.validate.jobs import run as job_run
from pyvmm.validate.jobs.job import Job, Named
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.kernels import series
from pyvmm.validate.kernels.changed_code import NO_CODE, CoveredLine
from pyvmm.validate.kernels.coverage_report import changed_lines
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.kernels.selftest_report import with_selftests
from pyvmm.validate.kernels.series import (
    STRICT,
    SeriesBuild,
    SeriesRun,
    Step,
    clear_results,
    write_patches,
)
from pyvmm.validate.kernels.series_verdict import SeriesFacts, is_broken, is_worse, to_json, verdict
from pyvmm.validate.kernels.two_kernels import Came, Place, as_run
from pyvmm.validate.results import junit, kcidb
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

DOCUMENT = ROOT / "docs/series.md"
SUBJECTS = (
    "KVM: tidy up",
    "KVM: ask SVM",
    "KVM: do not unmap",
    "KVM: unmap after all",
    "KVM: say so",
)


CHANGED = "--- a/x.c\n+++ b/x.c\n@@ -1,0 +2 @@\n"


def a_series(count: int = 5) -> list[Patch]:
    return [
        Patch(subject, number, count, 1, f"{CHANGED}+{subject}\n", "x.mbox")
        for number, subject in enumerate(SUBJECTS[:count], 1)
    ]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Step]]:
    """Builds a series with a stand-in for the kernel's build, which fails where it is told to."""

    def steps(
        failing: dict[int, LabError] | None = None,
        no_amd: Sequence[int] = (),
        same: Sequence[int] = (),
        warnings: dict[int, CompilerWarning] | None = None,
    ) -> list[Step]:
        def build(recipe: Recipe, *_: Any) -> Kernel:
            assert recipe.config == STRICT
            number = len(recipe.patches)
            if failing and number in failing:
                raise failing[number]
            image = tmp_path / f"bzImage{number}"
            image.write_text(f"kernel {min([number, *same]) if number in same else number}")
            return Kernel(f"6.12-{number}", image, "6.12.1")

        def compile_only(recipe: Recipe, *_: Any) -> str:
            assert recipe.config == STRICT + "# no AMD\n"
            if len(recipe.patches) in no_amd:
                raise LabError("the kernel does not build", "undefined reference to `svm_x'")
            return ""

        def of_patch(recipe: Recipe, text: str, *_: Any) -> list[CompilerWarning]:
            assert text.endswith(SUBJECTS[len(recipe.patches) - 1] + "\n")
            found = (warnings or {}).get(len(recipe.patches))
            return [found] if found else []

        monkeypatch.setattr(series, "build", build)
        monkeypatch.setattr(series, "compile_only", compile_only)
        monkeypatch.setattr(series, "warnings_of_patch", of_patch)
        patches = a_series()
        paths = write_patches(patches, tmp_path / "patches")
        configs = {"no-amd": "# no AMD\n"}
        return list(SeriesBuild(tmp_path, patches, paths, configs=configs).steps())

    return steps


class Jobs:
    """Runs two cases on kernels; PC8 fails on those whose image says so, and some do not boot."""

    def __init__(self, kernels: list[Kernel], failing: Sequence[int], dead: Sequence[int]) -> None:
        self.kernels = kernels
        self.failing = failing
        self.dead = dead
        self.booted: list[str] = []

    def run(self, kernel: Kernel) -> Came:
        contents = kernel.image.read_text()
        number = int(contents.split()[-1])
        self.booted.append(contents)
        if number in self.dead:
            return KernelFailed(f"kernel {kernel.name} did not boot", "it panics")
        wrong = number in self.failing
        results = (
            CaseResult("PC7.edges", "PC7", "a title", "tests", State.PASS, ""),
            CaseResult(
                "PC8.x", "PC8", "a title", "tests",
                State.FAIL if wrong else State.PASS, "page 3 is stale" if wrong else "",
            ),
        )  # fmt: skip
        return LabRun(tuple(each.name for each in results), results, 7, 1.0)

    def first(self, places: Iterable[Place]) -> dict[Place, Came]:
        return {place: self.run(self.kernels[place[0]]) for place in places}

    def again(self, folders: Mapping[Place, Path], *_: object) -> list[LabRun]:
        return [as_run(self.run(self.kernels[number]), 7) for number, _ in folders]


@pytest.fixture
def ran(tmp_path: Path) -> Callable[..., list[Step]]:
    booted: list[str] = []

    def steps(
        of: list[Step], failing: Sequence[int] = (), dead: Sequence[int] = (), each: bool = True
    ) -> list[Step]:
        run = SeriesRun(of, each=each)
        jobs = Jobs(run.kernels, failing, dead)
        folders = run.folders(tmp_path, [()])
        assert len(set(folders.values())) == len(run.kernels)
        first = jobs.first(folders)
        booted.extend(jobs.booted)
        return list(run.steps(first, jobs, tmp_path))

    steps.booted = booted  # type: ignore[attr-defined]
    return steps


FACTS = SeriesFacts("linux-source-6.12.tar.xz", 5, 7, 2, 2048)
Steps = Callable[..., list[Step]]


def test_each_patch_is_built_run_and_blamed_for_its_own(built: Steps, ran: Steps) -> None:
    steps = ran(built(no_amd=[2]), failing=[3])
    assert verdict(steps, FACTS) == (
        "WORSE: patch 2/5 does not build with no-amd; patch 3/5 breaks PC8.x"
    )
    assert steps[3].of(Change.BROKEN) == ["PC8.x"] and steps[4].of(Change.FIXED) == ["PC8.x"]
    assert [step.compared_with for step in steps] == [0, 0, 1, 2, 3, 4]
    assert is_broken(steps) and is_worse(steps, FACTS)
    text = "\n".join(summary(steps, FACTS))
    assert "2/5   yes     0    NO      no difference, 2 pass  KVM: ask SVM" in text
    assert "no-amd: the kernel does not build: undefined reference to `svm_x'" in text
    assert "broken: PC8.x: page 3 is stale" in text
    assert all(len(line) <= 78 for line in text.splitlines())
    found = to_json(steps, FACTS)
    assert json.loads(json.dumps(found))["steps"][2]["configs"]["no-amd"].startswith("the kernel")
    assert [step["worse"] for step in found["steps"]] == [False, False, False, True, False, False]


def test_without_each_the_base_and_the_end_are_compared(built: Steps, ran: Steps) -> None:
    steps = ran(built(), failing=[3], each=False)
    assert verdict(steps, FACTS) == "no difference"
    assert not is_worse(steps, FACTS)
    assert ran.booted == ["kernel 0", "kernel 5"]  # type: ignore[attr-defined]
    assert [bool(step.variants) for step in steps] == [False] * 5 + [True]


def test_without_each_no_patch_is_blamed_for_what_another_may_have_done(
    built: Steps, ran: Steps
) -> None:
    steps = ran(built(), failing=[3, 4, 5], each=False)
    assert verdict(steps, FACTS) == "WORSE: patches 1-5/5 break PC8.x"
    text = "\n".join(summary(steps, FACTS))
    assert "5/5   yes     0    yes     1 broken since base  KVM: say so" in text
    assert "1-5/5, which were run together\n  broken: PC8.x: page 3 is stale" in text
    assert "\n5/5 KVM: say so\n" not in text
    dead = ran(built(), dead=[5], each=False)
    assert verdict(dead, FACTS).startswith("WORSE: patches 1-5/5 end the kernel (")


def test_a_patch_that_does_not_build_may_have_broken_what_the_next_one_shows(
    built: Steps, ran: Steps
) -> None:
    no = LabError("the kernel does not build", "x.c:1:2: error: no")
    warning = CompilerWarning("x.c", 2, "variable 'y' set but not used")
    steps = ran(built({2: no}, warnings={3: warning}), failing=[3, 4, 5])
    assert verdict(steps, FACTS) == (
        "WORSE: patch 2/5 does not build; patch 3/5 has 1 compiler warning; "
        "patches 2-3/5 break PC8.x"
    )
    text = "\n".join(summary(steps, FACTS))
    assert "1 broken since 1 " in text and "2-3/5, which were run together\n  broken: PC8.x" in text
    assert "3/5 KVM: do not unmap\n  warning: x.c:2" in text


def test_a_patch_that_changes_no_kernel_costs_no_run(built: Steps, ran: Steps) -> None:
    steps = ran(built(same=[4, 5]))
    assert ran.booted == [f"kernel {number}" for number in range(5)]  # type: ignore[attr-defined]
    assert steps[5].variants and not steps[5].worse


def test_a_patch_that_does_not_build_is_passed_over(built: Steps, ran: Steps) -> None:
    steps = ran(built({2: LabError("the kernel does not build", "x.c:1:2: error: no")}))
    assert verdict(steps, FACTS) == "WORSE: patch 2/5 does not build"
    assert steps[3].compared_with == 1
    assert "x.c:1:2: error: no" in "\n".join(summary(steps, FACTS))


def test_after_a_patch_that_does_not_apply_nothing_comes(built: Steps, ran: Steps) -> None:
    refused = PatchRefused("patch 0003 does not apply to linux", "x.c: Hunk #1 FAILED at 3.")
    steps = ran(built({3: refused}))
    assert len(steps) == 4
    assert verdict(steps, FACTS) == "WORSE: patch 3/5 does not apply"
    text = "\n".join(summary(steps, FACTS))
    assert "x.c: Hunk #1 FAILED" in text and "4/5   -       -    -       not tried" in text


def test_a_kernel_that_does_not_boot(built: Steps, ran: Steps) -> None:
    steps = ran(built(), dead=[3])
    assert "patch 3/5 ends the kernel" in verdict(steps, FACTS) or "breaks" in verdict(steps, FACTS)
    assert "KERNEL DIED" in "\n".join(summary(steps, FACTS))


def test_a_warning_in_a_line_of_the_patch(built: Steps, ran: Steps) -> None:
    warning = CompilerWarning("x.c", 2, "variable 'y' set but not used")
    steps = ran(built(warnings={1: warning}))
    assert verdict(steps, FACTS) == "WORSE: patch 1/5 has 1 compiler warning"
    assert "warning: x.c:2: variable 'y' set but not used" in "\n".join(summary(steps, FACTS))


def test_what_did_not_build_before_is_nobodys(built: Steps, ran: Steps) -> None:
    steps = ran(built(no_amd=range(6)))
    assert verdict(steps, FACTS) == "no difference"
    text = "\n".join(summary(steps, FACTS))
    assert "base  yes     -    NO" in text and "1/5   yes     0    NO" in text


def test_kasan_and_errors_for_warnings_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM_WERROR depends on !KASAN: asked for with it, it would not stick, and nothing be built."""
    asked: list[str] = []

    def build(recipe: Recipe, *_: Any) -> Kernel:
        asked.append(recipe.config)
        return Kernel("k", tmp_path / "bzImage", "6.12.1")

    def compile_only(recipe: Recipe, *_: Any) -> str:
        asked.append(recipe.config)
        return ""

    monkeypatch.setattr(series, "build", build)
    monkeypatch.setattr(series, "compile_only", compile_only)
    said: list[str] = []
    without = "# CONFIG_KVM is not set\n"
    configs = {"plain": "CONFIG_X=y\n", "kasan": "CONFIG_KASAN=y\n", "without": without}
    for debug in (("kasan", "list"), ("lockdep",)):
        of = SeriesBuild(tmp_path, [], [], debug=debug, configs=configs, announce=said.append)
        assert len(list(of.steps())) == 1
    others = [STRICT + "CONFIG_X=y\n", "CONFIG_KASAN=y\n", without]
    assert asked == ["", *others, STRICT, *others]
    assert len(said) == 1 and "KASAN" in said[0]


def test_what_kernels_watch_for_is_told(built: Steps) -> None:
    """Who reads it in a cover letter has to know that lockdep looked on, and that KASAN did not."""
    base, *others = built()
    assert base.kernel is not None
    watching = replace(base.kernel, debug=("lockdep", "list"))
    assert "watch themselves" not in "\n".join(summary([base, *others], FACTS))
    told = summary([replace(base, kernel=watching), *others], FACTS)
    assert told[3] == "kernels that watch themselves for lockdep, list"


def test_only_the_patch_that_broke_a_build_is_blamed(built: Steps, ran: Steps) -> None:
    error = LabError("the kernel does not build", "x.c:1:2: error: no")
    steps = ran(built({3: error, 4: error}, no_amd=(2, 3, 5)))
    assert verdict(steps, FACTS) == (
        "WORSE: patch 2/5 does not build with no-amd; patch 3/5 does not build; "
        "patch 5/5 does not build with no-amd"
    )
    text = "\n".join(summary(steps, FACTS))
    assert "3/5   NO      -    NO" in text and "4/5   NO      -    yes" in text
    assert text.count("x.c:1:2: error: no") == 1
    assert to_json(steps, FACTS)["steps"][4]["problem"] == str(error)


def test_the_command_runs_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every patch and the source, two labs at once; the second patch breaks a case."""
    names = [each.name for each in select("MR6")]

    def build(recipe: Recipe, *_: Any) -> Kernel:
        image = tmp_path / f"bzImage{len(recipe.patches)}"
        image.write_text(image.name)
        return Kernel(f"6.12-{len(recipe.patches)}", image, "6.12")

    def run_job(job: Job, *_: object, again: bool) -> JobResult:
        assert isinstance(job.kernel, Named) and job.seed == 5
        (tmp_path / f"ran {job.kernel.name} {job.name}").touch()
        wrong = job.kernel.name == "6.12-2"
        results = tuple(
            CaseResult(name, "MR6", "", "tests", State.FAIL if wrong else State.PASS)
            for name in job.cases
        )
        machine = {"kernel": "6.12", "build_id": job.kernel.name}
        return JobResult(
            job.name, KernelFacts("", "", ""), LabRun(job.cases, results, 5, 1.0, machine), {}
        )

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(series, "build", build)
    monkeypatch.setattr(series, "warnings_of_patch", lambda *_: [])
    monkeypatch.setattr(job_run, "run_job", run_job)
    monkeypatch.setattr(lab_series, "_check_programs", lambda options: None)
    write_patches(a_series(3), tmp_path / "patches")
    words = ["lab", "check", "--series", str(tmp_path / "patches"), "--each", "-k", "MR6"]
    words += ["--seed", "5", "--workers", "2", "--junit", str(tmp_path / "junit.xml")]
    assert main([*words, "--results", str(tmp_path / "results")]) == 1
    told = capfd.readouterr()
    assert told.out.startswith(f"WORSE: patch 2/3 breaks {names[0]} and 1 more")
    assert "2 cases, 4 jobs on 2 labs at once, seed 5" in told.err
    # The first runs of four kernels, and three of them again: that of patch 2 is in both pairs.
    assert len(list(tmp_path.glob("ran *"))) == 4 + 3
    top = ElementTree.parse(tmp_path / "junit.xml").getroot()
    failures = {suite.get("name"): suite.get("failures") for suite in top}
    assert failures["pyvmm.patch 2.tests"] == "2" and failures["pyvmm.base.tests"] == "0"
    assert len(failures) == 8 and top.get("failures") == "2"
    assert (tmp_path / "results/2/validate.json").exists()
    assert (tmp_path / "results/1-2/now-2/validate.json").exists()
    assert not list((tmp_path / "cache/pyvmm/jobs/plans").iterdir())


def test_programs_that_are_missing_are_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def build(*_: Any) -> Kernel:
        raise AssertionError("QEMU is missing, and a kernel is built")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(series, "build", build)
    write_patches(a_series(3), tmp_path / "patches")
    words = ["lab", "check", "--series", str(tmp_path / "patches"), "-k", "MR6"]
    assert main(words) == 125
    assert capfd.readouterr().err.startswith("pyvmm: lab: qemu-system-x86_64: not found; run")


LINK = (
    "diff --git a/tools/link b/tools/link\nnew file mode 120000\nindex 000000000000..0123456789ab\n"
)
BINARY = "diff --git a/tools/x.bin b/tools/x.bin\nnew file mode 100644\nindex 000000000000..1\n"
BINARY += "GIT binary patch\nliteral 8\nPcmYew%wtF_s;mG249^1o\n\n"


@pytest.mark.parametrize(
    ("diff", "cause"),
    [
        (LINK, "tools/link: it is a symbolic link, and these are not supported"),
        (BINARY, "tools/x.bin: git binary diffs are not supported"),
        (f"{CHANGED}wrapped\n", "x.c: 'wrapped' is no line of the hunk @@ -1,0 +2 @@"),
    ],
)
def test_what_can_never_be_applied_is_told_before_anything_is_built(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    diff: str,
    cause: str,
) -> None:
    """With the patch and the file."""

    def build(*_: Any, **__: Any) -> Kernel:
        raise AssertionError("a kernel is built")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(series, "build", build)
    monkeypatch.setattr(lab_build, "build", build)
    head = "From: a@example.org\nSubject: [PATCH {}/2] KVM: change {}\n\n---\n"
    for number, text in enumerate((f"{CHANGED}+x\n", diff), 1):
        path = tmp_path / f"{number:04}.patch"
        path.write_text(head.format(number, number) + text)
    assert main(["lab", "check", "--series", str(tmp_path), "-k", "MR6"]) == 2
    told = f"patch 2/2 (KVM: change 2): {cause}; leave it out, or mend it\n"
    assert capfd.readouterr().err == f"pyvmm: lab: series {tmp_path}: {told}"
    assert main(["lab", "check", "--patch", str(path), "-k", "MR6"]) == 2
    assert capfd.readouterr().err == f"pyvmm: lab: patch {path}: {cause}\n"


def test_results_of_an_earlier_series_go(tmp_path: Path) -> None:
    """And nothing else: a person's mails and notes are no results."""
    write_patches(a_series(5), tmp_path / "patches")
    names = "5/validate.json 4-5/now-2/kernel.log 3/mine.txt 3/kernel.log check.txt coverage.html"
    for name in [*names.split(), "before/validate.json", "patches/notes"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clear_results(tmp_path)
    write_patches(a_series(2), tmp_path / "patches")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "3/mine.txt",
        "before/validate.json",
        "patches/0001-KVM-tidy-up.patch",
        "patches/0002-KVM-ask-SVM.patch",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "before", "patches"]
    mail = tmp_path / "patches/0007-x.patch"
    mail.write_text(f"From: a@example.org\n\n{CHANGED}+x\n")
    with pytest.raises(LabUsageError, match=r"0007-x\.patch in .* is a mail, and none that a"):
        clear_results(tmp_path)
    mail.unlink()
    with pytest.raises(LabUsageError, match="is where a check keeps the patches"):
        clear_results(tmp_path, tmp_path / "patches")
    assert (tmp_path / "patches/0001-KVM-tidy-up.patch").exists()


def test_a_patch_that_does_not_build_is_in_junit(built: Steps, ran: Steps) -> None:
    error = LabError("the kernel does not build", "x.c:1:2: error: no")
    reports = _reports(ran(built({3: error})), 7, ())
    assert list(reports) == ["base", *(f"patch {number}" for number in range(1, 6))]
    kernels = {name: report.results[-1] for name, report in reports.items()}
    assert {each.name for each in kernels.values()} == {"kernel"}
    (dead,) = [name for name, each in kernels.items() if each.state is State.CRASH]
    assert (dead, kernels[dead].message) == ("patch 3", str(error))
    # The end of a series that is no kernel: the catalogue ran on nothing to compare.
    (end,) = _reports(ran(built({5: error}), each=False), 7, ()).values()
    assert end.results[-1].state is State.CRASH


def test_selftests_are_in_junit_before_and_after(built: Steps, ran: Steps) -> None:
    def ended(outcome: str, said: str = "", *words: str) -> SelftestResult:
        return SelftestResult(("guest_memfd_test", *words), outcome, said, 2.0)

    pairs = [
        (ended("passed", "all of it"), ended("failed", "fd != -1")),
        (ended(NOT_THERE, "", "-n", "2"), ended(DOES_NOT_BUILD, "x.c:1:1: error: no", "-n", "2")),
    ]
    reports = _reports(ran(built(), each=False), 7, pairs)
    assert list(reports) == ["base", "patch 5"]
    top = ElementTree.fromstring(junit.to_xml(reports))
    suites = {suite.get("name"): suite for suite in top}
    before, now = suites["pyvmm.base.selftests"], suites["pyvmm.patch 5.selftests"]
    told = [
        [(each.get("name"), *[(inside.tag, inside.get("message")) for inside in each])
         for each in suite.iter("testcase")]
        for suite in (before, now)
    ]  # fmt: skip
    one, other = "selftest.guest_memfd_test", "selftest.guest_memfd_test[-n 2]"
    assert told == [
        [(one,), (other, ("skipped", "not there"))],
        [
            (one, ("failure", "fd != -1")),
            (other, ("failure", "does not build: x.c:1:1: error: no")),
        ],
    ]
    assert "pyvmm.base.tests" in suites and top.get("failures") == "2"


def test_selftests_beside_varied_parameters_are_of_the_same_kernel() -> None:
    """KCIDB wants to know its build, and the parameters were not theirs."""
    machine = {"kernel": "6.12", "build_id": "0a1b", "parameters": {"kvm_amd.npt": "0"}}
    reports = {"base kvm_amd.npt=0": Report(machine, 7, 1.0, ())}
    passed = SelftestResult(("guest_memfd_test",), "passed", "", 2.0)
    found = with_selftests(reports, [(passed, passed)], "base", "patch 1", 7)
    assert list(found) == ["base kvm_amd.npt=0", "base", "patch 1"]
    assert found["base"].machine == {"kernel": "6.12", "build_id": "0a1b"}
    assert [each.state for each in found["base"].results] == [State.PASS]
    build = kcidb.described("tester", "0a1b", "6.12")
    (test,) = kcidb.to_json(found["base"], build, "run")["tests"]
    assert (test["path"], test["status"]) == ("pyvmm.selftest.guest_memfd_test", "PASS")


def test_warnings_are_those_of_touched_lines() -> None:
    said = (
        "  CC      virt/kvm/x.o\n"
        "../virt/kvm/x.c:3:5: warning: one [-Wone]\n"
        "/cache/src/virt/kvm/x.c:4:5: warning: two\n"
        "../virt/kvm/x.c:3:5: warning: one [-Wone]\n"
        "../virt/kvm/y.c:3:5: warning: elsewhere\n"
    )
    assert in_lines(said, {"virt/kvm/x.c": {3}}) == [
        CompilerWarning("virt/kvm/x.c", 3, "one [-Wone]")
    ]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--each", "--patch", "x"], "it is for a series"),
        (["--series", "x", "--range", "a..b"], "one of them"),
        (["--series", "x", "--patch", "y"], "it stands instead of"),
        (["--range", "a..b"], "it wants a git tree"),
        (["--series", "x", "--source", "99.9"], "'pyvmm lab setup --source 99.9' gets one"),
        (["--series", "/nowhere.mbox"], "there is no such file"),
        (["--series", "x", "--build-config", "a=b", "--build-config", "a=c"], "given twice"),
    ],
)
def test_requests_that_are_wrong(
    words: list[str], cause: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "check", *words]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and cause in lines[0]


def test_the_documents_example_is_what_is_said(built: Steps, ran: Steps) -> None:
    file = "virt/kvm/kvm_main.c"
    lines = [
        CoveredLine(file, 1712, "\tif (change == KVM_MR_DELETE)", 41, (40, 1), ("SL1.delete",)),
        CoveredLine(file, 1713, "\t\tr = -EBUSY;", NO_CODE),
        CoveredLine(file, 1720, "\tkvm_zap(kvm);", 0),
    ]
    told = "\n".join([*summary(ran(built()), FACTS), *shown(changed_lines(lines))])
    (example,) = (each for each in blocks(DOCUMENT) if each.text.startswith("no difference"))
    assert example.text.rstrip("\n") == told
