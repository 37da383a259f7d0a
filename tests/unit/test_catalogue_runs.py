"""The catalogue on kernels: cut into jobs, interrupted, gone on with; no lab."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from pyvmm.errors import PyvmmError
from pyvmm.lab.errors import KernelFailed, LabError
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs import durations
from pyvmm.validate.jobs.job import Image, Job, Named
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.jobs.runs import Runs
from pyvmm.validate.jobs.workers import Engine, Outcome, Runner, run_jobs
from pyvmm.validate.kernels.lab_run import LabRun, Trouble
from pyvmm.validate.kernels.two_kernels import Choice, Place
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

CASES = select("memory_regions")
NAMES = [each.name for each in CASES]
Came = Generator[tuple[Job, Outcome], None, None]
CHOICES: list[Choice] = [("kvm_amd.npt=0",), ("kvm_amd.npt=1",)]


def took(seconds: float) -> None:
    """Every case takes so long, on any kernel."""
    job = Job(Named("another"), tuple(NAMES), 0)
    cases = (CaseResult(name, "", "", "", State.PASS, duration_s=seconds) for name in NAMES)
    durations.record(job, cases)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Parts of half a minute, so that there are some.
    took(10)
    found = []
    for name in ("default", "patched"):
        image = tmp_path / name
        image.write_text(name)
        found.append(Kernel(name, image, "6.12"))
    return found


def runs(
    kernels: list[Kernel], engine: Engine, choices: list[Choice] = CHOICES, seed: int | None = None
) -> Runs:
    template = Job(Named("default"), tuple(NAMES), 0)
    return Runs(kernels, choices, template, engine, seed=seed)


def engine(workers: int, run: Runner) -> Engine:
    return lambda jobs: run_jobs(jobs, workers, lambda line: None, run=run)


def folders(folder: Path, choices: list[Choice] = CHOICES) -> dict[Place, Path]:
    return {
        (number, choice): folder / f"{number}{''.join(choice)}"
        for choice in choices
        for number in (0, 1)
    }


class Record:
    """Runs jobs by making a result up; keeps them as files, because each has its own process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.refuse: PyvmmError | None = None

    def __call__(self, job: Job, *_: object) -> JobResult:
        assert isinstance(job.kernel, Named)
        (self.folder / f"{job.kernel.name} {job.parameters[-1]} {job.name}").touch()
        if job.kernel.name == "patched" and self.refuse is not None:
            raise self.refuse
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
    places = folders(tmp_path / "results")
    with runs(kernels, engine(2, record), seed=7) as made:
        came = made.first(places)
        assert made.seed == 7 and len(record.jobs) == made.count > 4
    assert list(came) == list(places)
    for (number, choice), run in came.items():
        assert isinstance(run, LabRun)
        assert run.planned == tuple(NAMES) == tuple(each.name for each in run.results)
        assert {each.state for each in run.results} == {State.FAIL if number else State.PASS}
        assert run.machine["parameters"][-1] == choice[0] and run.seed == 7
        place = places[number, choice]
        assert len(json.loads((place / "validate.json").read_text())["results"]) == len(NAMES)
        assert len(list(place.glob("pyvmm-replay-*"))) == made.count // 4
        assert len((place / "kernel.log").read_text().split()) == made.count // 4


def test_the_order_in_which_parts_come_changes_nothing(
    kernels: list[Kernel], tmp_path: Path
) -> None:
    def run(job: Job) -> JobResult:
        splat = Splat(f"BUG in {job.cases[0]}", (job.cases[0],))
        name = job.cases[0]
        died = LabRun(
            job.cases, (), job.seed, 1.0, {}, (Trouble(splat),), f"died in {name}", False, (name,)
        )
        return JobResult(job.name, KernelFacts("default", "6.12", ""), died, {})

    came, logs = [], []
    for step in (1, -1):

        def engine(jobs: Iterable[Job], step: int = step) -> Came:
            for job in list(jobs)[::step]:
                yield job, run(job)

        with runs(kernels, engine, [()], seed=7) as made:
            assert made.count > 2
            came.append(made.first(folders(tmp_path, [()])))
            logs.append((tmp_path / "0/kernel.log").read_text())
    assert came[0] == came[1] and logs[0] == logs[1]


def test_some_cases_again_are_other_jobs(kernels: list[Kernel], tmp_path: Path) -> None:
    record = Record(tmp_path / "record")
    places = {place: path for place, path in folders(tmp_path).items() if place[1] == CHOICES[0]}
    with runs(kernels, engine(2, record)) as made:
        for number in (1, 2):
            before, now = made.again(places, NAMES[:2], number, 5.0)
            assert before.planned == now.planned == tuple(NAMES[:2])
        assert len(record.jobs) == 4
        assert (tmp_path / f"1{CHOICES[0][0]}/validate.json").exists()


def test_what_was_interrupted_goes_on_with_the_same_jobs(
    kernels: list[Kernel], tmp_path: Path
) -> None:
    record = Record(tmp_path / "record")
    record.refuse = LabError("no room", "none")
    with runs(kernels, engine(1, record)) as first, pytest.raises(LabError, match="no room"):
        first.first(folders(tmp_path))
    asked = record.jobs
    assert len(asked) == first.count, "the rest goes on"
    # Durations that were recorded meanwhile change nothing.
    took(1)
    record.refuse = None
    with runs(kernels, engine(2, record)) as again:
        assert (again.seed, again.count) == (first.seed, first.count)
        again.first(folders(tmp_path))
        assert record.jobs == asked, "another job than before was asked for"
        again.forget()
    assert not list((tmp_path / "cache/pyvmm/jobs/plans").iterdir())
    with runs(kernels, engine(2, record)) as fresh:
        assert fresh.seed != first.seed and fresh.count < first.count


def test_a_kernel_that_does_not_boot_is_tried_once(kernels: list[Kernel], tmp_path: Path) -> None:
    record = Record(tmp_path / "record")
    record.refuse = KernelFailed("kernel patched did not boot", "it panics")
    with runs(kernels, engine(1, record), [()]) as made:
        came = made.first(folders(tmp_path, [()]))
        assert isinstance(came[0, ()], LabRun) and str(came[1, ()]) == str(record.refuse)
        assert len(record.jobs) == made.count // 2 + 1
        before, now = made.again(folders(tmp_path, [()]), NAMES[:1], 1, 5.0)
        assert before.planned and now.problem == "kernel patched did not boot: it panics"


def nobody(job: Job, *_: object) -> JobResult:
    raise AssertionError


def test_shorter_jobs_are_more(kernels: list[Kernel], tmp_path: Path) -> None:
    template = Job(Named("default"), tuple(NAMES), 0)
    counts = []
    for job_s in (60.0, 15.0):
        with Runs(kernels, [()], template, engine(1, nobody), job_s=job_s, seed=7) as made:
            counts.append(made.count)
    assert counts[1] >= 3 * counts[0]


def seed_of(kernels: list[Kernel], seed: int | None = None) -> int:
    with runs(kernels, engine(1, nobody), seed=seed) as made:
        return made.seed


def test_another_kernel_of_that_name_is_another_plan(kernels: list[Kernel]) -> None:
    first = seed_of(kernels)
    assert seed_of(kernels) == first
    assert seed_of(kernels, 5) == 5
    kernels[1].image.write_text("something else")
    assert seed_of(kernels) != first


DAMAGED = ["", "[]", "[1, [[]]]", '["x", [["a"]]]', "[1, 2]", '[1, [["a", 5]]]', "[1e999, []]"]


@pytest.mark.parametrize("text", [*DAMAGED, "[" * 100_000])
def test_a_damaged_plan_is_none(kernels: list[Kernel], tmp_path: Path, text: str) -> None:
    seed_of(kernels)
    (plan,) = (tmp_path / "cache/pyvmm/jobs/plans").rglob("plan.json")
    plan.write_text(text)
    assert seed_of(kernels) != 1


def test_the_same_check_is_done_by_one_at_a_time(kernels: list[Kernel]) -> None:
    """The second one begins when the first has ended, with a plan of its own."""
    said: list[str] = []
    first, second = (runs(kernels, engine(1, nobody)) for _ in range(2))
    second._announce = said.append
    with first:
        seed = first.seed
        waits = threading.Thread(target=second.__enter__)
        waits.start()
        while not said:
            time.sleep(0.01)
        first.forget()
    waits.join(30)
    assert "waiting for another check of the same" in said[0]
    assert second.seed != seed
    second.__exit__(None, None, None)


def test_a_kernel_that_is_compared_with_itself_runs_twice(
    kernels: list[Kernel], tmp_path: Path
) -> None:
    record = Record(tmp_path / "record")
    with runs([kernels[0], kernels[0]], engine(2, record), [()]) as made:
        made.first(folders(tmp_path, [()]))
        assert len(record.jobs) == made.count


def test_a_kernel_without_a_name_is_its_image(kernels: list[Kernel], tmp_path: Path) -> None:
    image = Kernel(str(kernels[0].image), kernels[0].image, "6.12")

    def run(job: Job, *_: object) -> JobResult:
        raise LabError("kernel", job.kernel.image if isinstance(job.kernel, Image) else "")

    with (
        runs([image, image], engine(1, run), [()]) as made,
        pytest.raises(LabError, match=str(image.image)),
    ):
        made.first(folders(tmp_path, [()]))
