"""Jobs: files that say what is to be run, and what is kept of what came out; without a lab."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import __version__
from pyvmm.cli.main import main
from pyvmm.lab.cache import locked, write_whole
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs import result as results
from pyvmm.validate.jobs import run as job_run
from pyvmm.validate.jobs.job import Built, Image, Job, Named, Patch, from_text, load, to_text
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.kernels.lab_run import LabMachine, LabRun, Trouble
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import all_cases, select

NAMES = tuple(each.name for each in select("MR6 or PC3"))
_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
JOB = Job(Named("default"), NAMES, 7)


# ---- a job as JSON ----


@given(
    kernel=st.one_of(
        st.just(Named("7.3")),
        st.just(Image("/boot/vmlinuz", "0a" * 32)),
        st.builds(
            Built,
            st.just("6.12"),
            st.lists(
                st.builds(
                    Patch,
                    st.just("a.patch"),
                    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
                )
            ).map(tuple),
            debug=st.sampled_from([(), ("kasan",), ("lockdep", "list")]),
        ),
    ),
    cases=st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple),
    seed=st.integers(0, (1 << 64) - 1),
    timeout_s=st.one_of(st.integers(1, 1000), st.floats(1e-3, 1e6)),
)
def test_a_job_is_the_same_when_read_back(
    kernel: Named | Image | Built, cases: tuple[str, ...], seed: int, timeout_s: float
) -> None:
    job = Job(kernel, cases, seed, timeout_s=timeout_s)
    assert from_text(to_text(job)) == job
    assert from_text(to_text(job)).name == job.name


def test_what_differs_has_another_name() -> None:
    others = [
        replace(JOB, seed=8),
        replace(JOB, cases=NAMES[1:]),
        replace(JOB, kernel=Named("7.3")),
        replace(JOB, cpus=1),
        replace(JOB, memory_mib=1024),
        replace(JOB, parameters=("kvm_amd.npt=0",)),
        replace(JOB, model_examples=5),
        replace(JOB, timeout_s=60),
        replace(JOB, repeat=1),
    ]
    assert len({each.name for each in (JOB, *others)}) == len(others) + 1


def test_bytes_of_a_patch_that_are_no_utf8_stay(tmp_path: Path) -> None:
    text = b"+\xff\r\n".decode("utf-8", "surrogateescape")
    job = replace(JOB, kernel=Built("6.12", (Patch("a.patch", text),)))
    path = tmp_path / "job.json"
    path.write_text(to_text(job))
    assert load(path) == job


def test_cases_of_an_id_are_chosen_together() -> None:
    assert JOB.expression == "PC3 or MR6"
    some = replace(JOB, cases=NAMES[1:])
    chosen = [each.name for each in select(some.expression)]
    assert sorted(chosen) == sorted(NAMES[1:])
    everything = replace(JOB, cases=tuple(each.name for each in all_cases()))
    assert len(select(everything.expression)) == len(all_cases())


def test_the_slowest_case_says_how_long_silence_may_be() -> None:
    model = replace(JOB, cases=tuple(each.name for each in select("MODEL1")))
    assert replace(model, model_examples=160).longest_s == 10 * model.longest_s > JOB.longest_s


BAD: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda data: data.update({"pyvmm-job": 2}), "it has format 2, not 1; make it again"),
    (lambda data: data.update({"pyvmm-job": "1"}), "pyvmm-job: want a whole number"),
    (lambda data: data.update({"pyvmm-job": True}), "pyvmm-job: want a whole number"),
    (lambda data: data.pop("pyvmm-job"), "it is no job of pyvmm"),
    (lambda data: data.update(pyvmm="0.0.9"), f"it is for pyvmm 0.0.9, and this is {__version__}"),
    (lambda data: data.update(more=1, also=2), "'also': nobody knows this key"),
    (lambda data: data.pop("seed"), "seed: it is missing"),
    (lambda data: data.update(seed=-1), "seed: want a number from 0"),
    (lambda data: data.update(seed=1 << 64), "seed: want a number from 0"),
    (lambda data: data.update(seed=1.5), "seed: want a whole number"),
    (lambda data: data.update(cases=[]), "cases: there is none"),
    (lambda data: data.update(cases="PC3"), "cases: want a list"),
    (lambda data: data.update(cases=[7]), "cases: want a list of texts"),
    (lambda data: data.update(cases=[NAMES[0]] * 2), "cases: one is there twice"),
    (lambda data: data.update(cases=["PC3.odd_page"]), "no such case; did you mean PC3.odd"),
    (lambda data: data.update(cases=["MR6"]), r"did you mean MR6\.\w+\[gpa=512K\]\?"),
    (lambda data: data.update(cases=["PC3.oddpages["]), "there is no such case; did you mean"),
    (lambda data: data.update(cases=["a\0b"]), "cases: it has a character 0"),
    (lambda data: data.update(cases=["\ud800"]), "cases: it has half a character"),
    (lambda data: data.update(cpus=0), "0 CPUs: the lab has 1 to"),
    (lambda data: data.update(cpus=10**400), "it is not JSON|CPUs: the lab has"),
    (lambda data: data.update(memory_mib=1), "1 MiB of memory: the lab needs"),
    (lambda data: data.update(parameters=["a b"]), "kernel parameter 'a b'"),
    (lambda data: data.update(model_examples=-1), "model_examples: want a number"),
    (lambda data: data.update(repeat=-1), "repeat: want a number"),
    (lambda data: data.update(timeout_s=0), "timeout_s: want more than 0"),
    (lambda data: data.update(timeout_s=float("nan")), "timeout_s: want more than 0"),
    (lambda data: data.update(timeout_s=float("inf")), "timeout_s: want more than 0"),
    (lambda data: data.update(kernel="default"), "kernel: want an object"),
    (lambda data: data.update(kernel={}), "kernel: want name, image or source"),
    (lambda data: data.update(kernel={"name": "/boot/x"}), "want letters, digits"),
    (lambda data: data.update(kernel={"name": "a", "image": "b"}), "'image': nobody knows"),
    (lambda data: data.update(kernel={"image": "/x"}), "kernel, sha256: it is missing"),
    (lambda data: data.update(kernel={"image": "/x", "sha256": "A"}), "kernel, sha256: want 64"),
    (lambda data: data.update(kernel={"source": "6.12", "debug": ["x"]}), "nothing to watch for"),
    (lambda data: data.update(kernel={"source": "6.12", "debug": ["kasan", "kcsan"]}), "exclude"),
    (lambda data: data.update(kernel={"source": "6.12", "patches": ["x"]}), "a list of objects"),
    (
        lambda data: data.update(
            kernel={"source": "6.12", "patches": [{"name": "../x", "text": ""}]}
        ),
        "patch, name: '../x' is no name of a file",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), BAD, ids=[said for _, said in BAD])
def test_what_is_no_job_is_one_line_and_status_2(
    change: Callable[[dict[str, Any]], object],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = json.loads(to_text(JOB))
    change(data)
    path = tmp_path / "job.json"
    path.write_text(json.dumps(data))
    with pytest.raises(LabUsageError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"job {path}: ") and "\n" not in str(caught.value)
    assert main(["lab", "job", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("pyvmm: lab: job ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no job"),
        (b"1" * 5000, "not JSON|no job"),
        (b'{"pyvmm-job": 1, "pyvmm-job": 1}', "'pyvmm-job': it is there twice"),
    ],
)
def test_files_of_other_things(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(content)
    with pytest.raises(LabUsageError, match=said):
        load(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabUsageError, match="No such file"):
        load(tmp_path / "none")
    with pytest.raises(LabUsageError, match="Is a directory"):
        load(tmp_path)
    with pytest.raises(LabUsageError, match="longer than 64 MiB"):
        load(Path("/dev/zero"))


# ---- what came of it ----


def case_result(state: State = State.PASS, **more: Any) -> CaseResult:
    return CaseResult(NAMES[0], "MR6", "a title", "memory_regions", state, **more)


def lab_run(*cases: CaseResult, **more: Any) -> LabRun:
    return LabRun(NAMES, cases or (case_result(),), 7, 1.5, {"kernel": "6.12"}, **more)


def test_a_result_is_the_same_when_read_back() -> None:
    splat = Splat("WARNING: at x", ("WARNING: at x", "RIP: \udc80"), ("MR6.a",))
    bug = KnownBug("0123456789ab", "KVM: Do it right", "6.18")
    run = lab_run(
        case_result(State.KNOWN, message="it spins", bug=bug),
        trouble=(Trouble(splat, ("MR6.b",), 3),),
        problem="the lab's kernel died",
        kernel_log=("one", "two"),
    )
    facts = KernelFacts("default", "6.12", "0a")
    files = {"pyvmm-replay-a.json": "{}"}
    done = JobResult("name", facts, run, files, counters=(b"\0\xff", b"more"))
    assert results.from_text(results.to_text(done)) == done
    assert done.is_bad and not done.nothing_ran
    assert not replace(done, run=lab_run()).is_bad
    assert replace(done, run=lab_run(case_result(State.SKIP))).nothing_ran


@pytest.mark.parametrize("name", ["a.json", "pyvmm-replay-/../../../../a.json", "/a.json", ""])
def test_a_result_writes_nowhere_else(name: str) -> None:
    done = JobResult("name", KernelFacts("default", "6.12", "0a"), lab_run(), {name: "{}"})
    with pytest.raises(ValueError):
        results.from_text(results.to_text(done))


class Lab:
    """Stands for kernels and labs: what runs, and what comes of it."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "bzImage"
        self.image.write_bytes(b"a kernel")
        self.runs: list[list[str]] = []
        self.answer = lab_run()
        self.error: BaseException | None = None

    def find(self, name: str, *_: object, **__: object) -> Any:
        from pyvmm.lab.kernels import Kernel

        return Kernel(name, self.image, "6.12")

    def run(
        self, kernel: object, machine: LabMachine, words: list[str], folder: Path, *_: Any
    ) -> Any:
        self.runs.append(words)
        folder.mkdir()
        (folder / "pyvmm-replay-MODEL1.json").write_text("{}")
        (folder / "other.bin").write_bytes(b"\xff")
        if self.error is not None:
            raise self.error
        return self.answer


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(job_run, "find_qemu", lambda: "")
    monkeypatch.setattr(job_run, "find_busybox", lambda: "")
    monkeypatch.setattr(job_run, "find_or_build", made.find)
    monkeypatch.setattr(job_run, "run_in_lab", made.run)
    return made


def run(job: Job = JOB, **more: Any) -> JobResult:
    return job_run.run_job(job, lambda line: None, **more)


def test_a_job_runs_once(lab: Lab, tmp_path: Path) -> None:
    first = run()
    assert first.files == {"pyvmm-replay-MODEL1.json": "{}"}
    assert first.kernel.sha256 == hashlib.sha256(b"a kernel").hexdigest()
    assert run() == first and len(lab.runs) == 1
    assert not list(tmp_path.rglob("other.bin")), "what cases leave may be a GiB"
    assert lab.runs[0] == ["--seed", "7", "-k", "PC3 or MR6", "-j", "2"]
    run(replace(JOB, model_examples=5))
    assert lab.runs[1][-2:] == ["--model-examples", "5"]
    run(again=True)
    assert len(lab.runs) == 3


def test_what_is_kept_is_of_one_kernel(lab: Lab) -> None:
    run()
    lab.image.write_bytes(b"another kernel of this name")
    run()
    assert len(lab.runs) == 2


def test_what_is_kept_is_of_one_pyvmm(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    monkeypatch.setattr(job_run, "code_now", lambda: "other files")
    run()
    assert len(lab.runs) == 2 and len(first.code) == 64


def test_what_came_while_files_of_pyvmm_changed_is_not_kept(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter(["before", "after"])
    monkeypatch.setattr(job_run, "code_now", lambda: next(codes, "after"))
    said: list[str] = []
    done = job_run.run_job(JOB, said.append)
    assert done.code == "before" and not list(tmp_path.rglob("result.json"))
    assert said == [f"the result of job {JOB.name} is not kept: pyvmm's files changed meanwhile"]
    assert run().code == "after" and run().code == "after" and len(lab.runs) == 2


def test_a_run_that_its_time_limit_ended_is_not_kept(lab: Lab) -> None:
    lab.answer = lab_run(problem="timed out after 5 s", out_of_time=True)
    assert run().run.problem
    lab.answer = lab_run()
    assert not run().run.problem and len(lab.runs) == 2


def test_an_interrupted_run_leaves_nothing_that_counts(lab: Lab) -> None:
    lab.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run()
    lab.error = None
    run()
    assert len(lab.runs) == 2


def test_what_came_of_old_jobs_is_forgotten_but_of_none_that_is_under_way(
    lab: Lab, tmp_path: Path
) -> None:
    jobs = [replace(JOB, seed=seed) for seed in range(6)]
    place = tmp_path / "cache/pyvmm/jobs"
    (place / "plans").mkdir(parents=True)
    for age, job in enumerate(jobs):
        run(job)
        os.utime(place / job.name, times=(0, time.time() - 3600 + age))
    assert run(jobs[1]) and len(lab.runs) == 6  # it is used again
    with locked(place / jobs[0].name, lambda line: None):
        job_run.forget_old_jobs(3)
    left = {each.name for each in place.iterdir()} - {"plans"}
    assert left == {jobs[number].name for number in (0, 1, 4, 5)}
    job_run.forget_old_jobs(1)
    assert {each.name for each in place.iterdir()} == {"plans", jobs[1].name}


def test_a_job_whose_folder_was_removed_while_it_waited_has_one(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "cache/pyvmm/jobs" / JOB.name
    folder.mkdir(parents=True)
    waits = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with locked(folder, lambda line: None):
            done = threads.submit(job_run.run_job, JOB, lambda line: waits.set())
            assert waits.wait(20)
            shutil.rmtree(folder)
        assert done.result().run == lab.answer
    assert {each.name for each in folder.iterdir()} == {"job.json", "result.json"}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 2}', "\xff", "[" * 100_000])
def test_a_damaged_result_is_made_again(lab: Lab, text: str, tmp_path: Path) -> None:
    first = run()
    (kept,) = tmp_path.rglob("result.json")
    kept.write_text(text, encoding="latin-1")
    assert run() == first and len(lab.runs) == 2


@pytest.mark.parametrize(("key", "value"), [("job", "0123456789abcdef"), ("counters", ["aaaa"])])
def test_a_result_of_another_job_and_damaged_counters_do_not_count(
    lab: Lab, key: str, value: object, tmp_path: Path
) -> None:
    first = run()
    (kept,) = tmp_path.rglob("result.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), key: value}))
    assert run() == first and len(lab.runs) == 2


def test_a_result_that_cannot_be_kept_is_a_result(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / f"cache/pyvmm/jobs/{JOB.name}/result.json/in the way").mkdir(parents=True)
    said: list[str] = []
    done = job_run.run_job(JOB, said.append)
    assert done.run == lab.answer
    (line,) = said
    assert line.startswith("a result is not kept: cache folder ") and "Is a directory" in line


def test_where_nothing_can_be_written_what_is_kept_is_given_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel("built", lab.image, "6.12")
    monkeypatch.setattr(job_run, "source_path", lambda path: path)
    monkeypatch.setattr(job_run, "build", lambda *_, **__: kernel)
    job = replace(JOB, kernel=Built("6.12", (Patch("a.patch", "+\udcff"),), "CONFIG_X=y\n"))
    kept = run(), run(job)
    free = count(1 << 20, 1 << 20)  # others use the disk, too
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    monkeypatch.setattr(job_run, "_JOB_MIB", 1 << 40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        assert (run(), run(job)) == kept
        said = set()
        for seed in range(3):
            with pytest.raises(LabError) as caught:
                run(replace(JOB, seed=100 + seed))
            said.add(str(caught.value))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = said  # what all lack is said once
    assert line.startswith("no room in the cache ")


def test_a_file_is_written_whole_by_several_at_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    texts = [str(number) * 100_000 for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda text: write_whole(path, text), texts * 25))
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            write_whole(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_what_is_wrong_here_is_one_line_and_status_125(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def says(job: Job) -> str:
        path = tmp_path / "job.json"
        path.write_text(to_text(job))
        assert main(["lab", "job", str(path)]) == 125
        out, err = capsys.readouterr()
        assert not out and err.startswith("pyvmm: lab: ") and err.count("\n") == 1, err
        return err

    assert "No such file" in says(replace(JOB, kernel=Image(str(tmp_path / "none"), "0a" * 32)))
    assert "not a bzImage" in says(replace(JOB, kernel=Image(str(lab.image), "0a" * 32)))
    assert "No such file" in says(replace(JOB, kernel=Built(str(tmp_path / "none.tar.xz"))))
    broken = Built("6.12", config="nonsense")
    assert "want CONFIG_NAME=VALUE" in says(replace(JOB, kernel=broken))
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 12345)
        assert "it belongs to another user; XDG_CACHE_HOME" in says(JOB)
    with monkeypatch.context() as patched:
        patched.setattr(job_run, "_JOB_MIB", 1 << 40)
        assert "no room in the cache" in says(JOB)


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="qemu-system-x86_64: not found"):
        run()


def test_a_cache_that_cannot_be(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(LabError, match="Not a directory; XDG_CACHE_HOME"):
        run()
