"""Each guest ends as its head says, on the backend that this host has, and leaves nothing.

PYVMM_ROUNDS=100 runs the whole set that often, one round after the other.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from guest_heads import Head, cases, check_report, guests, run_guest

from pyvmm.guest.shipped import guests_dir

ROUNDS = int(os.environ.get("PYVMM_ROUNDS", "1"))


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize(("path", "options", "vcpus"), cases(rounds=ROUNDS))
def test_guest_ends_as_its_head_says(path: Path, options: str, vcpus: int) -> None:
    head = Head.of(path)
    report = run_guest(path, head, options, vcpus)
    check_report(report, head, options)


@pytest.mark.parametrize("path", guests(), ids=lambda path: path.stem)
def test_head_is_complete(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.name} - ")
    for key in ("shows", "vcpus", "exits", "expect"):
        assert re.search(rf"^# {key}: ", text, re.MULTILINE), f"{path.name} lacks {key}"
    assert Head.of(path).value("expect", "")


def test_most_vcpus() -> None:
    """The protocol's 28 vCPUs convert the same pages."""
    path = guests_dir() / "smp.S"
    report = run_guest(path, Head.of(path), "--param ROUNDS=1 --param FIGHT_ROUNDS=1", 28)
    assert report.passed, report.reason
