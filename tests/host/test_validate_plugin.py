"""The pytest plugin, as somebody uses it: in a folder of their own, by its entry point or -p."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("no_leak")

TEN_LINES = """
def test_first_touch_converts(machine, assemble):
    report = machine(assemble('''
        movw $PRIVATE, %ax
        movw %ax, %es
        movb $0x5a, %es:0
        assert_eqb %es:0, $0x5a
        exit_guest $0
    '''))
    assert report.conversions.to_private == 1
"""


def run(folder: Path, text: str, *words: str) -> tuple[int, str]:
    (folder / "test_mine.py").write_text(text)
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import importlib.metadata as m\n"
            "print([e.name for e in m.entry_points(group='pytest11')])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    plugin = [] if "'pyvmm'" in listed else ["-p", "pyvmm.pytest_plugin"]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", "-rsf", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr


def test_ten_lines(tmp_path: Path) -> None:
    status, output = run(tmp_path, TEN_LINES)
    assert (status, "1 passed" in output) == (0, True), output


def test_a_guests_failure_names_its_line(tmp_path: Path) -> None:
    status, output = run(tmp_path, TEN_LINES.replace("$0x5a\n        exit", "$0x5b\n        exit"))
    assert status == 1
    assert "test_mine.py:7: assert failed" in output, output
    assert "seen 0x5a, expected 0x5b" in output
    assert "Traceback" not in output and "pytest_plugin.py" not in output
    assert "FAILED test_mine.py::test_first_touch_converts - fail: vCPU 0: test_mine.py:7" in output


def test_a_guest_is_found_in_its_file(tmp_path: Path) -> None:
    """One that stands there twice by the nearest, one that stands nowhere by the call."""
    text = """

def test_a(machine, assemble):
    machine(assemble('''
        assert_eqb %al, $2
    '''))

def test_b(machine, assemble):
    machine(assemble('''
        assert_eqb %al, $2
    '''))

def test_c(assemble):
    assemble('''
        exit_guest $0
        nonsense
    ''')

def test_d(machine, assemble):
    machine(assemble("1: jmp 1b\\n"), deadline_s=0.2)
"""
    status, output = run(tmp_path, text)
    assert status == 1
    assert "test_mine.py:5: assert failed" in output, output
    assert "test_mine.py:10: assert failed" in output
    assert "test_mine.py:16: Error: no such instruction: `nonsense'" in output
    assert "assembler.py" not in output
    assert "(test_mine.py:20)" in output


def test_other_projects_are_left_alone(tmp_path: Path) -> None:
    """A mark of the same name is theirs; nothing is imported or opened for tests without KVM."""
    text = """
import sys
import pytest

@pytest.mark.needs("network", why=3)
@pytest.mark.needs(5)
def test_a():
    mine = {name for name in sys.modules if name.split(".")[0] == "pyvmm"}
    assert mine <= {"pyvmm", "pyvmm.moved", "pyvmm.pytest_plugin"}
"""
    status, output = run(tmp_path, text, "-W", "error", "--strict-markers")
    assert (status, "1 passed" in output) == (0, True), output


def test_the_ioctls_are_there(tmp_path: Path) -> None:
    text = "def test_reset(vm, vcpu):\n    assert vcpu.get_regs().rip == 0xFFF0\n"
    status, output = run(tmp_path, text)
    assert status == 0, output


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    text = """
from pyvmm.pytest_plugin import needs

@needs("guests", "memory_error")
def test_a(): pass

@needs("nonsense")
def test_b(): pass

def test_c(private_region):
    private_region.to_private(0, 4096)
    private_region.expect_guest_zero(0, 4096, "a private page")
"""
    status, output = run(tmp_path, text)
    assert status == 1
    assert "memory_error: " in output or "3 passed" in output, output
    assert "needs('nonsense'): there is no such capability; use attributes" in output


def test_ktap(tmp_path: Path) -> None:
    text = TEN_LINES + "\ndef test_bad():\n    assert 1 == 2, 'not # equal'\n"
    text += "\nimport pytest\ndef test_old():\n    pytest.xfail('mended in 6.18')\n"
    status, _ = run(tmp_path, text, "--ktap", "out.ktap")
    assert status == 1
    lines = (tmp_path / "out.ktap").read_text().splitlines()
    assert lines[:3] == [
        "KTAP version 1",
        "1..3",
        "ok 1 test_mine.py::test_first_touch_converts",
    ]
    assert lines[-2:] == [
        "not ok 2 test_mine.py::test_bad",
        "ok 3 test_mine.py::test_old # XFAIL mended in 6.18",
    ]
    assert any("not # equal" in line for line in lines)
    status, output = run(tmp_path, text, "--ktap", "/nowhere/out.ktap")
    assert status == 4
    assert "--ktap /nowhere/out.ktap: No such file" in output and "Traceback" not in output
