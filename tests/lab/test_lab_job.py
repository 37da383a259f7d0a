"""`pyvmm lab job` in a lab that is really booted; what it says is tested in the unit lane."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from lab_command import LAB, end_while_it_boots

from pyvmm.lab.build import find_or_build
from pyvmm.validate.jobs.job import Image, Job, to_text
from pyvmm.validate.jobs.run import sha256_of
from pyvmm.validate.run.catalogue import select

pytestmark = pytest.mark.boots


def test_a_job_that_is_ended_and_begun_again(tmp_path: Path) -> None:
    """No QEMU is left, nothing half is kept, and what came of it once is the answer later."""
    kernel = find_or_build("default", lambda line: None)
    names = tuple(each.name for each in select("MR6 or MR4"))
    job = Job(Image(str(kernel.image), sha256_of(kernel.image)), names, 7)
    path = tmp_path / "job.json"
    path.write_text(to_text(job))
    places = {name: tmp_path / name for name in ("tmp", "cache")}
    for place in places.values():
        place.mkdir()
    environment = {
        **os.environ,
        "TMPDIR": str(places["tmp"]),
        "XDG_CACHE_HOME": str(places["cache"]),
    }
    command = [*LAB, "job", str(path)]
    end_while_it_boots(command, environment, places["tmp"])
    assert list(places["tmp"].iterdir()) == []
    assert not list(places["cache"].rglob("result.json"))

    def answer() -> bytes:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
        assert done.returncode == 0, done
        return done.stdout

    first = answer()
    data = json.loads(first)
    assert data["job"] == job.name and data["report"]["machine"]["kernel"] == kernel.release
    assert {each["name"]: each["state"] for each in data["report"]["results"]} == dict.fromkeys(
        names, "pass"
    )
    assert any("Linux version" in line for line in data["kernel_log"])
    started = time.monotonic()
    assert answer() == first
    assert time.monotonic() - started < 5, "it has booted again"
