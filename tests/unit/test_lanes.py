"""The lanes' own promises: a lane that cannot run is said to, and is a failure when required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

NO_KVM = "\nimport lanes\nlanes.why_no_kvm = lambda: 'no KVM today'\n"
A_TEST_EACH = {
    "unit/test_of_unit.py": "def test_one(): pass\ndef test_two(): pass\n",
    "host/test_of_host.py": "def test_three(): pass\n",
    "lab/test_of_lab.py": (
        "import pytest\ndef test_four(): pass\n@pytest.mark.boots\ndef test_five(): pass\n"
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> object:
    """Runs pytest on a suite of its own, without QEMU; returns status and output."""
    tests = tmp_path / "tests"
    for name in ("lanes.py", "conftest.py"):
        tests.mkdir(exist_ok=True)
        shutil.copy(TESTS / name, tests)
    for name, text in A_TEST_EACH.items():
        (tests / name).parent.mkdir(exist_ok=True)
        (tests / name).write_text(text)

    def pytest_run(*arguments: str, kvm: bool = True) -> tuple[int, str]:
        if not kvm:
            with (tests / "conftest.py").open("a") as conftest:
                conftest.write(NO_KVM)
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return result.returncode, result.stdout + result.stderr

    return pytest_run


def test_each_lane_gets_a_line(run) -> None:  # type: ignore[no-untyped-def]
    status, output = run(kvm=False)
    assert status == 0
    assert "unit: 2 ran, 2 passed, 0 failed; 0 did not run" in output
    assert "host: 0 ran, 0 passed, 0 failed; 1 did not run\n    1: no KVM today" in output
    assert "lab: 0 ran, 0 passed, 0 failed; 2 did not run\n    2: the lab was not asked" in output


def test_the_lab_is_asked_for_by_its_folder(run) -> None:  # type: ignore[no-untyped-def]
    status, output = run("tests/lab")
    assert status == 0
    assert "lab: 0 ran, 0 passed, 0 failed; 2 did not run\n    2: qemu-system-x86_64" in output


@pytest.mark.parametrize("lane", ["host", "lab", "unit,host", "host,lab"])
def test_a_required_lane_that_cannot_run_is_a_failure(run, lane: str) -> None:  # type: ignore[no-untyped-def]
    status, output = run("--require-lanes", lane, kvm=False)
    assert status == 1
    assert f"lane {lane.split(',')[-1]} is required and could not run" in output


def test_a_required_lane_without_tests_is_a_failure(run) -> None:  # type: ignore[no-untyped-def]
    status, output = run("--require-lanes", "unit,lab", "tests/unit")
    assert status == 1
    assert "lane lab is required and ran no tests" in output
    status, output = run("--require-lanes", "unit", "-k", "nothing")
    assert status == 1
    assert "lane unit is required and ran no tests" in output


def test_required_lanes_that_ran_are_fine(run) -> None:  # type: ignore[no-untyped-def]
    assert run("--require-lanes", "unit")[0] == 0


def test_a_failure_stays_one(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Path(tmp_path, "tests/unit/test_bad.py").write_text("def test_bad(): assert 0\n")
    status, output = run("--require-lanes", "unit")
    assert status == 1
    assert "unit: 3 ran, 2 passed, 1 failed" in output


def test_an_unknown_lane_is_a_usage_error(run) -> None:  # type: ignore[no-untyped-def]
    status, output = run("--require-lanes", "unit,nonsense")
    assert status == 4
    assert "nonsense: no such lane" in output


def test_collecting_boots_nothing_and_requires_nothing(run) -> None:  # type: ignore[no-untyped-def]
    status, output = run("--collect-only", "-q", "--require-lanes", "unit,host,lab")
    assert status == 0
    assert "test_four" in output and "booting" not in output


def test_two_processes_count_as_one(run) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("xdist")
    status, output = run("-n", "2", "--require-lanes", "unit,host", kvm=False)
    assert "unit: 2 ran, 2 passed, 0 failed; 0 did not run" in output
    assert "lab: 0 ran, 0 passed, 0 failed; 2 did not run\n    2: the lab was not asked" in output
    assert "host: 0 ran, 0 passed, 0 failed; 1 did not run\n    1: no KVM today" in output
    assert status == 1 and "lane host is required and could not run: no KVM today" in output


@pytest.mark.parametrize("asked", [("tests/lab",), ("--require-lanes", "lab")])
def test_the_lab_lane_is_for_one_process(run, asked: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("xdist")
    status, output = run("-n", "2", *asked)
    assert status == 4 and "one process boots the labs" in output


def test_the_seed_is_printed_and_can_be_given(run) -> None:  # type: ignore[no-untyped-def]
    assert "seed: 12345 (" in run("--hypothesis-seed=12345", "tests/unit")[1]


def test_quick_lanes_come_first(run) -> None:  # type: ignore[no-untyped-def]
    _, output = run("-v", "tests/lab", "tests/host", "tests/unit")
    order = [output.index(name) for name in ("::test_one", "::test_three", "::test_five")]
    assert order == sorted(order)
