"""Jobs on a Dask cluster in this process, which test_jobs_on_a_cluster.py starts for it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyvmm import __version__
from pyvmm.cli.main import main
from pyvmm.errors import PyvmmError
from pyvmm.lab.cache import cache_folder
from pyvmm.lab.errors import LabError
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs import cluster, connecting, durations, there
from pyvmm.validate.jobs import result as results
from pyvmm.validate.jobs.cluster import run_on_cluster
from pyvmm.validate.jobs.code import own_code
from pyvmm.validate.jobs.job import Job, Named, to_text
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.jobs.run import kept_result, sha256_of
from pyvmm.validate.jobs.workers import Outcome
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")
pytestmark = pytest.mark.filterwarnings("default")

JOBS = [Job(Named("default"), (select("MR6")[0].name,), seed) for seed in range(5)]
IMAGE = bytes(range(256)) * 40_000  # of several pieces


class House:
    """A kernel, and workers whose caches are this process' own."""

    def __init__(self, folder: Path) -> None:
        image = folder / "bzImage"
        image.write_bytes(IMAGE)
        self.kernel = Kernel("default", image, "6.12", debug=("kasan",))
        self.digest = sha256_of(image)
        self.ran: list[int] = []
        self.answer: Callable[[Job], None] = lambda job: None
        self.results: Callable[[int], tuple[CaseResult, ...]] = lambda number: ()

    def run(
        self, job: Job, announce: object, *, again: bool, kernel: Kernel, digest: str
    ) -> JobResult:
        assert digest == self.digest
        assert kernel.image.read_bytes() == IMAGE and kernel.debug == ("kasan",)
        self.ran.append(job.seed)
        self.answer(job)
        run = LabRun(job.cases, self.results(job.seed), job.seed, 1.0)
        return JobResult(job.name, KernelFacts("default", "6.12", self.digest), run, {})


def forget_who_has_a_job(made: Any) -> None:
    """What a scheduler does when it hears nothing of a worker any more."""
    holder = next(
        address
        for address, each in made.scheduler.workers.items()
        if any(str(task.key).startswith("pyvmm-run") for task in each.processing)
    )
    made.sync(made.scheduler.remove_worker, holder, stimulus_id="test")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    made = House(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cluster, "kernel_of_job", lambda job, announce: made.kernel)
    monkeypatch.setattr(cluster, "_TICK_S", 0.02)
    monkeypatch.setattr(cluster, "_GONE_S", 0.5)
    monkeypatch.setattr(there, "run_job", made.run)
    monkeypatch.setattr(there, "find_qemu", lambda: "")
    monkeypatch.setattr(there, "find_busybox", lambda: "")
    return made


@pytest.fixture
def scheduler() -> Iterator[Any]:
    with local_cluster(2) as made:
        yield made


def local_cluster(workers: int, threads: int = 1) -> Any:
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        processes=False,
        dashboard_address=None,
        protocol="tcp",
        host="127.0.0.1",
        silence_logs=100,
    )


def outcomes(made: Any, jobs: list[Job], said: list[str], **more: Any) -> dict[Job, Outcome]:
    return dict(run_on_cluster(jobs, made.scheduler_address, said.append, **more))


def test_every_job_has_its_result_and_it_is_kept_here(house: House, scheduler: Any) -> None:
    lines: list[str] = []
    said: list[str] = []
    came = outcomes(scheduler, JOBS, said, watch=lines.append)
    assert {
        job.seed: each.run.seed for job, each in came.items() if isinstance(each, JobResult)
    } == {seed: seed for seed in range(5)}
    assert sorted(house.ran) == list(range(5)) and said == []
    assert kept_result(JOBS[0], house.digest) == came[JOBS[0]]
    assert any(line.endswith("on 2 workers") for line in lines)
    assert lines[-1].startswith("5/5 jobs, less than a minute left")
    # What is known is not asked for again, unless it is.
    assert outcomes(scheduler, JOBS, said) == came and len(house.ran) == 5
    outcomes(scheduler, JOBS[:1], said, again=True)
    assert len(house.ran) == 6


def test_how_long_cases_took_there_is_known_here(house: House, scheduler: Any) -> None:
    """Jobs are cut here: on the workers nobody asks."""
    name = JOBS[0].cases[0]
    house.results = lambda number: (
        CaseResult(name, "MR6", "", "x", State.PASS, duration_s=number),
    )
    outcomes(scheduler, [replace(JOBS[0], seed=5)], [])
    assert durations.Durations().of(JOBS[0]) == {name: 5.0}
    played = replace(JOBS[0], seed=6, model_examples=3)
    outcomes(scheduler, [played], [])
    assert durations.Durations().of(JOBS[0]) == {name: 5.0}, "fewer scripts than usual"


def test_what_one_worker_cannot_do_another_does(house: House, scheduler: Any) -> None:
    tries: list[int] = []

    def refuse(job: Job) -> None:
        if job.seed == 1:
            tries.append(1)
            if len(tries) == 1:
                raise LabError("no room in the cache /x", "fewer than 64 MiB are free")
        if job.seed == 2:
            raise ValueError("a fault of pyvmm's own")

    house.answer = refuse
    said: list[str] = []
    came = outcomes(scheduler, JOBS[:3], said)
    assert isinstance(came[JOBS[1]], JobResult)
    error = came[JOBS[2]]
    assert isinstance(error, PyvmmError) and "ValueError: a fault" in str(error)
    assert len(said) == 2 and all("another one is to do it" in line for line in said)
    assert "fewer than 64 MiB" in " ".join(said)


def test_a_kernel_goes_to_a_worker_once_and_is_gone_from_the_scheduler_then(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Path] = []
    left: list[str] = []
    monkeypatch.setattr(there, "check_room", lambda folder, mib: came.append(folder))
    with local_cluster(1, threads=4) as made:
        tasks = made.scheduler.tasks

        def answer(job: Job) -> None:
            until = time.monotonic() + 20
            while any("take" in str(key) for key in tuple(tasks)) and time.monotonic() < until:
                time.sleep(0.01)
            left.extend(str(key) for key in tuple(tasks) if "take" in str(key))

        house.answer = answer
        assert len(outcomes(made, JOBS, [])) == 5
    assert len(came) == -(-len(IMAGE) // cluster._CHUNK) > 1
    assert left == []


def test_a_kernel_that_somebody_builds_meanwhile(
    house: House, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sha256_of(path: Path) -> str:
        path.write_bytes(b"another kernel")
        return house.digest

    monkeypatch.setattr(cluster, "sha256_of", sha256_of)
    said: list[str] = []
    came = outcomes(scheduler, JOBS, said)
    error = "kernel default: it is another one than when this began; run the rest again"
    assert {str(each) for each in came.values()} == {error} and said == [] and house.ran == []


@pytest.mark.parametrize("rest_s", [0.0, 1e9])
def test_a_few_workers_without_room_spoil_no_jobs(
    rest_s: float, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are always free, and a job is tried on three."""
    monkeypatch.setattr(cluster, "_REST_S", rest_s)
    full = {0, 1, 2}
    refused: list[int] = []
    looks: list[str] = []
    go = threading.Event()

    def answer(job: Job) -> None:
        name = distributed.get_worker().name
        if name in full:
            refused.append(name)
            raise LabError("no room in the cache /x", "fewer than 64 MiB are free")
        go.wait(20)

    def watch(line: str) -> None:
        if set(refused) == full:
            looks.append(line)
        if len(looks) > 30:  # time enough for all jobs to be refused
            go.set()

    house.answer = answer
    jobs = [replace(JOBS[0], seed=seed) for seed in range(12)]
    with local_cluster(5) as made:
        came = outcomes(made, jobs, [], watch=watch)
        assert all(isinstance(each, JobResult) for each in came.values()), came
        assert rest_s == 0 or len(refused) == 3


def test_jobs_are_not_taken_for_who_is_given_none(
    house: House, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no end of them, and those that were taken are done."""
    monkeypatch.setattr(cluster, "_REST_S", 1e9)
    go = threading.Event()
    taken: list[Job] = []
    looks: list[str] = []

    def answer(job: Job) -> None:
        if distributed.get_worker().name == 0:
            raise LabError("no room in the cache /x", "fewer than 64 MiB are free")
        go.wait(20)

    def endless() -> Iterator[Job]:
        while len(taken) < 100:
            taken.append(replace(JOBS[0], seed=len(taken)))
            yield taken[-1]

    def watch(line: str) -> None:
        looks.append(line)
        if len(looks) > 100:
            go.set()

    house.answer = answer
    came = run_on_cluster(endless(), scheduler.scheduler_address, print, watch)
    assert isinstance(next(came)[1], JobResult)
    assert len(looks) > 100 and len(taken) <= 4
    came.close()


def test_who_has_room_again_is_given_jobs_again(
    house: House, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_REST_S", 0.0)
    ran: list[object] = []
    both = threading.Event()

    def answer(job: Job) -> None:
        ran.append(distributed.get_worker().name)
        if ran.count(0) == 1 and ran[-1] == 0:
            raise LabError("no room in the cache /x", "fewer than 64 MiB are free")
        if ran.count(0) > 1:
            both.set()
        both.wait(20)

    house.answer = answer
    came = outcomes(scheduler, JOBS, [])
    assert all(isinstance(each, JobResult) for each in came.values())
    assert ran.count(0) > 1 and both.is_set()


def test_what_a_worker_answers_is_looked_at(
    house: House, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = results.to_text

    def to_text(done: JobResult) -> str:
        if done.run.seed == 0:
            return whole(replace(done, code="that of files which somebody has changed"))
        return "[]" if done.run.seed == 1 else whole(done)

    monkeypatch.setattr(results, "to_text", to_text)
    monkeypatch.setattr(cluster, "keep_result", lambda *_: None)
    said: list[str] = []
    came = outcomes(scheduler, JOBS[:3], said)
    assert str(came[JOBS[0]]).endswith("it has another pyvmm now; start it again")
    assert str(came[JOBS[1]]).endswith("what it answered is no result; start it again")
    assert isinstance(came[JOBS[2]], JobResult)
    assert len(said) == 2 and all("another one is to do it" in line for line in said)


def test_a_worker_that_cannot_be_used_is_named(
    house: House, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def about() -> dict[str, str]:
        first = distributed.get_worker().name == 0
        return {"pyvmm": "0.0.9" if first else __version__, "code": own_code(), "problem": ""}

    monkeypatch.setattr(there, "about", about)
    said: list[str] = []
    assert len(outcomes(scheduler, JOBS[:2], said)) == 2
    (line,) = said
    assert "is not used: it has pyvmm 0.0.9, and this is" in line
    told = {"pyvmm": __version__, "code": own_code(), "problem": "no QEMU"}
    monkeypatch.setattr(there, "about", lambda: told)
    with pytest.raises(LabError, match="there is no worker; what came of 0 jobs is kept"):
        outcomes(scheduler, JOBS[2:], said, patience_s=0.2)
    assert sum("no QEMU" in line for line in said) == 2
    assert "their files differ" in there.problem_with({**told, "code": "0a"})
    odd_ones: list[object] = [None, [], {}, {"pyvmm": __version__}]
    for odd in odd_ones:
        assert "it does not say which" in there.problem_with(odd)


def test_workers_that_go_before_they_answer_are_wondered_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def find_qemu() -> str:
        asked.append(distributed.get_worker().address)
        time.sleep(2)
        return ""

    monkeypatch.setattr(there, "find_qemu", find_qemu)
    said: list[str] = []
    with local_cluster(3) as made:

        def go() -> None:
            until = time.monotonic() + 20
            while len(asked) < 3 and time.monotonic() < until:
                time.sleep(0.01)
            for address in asked[:2]:
                made.sync(made.scheduler.remove_worker, address, stimulus_id="test")

        with ThreadPoolExecutor(1) as threads:
            going = threads.submit(go)
            came = outcomes(made, JOBS[:1], said)
            going.result()
    assert isinstance(came[JOBS[0]], JobResult)
    (line,) = said
    assert line.endswith("has gone before it said what it is: has it pyvmm?")


def test_a_worker_tells_what_it_lacks(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert there.problem_with(there.about()) == ""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "it belongs to another user" in there.problem_with(there.about())


def test_the_scheduler_goes(house: House) -> None:
    hold = threading.Event()

    def answer(job: Job) -> None:
        if job.seed:
            hold.wait(20)

    house.answer = answer
    made = local_cluster(1)
    try:
        came = run_on_cluster(JOBS, made.scheduler_address, lambda line: None)
        assert next(came)[0] == JOBS[0]
        made.sync(made.scheduler.close)
        with pytest.raises(LabError, match="the scheduler has gone; what came of 1 job is kept"):
            list(came)
    finally:
        hold.set()
        with suppress(Exception):  # there is nobody who would let the workers go
            made.close(timeout=1)
    assert kept_result(JOBS[0], house.digest) is not None


def test_a_scheduler_that_says_nothing_any_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that is stopped: its connections are whole."""
    monkeypatch.setattr(cluster, "_SILENT_S", 0.5)
    with local_cluster(1) as made:
        ended = asyncio.Event()

        async def identity(*_: object, **__: object) -> None:
            await ended.wait()

        def run() -> None:
            came = run_on_cluster(JOBS, made.scheduler_address, lambda line: None)
            next(came)
            made.scheduler.handlers["identity"] = identity
            with pytest.raises(LabError, match="the scheduler has said nothing for 0 s; what came"):
                list(came)

        try:
            run()
        finally:
            made.loop.add_callback(ended.set)


def test_a_worker_goes(house: House, scheduler: Any) -> None:
    """Its job is done by the other one."""
    hold = threading.Event()
    began = threading.Event()

    def answer(job: Job) -> None:
        if job.seed == 0 and house.ran.count(0) == 1:
            began.set()
            hold.wait(20)

    house.answer = answer
    said: list[str] = []
    came = run_on_cluster(JOBS[:3], scheduler.scheduler_address, said.append)
    first = next(came)
    assert began.wait(20) and first[0] != JOBS[0]
    forget_who_has_a_job(scheduler)
    rest = dict(came)
    hold.set()
    assert set(rest) | {first[0]} == set(JOBS[:3])
    assert any("has gone" in line for line in said)


def test_a_job_that_takes_every_worker_with_it(house: House, monkeypatch: Any) -> None:
    """It is not given to workers without end."""
    monkeypatch.setattr(cluster, "_MOST_GONE", 2)
    hold = threading.Event()

    def answer(job: Job) -> None:
        hold.wait(20)

    house.answer = answer
    said: list[str] = []
    with local_cluster(3) as made:

        def go() -> None:
            until = time.monotonic() + 20
            for gone in range(2):
                while len(house.ran) <= gone and time.monotonic() < until:
                    time.sleep(0.01)
                forget_who_has_a_job(made)

        with ThreadPoolExecutor(1) as threads:
            going = threads.submit(go)
            came = dict(run_on_cluster(JOBS[:1], made.scheduler_address, said.append))
            hold.set()
            going.result()
    cause = "2 workers have gone while they ran it"
    assert str(came[JOBS[0]]) == f"job {JOBS[0].name}: {cause}"
    assert sum("has gone" in line for line in said) == 2


def test_whom_a_job_was_left_for_goes(house: House, scheduler: Any) -> None:
    """The one that is left has refused it already: nobody will ever do it."""
    refused = threading.Event()
    holds = threading.Event()

    def answer(job: Job) -> None:
        if job.seed == 1:
            refused.set()
            raise LabError("no room in the cache /x", "fewer than 64 MiB are free")
        holds.wait(20)  # the other worker, which the job then waits for

    house.answer = answer
    said: list[str] = []
    came = run_on_cluster(JOBS[:2], scheduler.scheduler_address, said.append)
    found: dict[Job, Outcome] = {}

    def go() -> None:
        assert refused.wait(20)
        while not any("another one is to do it" in line for line in said):
            time.sleep(0.01)
        forget_who_has_a_job(scheduler)
        holds.set()

    with ThreadPoolExecutor(1) as threads:
        gone = threads.submit(go)
        for job, outcome in came:
            found[job] = outcome
        gone.result()
    assert isinstance(found[JOBS[0]], JobResult) and "fewer than 64 MiB" in str(found[JOBS[1]])


def test_what_cannot_be_kept_here_ends_nothing(house: House, scheduler: Any) -> None:
    """And what all lack is said once."""
    jobs = cache_folder() / "jobs"
    jobs.mkdir(parents=True)
    for job in JOBS[:2]:
        (jobs / job.name).touch()
    for job, name in zip(JOBS[2:], ("result.json", "result.json", "job.json"), strict=True):
        (jobs / job.name / name / "x").mkdir(parents=True)
    said: list[str] = []
    lines: list[str] = []
    came = outcomes(scheduler, JOBS, said, watch=lines.append)
    assert lines[-1].startswith("5/5 jobs, less than a minute left")
    assert all(isinstance(each, JobResult) for each in came.values())
    told = "a result is not kept: cache folder"
    assert sorted(said) == [
        f"{told} {jobs}: {cause}; XDG_CACHE_HOME names another place"
        for cause in ("File exists", "Is a directory")
    ]


TLS = "distributed.comm.tls"


@pytest.mark.parametrize(
    ("address", "settings", "said"),
    [
        ("tls://127.0.0.1:1", {}, "there is no certificate for TLS; Dask's configuration names"),
        (
            "tls://127.0.0.1:1",
            {f"{TLS}.ca-file": "/nowhere", f"{TLS}.client.cert": "/nowhere"},
            "a certificate of TLS cannot be read: No such file or directory; Dask's configuration",
        ),
        (
            "tcp://127.0.0.1:1",
            {"distributed.comm.require-encryption": True},
            r"Dask's configuration wants TLS .*; a scheduler with TLS is tls://HOST:PORT",
        ),
        ("foo://127.0.0.1:1", {}, "it is no address; want tcp://HOST:PORT or tls://HOST:PORT"),
        ("inproc://127.0.0.1:1", {}, "it is no address"),
        ("tcp://127.0.0.1:65536", {}, "it is no address"),
    ],
)
def test_what_dask_would_say_with_a_traceback(
    address: str, settings: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And 20 seconds later: no client is made."""
    monkeypatch.setattr(distributed, "Client", None)
    with dask.config.set(settings), pytest.raises(LabError, match=said):
        connecting.connect(address)


def test_who_ends_the_connection_may_want_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        over = threading.Event()

        def end() -> None:
            server.settimeout(0.1)
            while not over.is_set():
                with suppress(TimeoutError):
                    server.accept()[0].close()

        ending = threads.submit(end)
        port = server.getsockname()[1]
        said = "it ended the connection: .*; a scheduler with TLS is tls://HOST:PORT and wants"
        with pytest.raises(LabError, match=said):
            connecting.connect(f"tcp://127.0.0.1:{port}")
        over.set()
        ending.result()


def test_nobody_answers(
    house: House, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_S", 0.2)
    with pytest.raises(LabError, match=r"--dask tcp://127\.0\.0\.1:1: .*; start one"):
        list(run_on_cluster(JOBS, "tcp://127.0.0.1:1", lambda line: None))
    with pytest.raises(LabError, match="--dask nonsense://x"):
        list(run_on_cluster(JOBS, "nonsense://x", lambda line: None))
    path = tmp_path / "job.json"
    path.write_text(to_text(replace(JOBS[0], seed=9)))
    assert main(["lab", "job", "--dask", "tcp://x:1", "--workers", "2", str(path)]) == 2
    assert "leave out --workers" in capsys.readouterr().err
