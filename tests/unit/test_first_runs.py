"""The first runs of `lab check --workers`: cut into jobs, interrupted, gone on with; no lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.main import main
from pyvmm.lab.errors import LabError
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs import durations
from pyvmm.validate.jobs.first_runs import Engine, FirstRuns
from pyvmm.validate.jobs.job import Image, Job, Named
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.jobs.workers import Runner, run_jobs
from pyvmm.validate.kernels.lab_run import LabRun, Machine
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

CASES = select("memory_regions")
NAMES = [each.name for each in CASES]
MACHINE = Machine(parameters=("hugepages=16",))
CHOICES = [("kvm_amd.npt=0",), ("kvm_amd.npt=1",)]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Parts of half a minute, so that there are some.
    durations.record(CaseResult(name, "", "", "", State.PASS, duration_s=10) for name in NAMES)
    found = []
    for name in ("default", "patched"):
        image = tmp_path / name
        image.write_text(name)
        found.append(Kernel(name, image, "6.12"))
    return found


def runs(kernels: list[Kernel], **more: Any) -> FirstRuns:
    return FirstRuns(kernels[0], kernels[1], CHOICES, MACHINE, CASES, **more)


def engine(workers: int, run: Runner) -> Engine:
    return lambda jobs: run_jobs(jobs, workers, lambda line: None, run=run)


class Record:
    """Runs jobs by making a result up; keeps them as files, because each has its own process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.refuse = ""

    def __call__(self, job: Job, *_: object) -> JobResult:
        assert isinstance(job.kernel, Named)
        (self.folder / f"{job.kernel.name} {job.parameters[-1]} {job.name}").touch()
        if job.kernel.name == self.refuse:
            raise LabError("kernel patched", "it does not boot")
        state = State.FAIL if job.kernel.name == "patched" else State.PASS
        results = tuple(CaseResult(name, "", "", "", state) for name in job.cases)
        machine = {"parameters": list(job.parameters)}
        run = LabRun(job.cases, results, job.seed, 1.0, machine, kernel_log=(job.name,))
        facts = KernelFacts(job.kernel.name, "6.12", "")
        return JobResult(job.name, facts, run, {f"pyvmm-replay-{job.name}.json": "{}"})

    @property
    def jobs(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def test_both_kernels_with_each_choice(kernels: list[Kernel], tmp_path: Path) -> None:
    record = Record(tmp_path / "record")
    made = runs(kernels, seed=7)
    folder = tmp_path / "results"
    came = made.run(folder, engine(2, record))
    assert list(came) == CHOICES and made.seed == 7
    assert len(record.jobs) == made.count > 4
    for choice, (before, now) in came.items():
        for run, state in ((before, State.PASS), (now, State.FAIL)):
            assert run.planned == tuple(NAMES) == tuple(each.name for each in run.results)
            assert {each.state for each in run.results} == {state} and run.seed == 7
            assert run.machine["parameters"][-1] == choice[0]
        place = folder / choice[0] / "now"
        assert len(json.loads((place / "validate.json").read_text())["results"]) == len(NAMES)
        assert len(list(place.glob("pyvmm-replay-*"))) == made.count // 4
        assert len((place / "kernel.log").read_text().split()) == made.count // 4


def test_what_was_interrupted_goes_on_with_the_same_jobs(
    kernels: list[Kernel], tmp_path: Path
) -> None:
    record = Record(tmp_path / "record")
    record.refuse = "patched"
    first = runs(kernels)
    with pytest.raises(LabError, match="does not boot"):
        first.run(tmp_path, engine(1, record))
    asked = record.jobs
    assert 0 < len(asked) < first.count
    # Durations that were recorded meanwhile change nothing.
    durations.record(CaseResult(name, "", "", "", State.PASS, duration_s=1) for name in NAMES)
    again = runs(kernels)
    assert (again.seed, again.count) == (first.seed, first.count)
    record.refuse = ""
    again.run(tmp_path, engine(2, record))
    assert len(record.jobs) == again.count, "another job than before was asked for"
    again.forget()
    fresh = runs(kernels)
    assert fresh.seed != first.seed and fresh.count < first.count


def test_another_kernel_of_that_name_is_another_plan(kernels: list[Kernel], tmp_path: Path) -> None:
    first = runs(kernels)
    first.run(tmp_path, engine(2, Record(tmp_path / "record")))
    assert runs(kernels).seed == first.seed
    assert runs(kernels, seed=5).seed == 5
    kernels[1].image.write_text("something else")
    assert runs(kernels).seed != first.seed


@pytest.mark.parametrize("text", ["", "[]", "[1, [[]]]", '["x", [["a"]]]', "[1, 2]"])
def test_a_damaged_plan_is_none(kernels: list[Kernel], tmp_path: Path, text: str) -> None:
    first = runs(kernels)
    first.run(tmp_path, engine(2, Record(tmp_path / "record")))
    (plan,) = (tmp_path / "cache/pyvmm/jobs/plans").iterdir()
    plan.write_text(text)
    assert runs(kernels).count == first.count


def test_a_kernel_that_is_compared_with_itself_runs_twice(
    kernels: list[Kernel], tmp_path: Path
) -> None:
    record = Record(tmp_path / "record")
    made = FirstRuns(kernels[0], kernels[0], [()], MACHINE, CASES)
    made.run(tmp_path, engine(2, record))
    assert len(record.jobs) == made.count


def test_a_kernel_without_a_name_is_its_image(kernels: list[Kernel], tmp_path: Path) -> None:
    image = Kernel(str(kernels[0].image), kernels[0].image, "6.12")

    def run(job: Job, *_: object) -> JobResult:
        raise LabError("kernel", job.kernel.image if isinstance(job.kernel, Image) else "")

    with pytest.raises(LabError, match=str(image.image)):
        made = FirstRuns(image, image, [()], MACHINE, CASES)
        made.run(tmp_path, engine(1, run))


@pytest.mark.parametrize("words", [["-j", "1", "--patch", "/dev/null"], ["--series", "x.mbox"]])
def test_what_workers_do_not_go_with(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "check", "--workers", "2", *words]) == 2
    assert "--workers: it goes neither with -j nor with a series" in capsys.readouterr().err
