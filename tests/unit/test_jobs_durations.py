"""How long cases took: recorded by kernels that are alike, and asked for when jobs are cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pyvmm.lab.kernels import give_name
from pyvmm.validate.jobs import durations
from pyvmm.validate.jobs.durations import Durations
from pyvmm.validate.jobs.job import Built, Image, Job, Named, Patch
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

JOB = Job(Named("default"), (select("MR6")[0].name,), 7)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyvmm"


def result(name: str, state: State = State.PASS, seconds: float = 0.0) -> CaseResult:
    return CaseResult(name, name.split(".")[0], "", "tests", state, duration_s=seconds)


def built(source: str, patches: tuple[str, ...], debug: tuple[str, ...] = ()) -> Job:
    texts = tuple(Patch(name, "") for name in patches)
    return replace(JOB, kernel=Built(f"/usr/src/{source}", texts, "", debug))


def test_durations_are_recorded_and_what_is_damaged_is_none(cache: Path) -> None:
    assert Durations().of(JOB) == {}
    durations.record(JOB, [result("A1.a", seconds=2.5), result("B1.b", State.SKIP)])
    durations.record(JOB, [result("A1.a", seconds=3.5), result("C1.c", seconds=1)])
    assert Durations().of(JOB) == {"A1.a": 3.5, "B1.b": 0.0, "C1.c": 1.0}
    durations.record(JOB, [result("A1.a", State.SKIP), result("B1.b", seconds=2)])
    assert Durations().of(JOB) == {"A1.a": 0.0, "B1.b": 2.0, "C1.c": 1.0}
    hung = result("C1.c", State.HANG, 60), result("D1.d", State.HANG, 60)
    durations.record(JOB, hung)  # it waited for its deadline
    assert Durations().of(JOB) == {"A1.a": 0.0, "B1.b": 2.0, "C1.c": 1.0}
    damaged = ["", "[]", "[" * 100_000, '{"a": "b"}', '{"a": null}', f'{{"a": {"9" * 400}}}']
    for text in (*damaged, '{"a": NaN}', '{"a": 1e999}', '{"a": -1}'):
        (cache / "durations.json").write_text(text)
        assert Durations().of(JOB) == {}


def test_a_case_takes_what_it_took_on_such_a_kernel(cache: Path) -> None:
    """Which cases are skipped depends on the source, the lab's own patches and the parameters."""
    plain = built("6.12", ())
    durations.record(plain, [result("A1.a", State.SKIP), result("B1.b", seconds=2)])
    durations.record(built("6.12", ("memory-error.patch",)), [result("A1.a", seconds=10)])
    series = built("6.12", ("0001-a.patch", "0002-b.patch"))
    assert Durations().of(series) == {"A1.a": 0.0, "B1.b": 2.0}
    upon = built("6.12", ("memory-error.patch", "0001-a.patch"))
    assert Durations().of(upon) == {"A1.a": 10.0, "B1.b": 2.0}
    varied = replace(plain, parameters=("kvm_amd.npt=0",))
    watching = built("6.12", (), ("kasan",))
    for never_ran in (varied, watching, built("7.3", ())):
        assert Durations().of(never_ran) == {"A1.a": 5.0, "B1.b": 2.0}, "the mean"
    durations.record(varied, [result("A1.a", seconds=4)])
    assert Durations().of(varied) == {"A1.a": 4.0, "B1.b": 2.0}
    assert Durations().of_all([series, upon, varied]) == {"A1.a": 14 / 3, "B1.b": 2.0}


def test_a_kernel_that_was_built_is_known_by_its_image_and_by_its_name(cache: Path) -> None:
    folder = cache / "kernels/1"
    folder.mkdir(parents=True)
    bzimage = bytearray(4096)
    bzimage[0x1F1], bzimage[0x1FE:0x206] = 4, b"\x55\xaa__HdrS"
    (folder / "bzImage").write_bytes(bzimage)
    facts = {"release": "6.12.1", "source": "/usr/src/6.12", "patches": ["0001-a.patch"]}
    (folder / "kernel.json").write_text(json.dumps(facts))
    image = replace(JOB, kernel=Image(str(folder / "bzImage"), "0" * 64))
    durations.record(image, [result("A1.a", seconds=3)])
    give_name("mine", folder)
    durations.record(JOB, [result("A1.a", seconds=9)])  # of another kernel
    for job in (replace(JOB, kernel=Named("mine")), built("6.12", ())):
        assert Durations().of(job) == {"A1.a": 3.0}
    gone = replace(image, kernel=Image(str(folder / "gone"), "0" * 64))
    assert Durations().of(gone) == {"A1.a": 6.0}
