"""An oracle that shares no code with pyvmm: the RFC's ABI, by ioctls from C."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("memory_error_abi.c")
RACE_ROUNDS = "300"


@pytest.mark.lab(kernel="memory-error")
def test_the_kernel_has_the_rfc_s_private_memory(tmp_path: Path) -> None:
    binary = tmp_path / "memory_error_abi"
    flags = ["-O1", "-pthread", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", binary, PROGRAM], check=True, timeout=120)
    result = subprocess.run(
        [binary, RACE_ROUNDS], capture_output=True, text=True, timeout=200, check=False
    )
    failed = [line for line in result.stdout.splitlines() if line.startswith("not ok")]
    assert (result.returncode, failed) == (0, []), result.stdout
