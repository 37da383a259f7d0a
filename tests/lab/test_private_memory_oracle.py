"""Oracles that share no code with pyvmm: two ABIs of private memory, by ioctls from C."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

RACE_ROUNDS = "300"


@pytest.mark.lab(kernel="memory-error")
def test_the_kernel_has_the_rfc_s_private_memory(tmp_path: Path) -> None:
    check("memory_error_abi", tmp_path)


@pytest.mark.lab(kernel="in-place")
def test_the_kernel_has_in_place_conversion(tmp_path: Path) -> None:
    check("in_place_abi", tmp_path)


def check(name: str, folder: Path) -> None:
    binary, program = folder / name, Path(__file__).with_name(f"{name}.c")
    flags = ["-O1", "-pthread", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", binary, program], check=True, timeout=120)
    result = subprocess.run(
        [binary, RACE_ROUNDS], capture_output=True, text=True, timeout=200, check=False
    )
    failed = [line for line in result.stdout.splitlines() if line.startswith("not ok")]
    assert (result.returncode, failed) == (0, []), result.stdout
