"""`pyvmm lab check` on kernels that are really booted; what it says is tested in the unit lane."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lab_command import LAB, end_while_it_boots

from pyvmm.lab.build import find_or_build

pytestmark = pytest.mark.boots


def check(*words: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [*LAB, "check", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_two_kernels_that_differ(tmp_path: Path) -> None:
    """What the RFC's ABI has runs on one kernel only; nothing fails on either."""
    done = check(
        "--kernel", "memory-error", "--kernel", "default", "-k", "MR4 or ME2", "--seed", 5,
        "--results", tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done
    lines = done.stdout.splitlines()
    assert lines[0] == "WORSE: 1 newly skipped"
    assert len(lines) < 40
    assert "seed 5" in done.stdout and "ME2" in done.stdout
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"check.txt", "check.json", "before", "now", "before-2", "now-2"}
    data = json.loads((tmp_path / "check.json").read_text())
    (variant,) = data["variants"]
    (skipped,) = variant["changes"]["newly skipped"]
    # A case that differs is run again.
    assert [len(skipped["before"]), len(skipped["now"])] == [2, 2]
    for name in files - {"check.txt", "check.json"}:
        assert json.loads((tmp_path / name / "validate.json").read_text())["seed"] == 5
    assert "Linux version" in (tmp_path / "now/kernel.log").read_text()


def test_an_interrupted_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has run is kept until the check has come to its end."""
    images = [str(find_or_build(name, lambda line: None).image) for name in ("default", "default")]
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    words = ["--kernel", images[0], "--kernel", images[1], "-k", "MR4", "--workers", "1"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    end_while_it_boots([*LAB, "check", *words], environment, temporary)
    (plan,) = cache.rglob("plan.json")
    seed = json.loads(plan.read_text())[0]
    done = check(*words)
    assert done.returncode == 0, done
    assert f"2 jobs on one lab, seed {seed}" in done.stderr
    assert not list((cache / "pyvmm/jobs/plans").iterdir())
    assert not list(cache.rglob("result.json"))


def test_the_same_with_each_value_of_a_parameter() -> None:
    same = ("--kernel", "default", "--kernel", "default", "-k", "MR6", "--json")
    done = check(*same, "--vary", "kvm_amd.npt=0,1")
    assert done.returncode == 0, done
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["verdict"] == "no difference" and not data["worse"]
    assert [each["parameters"] for each in data["variants"]] == [
        ["kvm_amd.npt=0"],
        ["kvm_amd.npt=1"],
    ]
    assert all(each["counts"]["same pass"] == 2 and not each["notes"] for each in data["variants"])
    done = check(*same, "--vary", "kvm_amd.ntp=0,1")
    assert done.returncode == 2
    assert "kvm_amd.ntp: neither kernel has such a module parameter" in done.stderr


def test_interrupted(tmp_path: Path) -> None:
    from pyvmm.lab.cache import cache_folder

    environment = dict(os.environ, TMPDIR=str(tmp_path))
    command = [*LAB, "check", "--kernel", "default"]
    command += ["--kernel", "default", "-k", "conversions"]
    pid = end_while_it_boots(command, environment, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not (cache_folder() / f"check.{pid}").exists()
