"""Kernels that count what they execute, and kernels that watch themselves.

Each has to be built, so they are tested where PYVMM_OTHER_KERNELS is set: to "coverage", "light",
"faults" or several, joined by commas. CI has the first two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.boots, pytest.mark.timeout(1800)]

_WANTED = os.environ.get("PYVMM_OTHER_KERNELS", "").split(",")
_PYVMM = [sys.executable, "-m", "pyvmm"]

#: One line is executed by every punch, and one by none: an empty range never gets there.
_PATCH = """\
--- a/virt/kvm/guest_memfd.c
+++ b/virt/kvm/guest_memfd.c
@@ -157,5 +157,9 @@
 \tpgoff_t start = offset >> PAGE_SHIFT;
 \tpgoff_t end = (offset + len) >> PAGE_SHIFT;
 \tstruct kvm_gmem *gmem;
\x20
+\t/* Nothing is to be done for an empty range. */
+\tif (start == end)
+\t\treturn 0;
+
 \t/*
"""


def wants(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        name not in _WANTED, reason=f"PYVMM_OTHER_KERNELS={name} builds its kernel"
    )


@wants("coverage")
def test_what_a_command_executes(tmp_path: Path) -> None:
    """Of two runs in one kernel that counts, only the one that punches executes a punch."""
    executed = {}
    for name in ("GM1", "PC6"):
        words = ["lab", "run", "--coverage", "--results", str(tmp_path / name)]
        command = [*_PYVMM, *words, "--", *_PYVMM, "validate", "-k", name]
        subprocess.run(command, check=True, timeout=1500)
        executed[name] = (tmp_path / name / "coverage.info").read_text()
    punches = {
        name: int(line.removeprefix("FNDA:").partition(",")[0])
        for name, text in executed.items()
        for line in text.splitlines()
        if line.startswith("FNDA:") and line.endswith(",kvm_gmem_punch_hole")
    }
    assert punches["GM1"] == 0 < punches["PC6"]


@wants("coverage")
def test_which_changed_lines_are_executed(tmp_path: Path) -> None:
    patch = tmp_path / "0001-empty.patch"
    patch.write_text(_PATCH)
    out = tmp_path / "out"
    words = ["lab", "check", "--patch", str(patch), "--coverage", "--results", str(out)]
    command = [*_PYVMM, *words, "-k", "GM1 or PC6", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=1500)
    lines = json.loads(done.stdout)["coverage"]["changed_lines"]
    (asked, left) = lines
    assert asked["count"] > 0 and asked["branches"].count(0) == 1
    assert {name.partition(".")[0] for name in asked["cases"]} == {"PC6"}
    # The compiler makes a jump to another return of it: it has no counter, and the branch tells.
    assert not left["count"] and left["cases"] == []
    text = (out / "check.txt").read_text()
    assert "changed lines executed\n" in text and "guest_memfd.c:163 (return 0;)" in text
    assert (out / "coverage.html").exists()


@wants("light")
def test_a_splat_names_its_case(tmp_path: Path) -> None:
    """A case of a kernel that watches itself runs in peace, and trouble is told with it."""
    build = [*_PYVMM, "lab", "build", "--debug", "light", "--name", "light"]
    subprocess.run(build, check=True, timeout=1500)
    run = [*_PYVMM, "lab", "run", "--kernel", "light", "--"]
    validate = [*_PYVMM, "validate", "-k", "GM1 or PC6 or PC7 or SL1"]
    assert subprocess.run([*run, *validate], timeout=300).returncode == 0
    breaks = "echo 'pyvmm: begins: XX1.breaks' >/dev/kmsg; echo CORRUPT_LIST_ADD >"
    breaks += "/sys/kernel/debug/provoke-crash/DIRECT"
    told = subprocess.run([*run, "sh", "-c", breaks], stderr=subprocess.PIPE, timeout=300)
    assert told.returncode == 125 and b"(while XX1.breaks ran)" in told.stderr


@wants("faults")
def test_what_fails_on_request() -> None:
    """Allocations and pages: all of their cases run, and pass."""
    build = [*_PYVMM, "lab", "build", "--debug", "faults", "--name", "faults"]
    subprocess.run(build, check=True, timeout=1500)
    chosen = "(failing_allocations or poisoned_pages) and not FA2"
    command = [*_PYVMM, "lab", "run", "--kernel", "faults", "--", *_PYVMM, "validate", "--json"]
    done = subprocess.run([*command, "-k", chosen], stdout=subprocess.PIPE, check=True, timeout=300)
    results = json.loads(done.stdout)["results"]
    assert len(results) >= 14 and {each["state"] for each in results} == {"pass"}
