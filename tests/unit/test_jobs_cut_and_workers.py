"""Work cut into jobs, and several jobs at once; without a lab."""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pyvmm.cli.main import main
from pyvmm.errors import PyvmmError
from pyvmm.lab.errors import KernelFailed, LabError
from pyvmm.validate.jobs import durations, workers
from pyvmm.validate.jobs.cut import cut, cut_job, put_together
from pyvmm.validate.jobs.durations import Durations
from pyvmm.validate.jobs.job import Built, Job, Named, load
from pyvmm.validate.jobs.reports import reports_of
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.jobs.runs import _Pending
from pyvmm.validate.jobs.workers import Estimate, labs_at_once, run_jobs
from pyvmm.validate.kernels.lab_report import report_of
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import all_cases, select

pytestmark = pytest.mark.usefixtures("cache")
Tell = Callable[[str], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyvmm"


# ---- cutting ----


def test_parts_have_every_case_once_and_take_about_the_same_time(rng: random.Random) -> None:
    cases = all_cases()
    took = {each.name: rng.expovariate(1.0) for each in cases}
    parts = cut(cases, took, job_s=40)
    assert len(parts) > 5
    assert sorted(name for part in parts for name in part) == sorted(took)
    sums = [
        sum(durations.weight_of(each, took) for each in cases if each.name in set(part))
        for part in parts
    ]
    assert max(sums) - min(sums) < 12, sums
    assert sums == sorted(sums, reverse=True)
    place = {each.name: at for at, each in enumerate(cases)}
    assert all(list(part) == sorted(part, key=place.__getitem__) for part in parts)
    assert cut(cases, took, job_s=40) == parts


def test_few_cases_are_few_parts() -> None:
    cases = select("MR6")
    assert len(cut(cases, {}, 1e-3)) == len(cut(cases, {}, 1e6, least=9)) == len(cases)
    assert cut(cases, {}, 1e6) == [tuple(each.name for each in cases)]


def test_a_case_that_is_alone_takes_its_whole_time() -> None:
    alone = next(each for each in all_cases() if each.alone)
    beside = next(each for each in all_cases() if not each.alone)
    took = {alone.name: 4.0, beside.name: 4.0}
    assert durations.weight_of(alone, took) == 2 * durations.weight_of(beside, took) == 4.0


def result(name: str, state: State = State.PASS, seconds: float = 0.0) -> CaseResult:
    return CaseResult(name, name.split(".")[0], "", "tests", state, duration_s=seconds)


def run_of(job: Job, **more: object) -> LabRun:
    results = tuple(result(name) for name in job.cases)
    machine = {"kernel": "6.12", "races": "seen" if "MR7" in job.expression else ""}
    return LabRun(job.cases, results, job.seed, 2.0, machine, **more)  # type: ignore[arg-type]


def test_parts_that_are_put_together_are_the_whole() -> None:
    whole = Job(Named("default"), tuple(each.name for each in select("memory_regions")), 7)
    jobs = cut_job(whole, {}, 1.0)
    assert len(jobs) > 3 and {each.seed for each in jobs} == {7}
    together = put_together([run_of(job) for job in reversed(jobs)])
    assert together.planned == tuple(each.name for each in together.results) == whole.cases
    assert (together.seed, together.duration_s) == (7, 2.0 * len(jobs))
    assert together.machine == {"kernel": "6.12", "races": "seen"}
    broken = [run_of(jobs[0]), run_of(jobs[1], problem="died", out_of_time=True)]
    assert put_together(broken).problem == "died" and put_together(broken).out_of_time
    broken += [run_of(jobs[2], problem="the lab's kernel died")]
    together = put_together(broken)
    assert together.problem == "the lab's kernel died" and not together.out_of_time
    (kernel,) = [each for each in report_of([together]).results if each.name == "kernel"]
    assert (kernel.state, kernel.message) == (State.CRASH, "the lab's kernel died")


# ---- workers ----


JOBS = [Job(Named("default"), (select("MR6")[0].name,), seed) for seed in range(5)]


def done(job: Job) -> JobResult:
    return JobResult(job.name, KernelFacts("default", "6.12", "0a"), run_of(job), {})


def test_every_job_has_its_result(no_leak: None) -> None:
    said: list[str] = []
    lines: list[str] = []

    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        tell(f"job of seed {job.seed}")
        if job.seed == 1:
            announce("a word to people")
        if job.seed == 2:
            raise LabError("kernel x", "it does not boot")
        if job.seed == 3:
            raise OSError(28, "No space left on device", "/cache")
        return done(job)

    outcomes = dict(run_jobs(JOBS, 2, said.append, lines.append, run))
    assert outcomes[JOBS[0]] == done(JOBS[0])
    assert [str(each) for each in outcomes.values() if isinstance(each, PyvmmError)] in (
        [error := "kernel x: it does not boot", full := "/cache: No space left on device"],
        [full, error],
    )
    assert len(outcomes) == 5 and said == ["a word to people"]
    assert any("job of seed" in line for line in lines) and lines[-1].startswith("5/5 jobs")


def test_a_process_that_dies_is_tried_once_more(tmp_path: Path, no_leak: None) -> None:
    said: list[str] = []

    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        tries = tmp_path / job.name
        tries.mkdir(exist_ok=True)
        count = len(list(tries.iterdir()))
        (tries / str(count)).touch()
        if job.seed == 0 or (job.seed == 1 and count == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return done(job)

    outcomes = dict(run_jobs(JOBS[:3], 2, said.append, run=run))
    assert "its process died; it was the second try" in str(outcomes[JOBS[0]])
    assert outcomes[JOBS[1]] == done(JOBS[1]) and outcomes[JOBS[2]] == done(JOBS[2])
    assert len(said) == 2 and all("once more" in line for line in said)


def test_a_process_that_dies_in_the_middle_of_a_message(tmp_path: Path, no_leak: None) -> None:
    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        if job.seed == 0 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            pipe = inspect.getclosurevars(announce).nonlocals["connection"].fileno()
            os.write(pipe, struct.pack("!i", 100) + b"the beginning of 100 bytes")
            os.kill(os.getpid(), signal.SIGKILL)
        return done(job)

    said: list[str] = []
    outcomes = dict(run_jobs(JOBS[:2], 2, said.append, run=run))
    assert outcomes == {job: done(job) for job in JOBS[:2]}
    assert len(said) == 1 and "its process died; trying it once more" in said[0]


def test_a_process_that_is_stopped_for_long_is_killed_and_its_job_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leak: None
) -> None:
    monkeypatch.setattr(workers, "_STOPPED_S", 0.3)
    monkeypatch.setattr(workers, "_TICK_S", 0.05)

    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        tell("under way")
        if job.seed == 0 or (job.seed == 1 and not (tmp_path / "stopped").exists()):
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return done(job)

    said: list[str] = []
    outcomes = dict(run_jobs(JOBS[1:3], 2, said.append, run=run))
    assert outcomes == {job: done(job) for job in JOBS[1:3]}
    (line,) = said
    assert line == f"job {JOBS[1].name}: its process was stopped for 0 s and killed; " + (
        "trying it once more"
    )
    outcomes = dict(run_jobs(JOBS[:1], 2, said.append, run=run))
    assert str(outcomes[JOBS[0]]).endswith("was stopped for 0 s and killed; it was the second try")


def test_a_process_that_is_stopped_in_the_middle_of_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leak: None
) -> None:
    """Nobody waits for the rest of it."""
    monkeypatch.setattr(workers, "_STOPPED_S", 0.3)
    monkeypatch.setattr(workers, "_TICK_S", 0.05)
    log = tuple(f"{number:1000}" for number in range(20_000))  # many times what a pipe takes

    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        pipe = inspect.getclosurevars(announce).nonlocals["connection"].fileno()

        def stop() -> None:
            size = bytearray(4)
            while not any(size):
                fcntl.ioctl(pipe, termios.FIONREAD, size)
            os.kill(os.getpid(), signal.SIGSTOP)

        if job.seed == 1 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            threading.Thread(target=stop, daemon=True).start()
        return replace(done(job), run=replace(run_of(job), kernel_log=log))

    said: list[str] = []
    outcomes = dict(run_jobs(JOBS[1:3], 2, said.append, run=run))
    logs = [each.run.kernel_log for each in outcomes.values() if isinstance(each, JobResult)]
    assert logs == [log, log]
    assert len(said) == 1 and "was stopped for 0 s and killed; trying it once more" in said[0]


def test_a_process_that_is_stopped_for_a_moment_goes_on(
    monkeypatch: pytest.MonkeyPatch, no_leak: None
) -> None:
    monkeypatch.setattr(workers, "_TICK_S", 0.05)
    stopped: list[bool] = []

    def watch(line: str) -> None:
        if line.endswith(" is stopped") and not any(stopped):
            pid = int(line.split()[-3])
            while not workers._is_stopped(pid):
                time.sleep(0.01)
            stopped.append(True)
            os.kill(pid, signal.SIGCONT)

    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        tell(f"{os.getpid()} is stopped")
        os.kill(os.getpid(), signal.SIGSTOP)
        return done(job)

    outcomes = dict(run_jobs(JOBS[:1], 1, lambda line: None, watch, run))
    assert outcomes == {JOBS[0]: done(JOBS[0])} and stopped == [True]


def test_who_is_stopped_is_ended_with_the_others(no_leak: None) -> None:
    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        if job.seed:
            os.kill(os.getpid(), signal.SIGSTOP)
        return done(job)

    started = time.monotonic()
    outcomes = run_jobs(JOBS[:2], 2, lambda line: None, run=run)
    next(outcomes)
    outcomes.close()
    assert time.monotonic() - started < workers._ONCE_MORE_S


def test_as_many_at_once_as_there_are_workers(tmp_path: Path) -> None:
    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        mine = tmp_path / job.name
        mine.touch()
        # Everybody waits until there are two, and the last for nobody.
        until = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and job != JOBS[3] and time.monotonic() < until:
            time.sleep(0.01)
        tell(str(len(list(tmp_path.iterdir()))))
        return done(job)

    assert len(dict(run_jobs(JOBS[:4], 2, lambda line: None, run=run))) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_who_stops_listening_ends_all(tmp_path: Path, no_leak: None) -> None:
    def run(job: Job, announce: Tell, tell: Tell) -> JobResult:
        if job.seed:
            time.sleep(1000)
        return done(job)

    started = time.monotonic()
    outcomes = run_jobs(JOBS, 3, lambda line: None, run=run)
    assert next(outcomes)[0] == JOBS[0]
    outcomes.close()
    assert time.monotonic() - started < 20


def test_jobs_are_taken_one_by_one_where_there_is_no_end_of_them(no_leak: None) -> None:
    taken: list[Job] = []

    def endless() -> Iterator[Job]:
        while True:
            taken.append(replace(JOBS[0], seed=len(taken)))
            yield taken[-1]

    outcomes = run_jobs(endless(), 2, lambda line: None, run=lambda job, *_: done(job))
    for _ in range(5):
        job, outcome = next(outcomes)
        assert outcome == done(job)
    outcomes.close()
    assert len(taken) <= 8


def test_an_estimate_learns_how_fast_jobs_are() -> None:
    estimate = Estimate(JOBS, 2)
    expected = durations.expected_s(JOBS[0], {})
    assert estimate.left_s({}) == pytest.approx(5 * expected / 2)
    estimate.ended(JOBS[0], 3 * expected)
    assert estimate.left_s({}) == pytest.approx(4 * 3 * expected / 2)
    estimate.ended(JOBS[1], 0.1)  # from the cache
    assert estimate.left_s({JOBS[2].name: expected}) == pytest.approx((9 - 1) * expected / 2)
    assert estimate.line({}).startswith("2/5 jobs, ")
    estimate.ended(JOBS[2], 1000 * expected)
    for job in JOBS[3:]:
        estimate.ended(job, 1.0)
    assert estimate.line({}) == "5/5 jobs, less than a minute left"


def test_an_estimate_of_more_workers_than_jobs_is_the_longest_job() -> None:
    cases = select("MR6")
    long = Job(Named("default"), tuple(each.name for each in cases), 7)
    durations.record(long, (result(each.name, seconds=400) for each in cases))
    short = replace(long, cases=long.cases[:1])
    estimate = Estimate([long, short], 200)
    assert len(cases) > 1
    assert estimate.left_s({}) == durations.expected_s(long, Durations().of(long))


def test_jobs_that_are_not_begun_any_more_are_not_waited_for() -> None:
    jobs = _Pending(JOBS)
    estimate = Estimate(jobs, 2)
    jobs.dropped |= {*JOBS[1:4]}
    estimate.ended(JOBS[0], 1.0)
    assert estimate.line({}).startswith("1/2 jobs, ")
    assert estimate.left_s({}) == durations.expected_s(JOBS[4], {})
    estimate.ended(JOBS[1], 1.0)  # it was under way
    estimate.ended(JOBS[4], 1.0)
    assert estimate.line({}) == "3/3 jobs, less than a minute left"


def test_labs_at_once_by_cores_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(workers, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(workers, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\nMemAvailable:  16777216 kB\n")
    assert labs_at_once(2, 2048) == 4
    assert labs_at_once(1, 2048) == 6
    assert labs_at_once(16, 2048) == labs_at_once(2, 1 << 20) == 1
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{1 << 30}\n")
    assert labs_at_once(2, 2048) == 4
    (tmp_path / "memory.max").write_text(f"{7 << 30}\n")
    assert labs_at_once(2, 2048) == 2
    # A kernel's sources that were read are no reason to run one lab.
    (tmp_path / "memory.current").write_text(f"{(7 << 30) - 4096}\n")
    files = "anon 1\ninactive_file 3221225472\nactive_file 3221225472\n"
    (tmp_path / "memory.stat").write_text(files)
    assert labs_at_once(2, 2048) == 2
    (tmp_path / "memory.stat").unlink()
    (tmp_path / "memory.max").write_text("max\n")
    for quota, labs in (("max 100000", 4), ("400000 100000", 2), ("390000 100000", 1), ("x", 4)):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert labs_at_once(2, 2048) == labs
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert labs_at_once(2, 2048) == 1


# ---- the command line ----


def test_cut_writes_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "jobs"
    words = ["lab", "cut", "-k", "memory_regions", "--seed", "5", "--seconds", "1"]
    assert main([*words, "--into", str(place)]) == 0
    out, err = capsys.readouterr()
    files = [Path(line) for line in out.splitlines()]
    assert files == sorted(place.iterdir()) and len(files) > 3
    jobs = [load(path) for path in files]
    assert all(
        path.name.endswith(f"-{job.name}.json") for path, job in zip(files, jobs, strict=True)
    )
    assert {(job.kernel, job.seed) for job in jobs} == {(Named("default"), 5)}
    names = sorted(name for job in jobs for name in job.cases)
    assert names == sorted(each.name for each in select("memory_regions"))
    assert f"{len(names)} cases in {len(jobs)} jobs, " in err and "seed 5" in err
    assert main([*words, "--into", str(place)]) == 2
    assert "it is not empty; name another folder" in capsys.readouterr().err


def test_a_thousand_jobs_are_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Job(Named("default"), (select("MR6")[0].name,), 1)
    many = [replace(one, seed=seed) for seed in range(1000)]
    monkeypatch.setattr("pyvmm.validate.jobs.cut.cut_job", lambda *_: many)
    assert main(["lab", "cut", "-k", "MR6", "--into", str(tmp_path / "jobs")]) == 0
    files = capsys.readouterr().out.splitlines()
    assert len(files) == 1000 and files == sorted(files)
    assert [load(Path(file)).seed for file in (files[0], files[-1])] == [0, 999]


def test_cut_leaves_all_jobs_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lab", "cut", "-k", "MR", "--seed", "5", "--seconds", "1"]
    words += ["--into", str(tmp_path / "jobs")]
    assert main(words) == 0
    longest = max(path.stat().st_size for path in (tmp_path / "jobs").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest - 1, limits[1]))
    try:
        assert main([*words[:-1], str(tmp_path / "full")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in capsys.readouterr().err
    assert list((tmp_path / "full").iterdir()) == []


def test_cut_takes_a_kernel_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch = tmp_path / "0001-x.patch"
    patch.write_bytes(b"+\xff\r\n+\r\n")
    source = tmp_path / "linux"
    (source / "arch/x86/kvm").mkdir(parents=True)
    (source / "Kbuild").touch()
    words = ["lab", "cut", "-k", "MR6", "--into", str(tmp_path / "jobs")]
    assert main([*words, "--source", str(source), "--patch", str(patch)]) == 0
    (kernel,) = {load(Path(line)).kernel for line in capsys.readouterr().out.splitlines()}
    assert isinstance(kernel, Built) and kernel.source == str(source)
    assert kernel.patches[0].name == patch.name
    assert kernel.patches[0].text.encode("utf-8", "surrogateescape") == b"+\xff\r\n+\r\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-k", "xyzzy"], "there is no such case"),
        (["--kernel", "nonesuch"], "there is none of this name"),
        (["--kernel", "/dev/null"], "not a bzImage"),
        (["--kernel", "7.3", "--source", "7.3"], "it stands instead of"),
        (["--source", "/nowhere"], "No such file"),
        (["--patch", "/nowhere"], "want a file that can be read"),
        (["--cpus", "0"], "the lab has 1 to"),
        (["--param", "a b"], "kernel parameter 'a b'"),
        (["--into", "/dev/null"], "--into /dev/null"),
    ],
)
def test_cut_says_what_is_wrong(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "cut", "--into", str(tmp_path / "jobs"), *words]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and err.count("\n") == 1


_SCRIPT = """
import sys, time
from pathlib import Path
from pyvmm.validate.jobs import run as job_run
from pyvmm.cli.main import main
from pyvmm.lab.errors import LabError
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.kernels.lab_run import LabRun

def run(job, announce, tell, *, again=False):
    if job.seed == 3:
        Path(sys.argv[1], str(job.seed)).touch()
        time.sleep(1000)
    if job.seed == 4:
        raise LabError("kernel x", "it does not boot")
    if job.seed == 5:
        raise LabError("kernel x did not boot", "\\x1b[2J[    1.0] one\\ntwo")
    machine = {"kernel": "6", "build_id": "0a"}
    problem = "died" if "--junit" in sys.argv else ""
    run = LabRun(job.cases, (), job.seed, 1.0, machine, problem=problem)
    return JobResult(job.name, KernelFacts("x", "6", "0a"), run, {})

job_run.run_job = run
sys.exit(main(sys.argv[2:]))
"""


def jobs_in(folder: Path, *seeds: int) -> list[str]:
    for seed in seeds:
        assert (
            main(["lab", "cut", "-k", "MR4", "--seed", str(seed), "--into", f"{folder}/{seed}"])
            == 0
        )
    return [str(next((folder / str(seed)).iterdir())) for seed in seeds]


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", _SCRIPT, str(folder), "lab", "job", "--workers", "2", *words]


def test_several_jobs_are_a_line_each(tmp_path: Path) -> None:
    files = jobs_in(tmp_path / "jobs", 1, 2, 4)
    ended = subprocess.run(command(tmp_path, *files, files[0]), capture_output=True, text=True)
    assert ended.returncode == 125
    assert {json.loads(line)["report"]["seed"] for line in ended.stdout.splitlines()} == {1, 2}
    assert len(ended.stdout.splitlines()) == 2
    assert ended.stderr == "pyvmm: lab: kernel x: it does not boot\n"
    (tmp_path / "bad.json").write_text("{}")
    ended = subprocess.run(
        command(tmp_path, *files, str(tmp_path / "bad.json")), capture_output=True, text=True
    )
    assert ended.returncode == 125 and len(ended.stdout.splitlines()) == 2
    assert ended.stderr.count("it is no job of pyvmm") == 1
    ended = subprocess.run(
        command(tmp_path, files[0], str(tmp_path / "bad.json")), capture_output=True, text=True
    )
    assert (ended.returncode, len(ended.stdout.splitlines())) == (2, 1)


def test_what_a_kernel_says_is_a_line_that_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    files = jobs_in(tmp_path / "jobs", 5)
    ended = subprocess.run(command(tmp_path, *files), capture_output=True, text=True)
    assert ended.returncode == 125
    assert ended.stderr == "pyvmm: lab: kernel x did not boot: \\x1b[2J[    1.0] one\\ntwo\n"


def test_a_full_stdout_is_said_to_be_stdouts(tmp_path: Path) -> None:
    files = jobs_in(tmp_path / "jobs", 1, 2)
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command(tmp_path, *files), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 2
    assert ended.stderr == "pyvmm: lab: stdout: No space left on device\n"


def test_what_all_lack_is_said_once(tmp_path: Path) -> None:
    files = jobs_in(tmp_path / "jobs", 1, 2)
    environment = {**os.environ, "PATH": "/nowhere"}
    words = [sys.executable, "-m", "pyvmm", "lab", "job", *files]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr.startswith("pyvmm: lab: qemu-system-x86_64: not found")
    assert ended.stderr.count("\n") == 1


def test_jobs_as_junit_and_kcidb(tmp_path: Path) -> None:
    files = jobs_in(tmp_path / "jobs", 1, 2, 4)
    written = [tmp_path / "junit.xml", tmp_path / "kcidb.json"]
    words = ["--junit", str(written[0]), "--kcidb", str(written[1]), "--kcidb-origin", "me"]
    ended = subprocess.run(command(tmp_path, *files, *words), capture_output=True, text=True)
    assert ended.returncode == 1
    assert "-default: it says no build ID" in ended.stderr
    top = ElementTree.fromstring(written[0].read_bytes())
    names = {suite.get("name") for suite in top}
    assert {"pyvmm.1-default.kernel", "pyvmm.2-default.did_not_run"} < names
    told = {each.get("message") for each in top.iter("error")}
    assert told == {"died", "did not run: died", "did not run: kernel x: it does not boot"}
    data = json.loads(written[1].read_text())
    assert [each["id"] for each in data["builds"]] == ["me:0a"]
    assert {each["status"] for each in data["tests"]} == {"MISS", "ERROR"}


def test_the_only_kernel_that_says_no_build_id(tmp_path: Path) -> None:
    words = ["--kcidb", str(tmp_path / "kcidb.json"), "--kcidb-origin", "me"]
    files = jobs_in(tmp_path / "jobs", 4)
    ended = subprocess.run(command(tmp_path, *files, *words), capture_output=True, text=True)
    assert "pyvmm: --kcidb leaves out the kernel: it says no build ID\n" in ended.stderr


def test_jobs_of_one_piece_of_work_are_one_report() -> None:
    whole = Job(Named("default"), tuple(each.name for each in select("memory_regions")), 7)
    jobs = cut_job(whole, {}, 1.0)
    found = reports_of({job: done(job) for job in jobs[1:]} | {jobs[0]: LabError("x", "no room")})
    assert list(found) == [""]
    assert {each.name for each in found[""].results} == {
        "kernel",
        *(name for job in jobs[1:] for name in job.cases),
    }
    assert sorted(found[""].not_run) == sorted(jobs[0].cases)
    assert found[""].why_not_run == "x: no room"
    (nothing,) = reports_of({jobs[0]: LabError("x", "no room")}).values()
    assert not nothing.results and nothing.not_run == (*jobs[0].cases, "kernel")
    (dead,) = reports_of({jobs[0]: KernelFailed("kernel x did not boot", "panic")}).values()
    (kernel,) = dead.results
    assert (kernel.name, kernel.state) == ("kernel", State.CRASH) and "panic" in kernel.message
    several = reports_of({job: done(job) for job in (jobs[0], replace(jobs[0], seed=8))})
    assert list(several) == ["1-default", "2-default"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_and_what_came_is_there(number: signal.Signals, tmp_path: Path) -> None:
    files = jobs_in(tmp_path / "jobs", 3, 1)
    junit = tmp_path / "junit.xml"
    words = command(tmp_path, *files, "--junit", str(junit))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        while not (tmp_path / "3").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert process.stdout.read() == b""
    assert first["report"]["seed"] == 1
    # What did not run is told, too, in the order of the files.
    told = [
        (case.get("classname"), error.get("message"))
        for case in ElementTree.fromstring(junit.read_bytes()).iter("testcase")
        for error in case.iter("error")
    ]
    interrupted = "did not run: lab job: it was interrupted"
    assert ("pyvmm.1-default.did_not_run", interrupted) in told
    assert ("pyvmm.2-default.kernel", "died") in told
