"""What a worker keeps of the kernels that come to it."""

from __future__ import annotations

import hashlib
import os
import resource
import time
from pathlib import Path

import pytest

from pyvmm.lab.errors import LabError
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs import result as results
from pyvmm.validate.jobs import run as job_run
from pyvmm.validate.jobs import there
from pyvmm.validate.jobs.job import Job, Named, to_text
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.run.catalogue import select

FACTS = {"name": "some"}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "pyvmm" / "images"
    folder.mkdir(parents=True)
    return folder


def come(image: bytes, token: str = "token") -> str:
    there.take(token, 0, image)
    name = hashlib.sha256(image).hexdigest()
    assert there.put_together([0], token, FACTS, name) == there.KERNEL_HAS_COME
    return name


def test_a_kernel_comes_whole(images: Path) -> None:
    name = come(b"a kernel")
    assert [each.name for each in images.iterdir()] == [name]
    assert (images / name / "bzImage").read_bytes() == b"a kernel"


def test_a_kernel_that_is_damaged_is_to_come_again(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.parents[1]))
    ran: list[str] = []
    monkeypatch.setattr(there, "run_job", lambda job, *_, kernel, **__: ran.append(kernel.name))
    monkeypatch.setattr(there, "from_text", lambda text: None)
    monkeypatch.setattr(results, "to_text", lambda done: "done")
    facts = there.facts_of(Kernel("some", Path("x"), "6.12"))
    name = hashlib.sha256(b"a kernel").hexdigest()
    assert there.run("", name, False) == there.NO_KERNEL

    def comes() -> str:
        there.take("token", 0, b"a kernel")
        there.put_together([0], "token", facts, name)
        return there.run("", name, False)

    assert comes() == there.run("", name, False) == "done" and ran == ["some", "some"]
    for file, text in (("bzImage", "a ker"), ("kernel.json", "[]"), ("kernel.json", "{}")):
        (images / name / file).write_text(text)
        assert there.run("", name, False) == there.NO_KERNEL
        assert comes() == "done"
    (images / name / "bzImage").unlink()
    assert there.run("", name, False) == there.NO_KERNEL


def test_a_kernel_is_read_once_for_a_job(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.parents[1]))
    read: list[Path] = []

    def sha256_of(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    for module in (there, job_run):
        monkeypatch.setattr(module, "sha256_of", sha256_of)
        monkeypatch.setattr(module, "find_qemu", lambda: "")
        monkeypatch.setattr(module, "find_busybox", lambda: "")
    run = LabRun((), (), 7, 1.0)
    monkeypatch.setattr(job_run, "run_in_lab", lambda *_: run)
    facts = there.facts_of(Kernel("some", Path("x"), "6.12"))
    name = hashlib.sha256(b"a kernel").hexdigest()
    there.take("token", 0, b"a kernel")
    text = to_text(Job(Named("some"), (select("MR6")[0].name,), 7))
    there.put_together([0], "token", facts, name)
    assert read == [images / name / "token.new"]
    read.clear()
    done = results.from_text(there.run(text, name, False))
    assert done.run == run and done.kernel.sha256 == name
    assert read == [images / name / "bzImage"]


def test_those_that_were_used_last_are_kept(images: Path) -> None:
    names = [come(b"%d" % number) for number in range(there.MOST_KERNELS)]
    for age, name in enumerate(names):
        os.utime(images / name, times=(0, time.time() - 60 - age))
    names.append(come(b"one more"))
    assert {each.name for each in images.iterdir()} == {*names} - {names[-2]}


def test_a_kernel_that_is_in_use_stays(images: Path) -> None:
    used = come(b"in use")
    with there._in_use(images / used):
        os.utime(images / used, times=(0, 0))
        for number in range(there.MOST_KERNELS + 1):
            come(b"%d" % number, f"token{number}")
        assert (images / used / "bzImage").exists()
    come(b"one more")
    assert not (images / used).exists() and len(list(images.iterdir())) == there.MOST_KERNELS


def test_a_kernel_is_in_use_while_its_job_runs(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.parents[1]))

    def run(job: str, *_: object) -> str:
        there._forget_old_kernels()
        return job

    monkeypatch.setattr(there, "_run", run)
    monkeypatch.setattr(there, "MOST_KERNELS", 1)
    for name in ("a", "b"):
        (images / name).mkdir()
    os.utime(images / "a", times=(0, 0))
    assert there.run("done", "a", False) == "done" and (images / "a").exists()
    assert there.run("done", "b", False) == "done" and not (images / "a").exists()
    assert there.run("done", "a", False) == there.NO_KERNEL and not (images / "a").exists()


def test_nothing_is_left_of_what_is_damaged_on_its_way(images: Path) -> None:
    there.take("token", 0, b"a ker")
    with pytest.raises(LabError, match="it was damaged on its way"):
        there.put_together([0], "token", FACTS, hashlib.sha256(b"a kernel").hexdigest())
    assert [path for path in images.rglob("*") if path.is_file()] == []


def test_a_kernel_that_does_not_fit(images: Path) -> None:
    """Beyond a quota, which the room on the disk does not say."""
    image = b"a kernel" * 100
    name = hashlib.sha256(image).hexdigest()
    there.take("token", 0, image[:500])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    said = f"cache folder {images}: File too large; XDG_CACHE_HOME names another place"
    try:
        with pytest.raises(LabError, match=said):
            there.take("other", 0, image)
        there.take("token", 500, image[500:])
        with pytest.raises(LabError, match=said):
            there.put_together([0, 500], "token", FACTS, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in images.rglob("*") if path.is_file()] == []


def test_what_came_in_part_goes_after_a_day(images: Path) -> None:
    for token, age in (("late", there.LONGEST_WAY_S + 60), ("coming", 60)):
        there.take(token, 0, b"a piece")
        os.utime(images / f"coming-{token}", times=(0, time.time() - age))
    name = come(b"a kernel")
    assert {each.name for each in images.iterdir()} == {name, "coming-coming"}


def test_what_came_of_jobs_is_kept_for_so_many(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.parents[1]))
    monkeypatch.setattr(there, "_kernel", lambda sha256: Kernel("some", Path("x"), "6.12"))
    monkeypatch.setattr(there, "from_text", lambda text: text)
    monkeypatch.setattr(there, "MOST_JOBS", 2)
    monkeypatch.setattr(results, "to_text", lambda done: "done")
    jobs = images.parent / "jobs"

    def run_job(name: str, *_: object, **__: object) -> None:
        (jobs / name).mkdir(parents=True)
        os.utime(jobs / name, times=(0, int(name, 16)))

    monkeypatch.setattr(there, "run_job", run_job)
    for number in range(1, 5):
        assert there.run(f"{number:016}", "", False) == "done"
    assert {int(each.name) for each in jobs.iterdir()} == {3, 4}
