"""Each guest ends as its head says, on the backend that this host has, and leaves nothing.

PYVMM_ROUNDS=100 runs the whole set that often, one round after the other, with 1, 2 and 4 vCPUs.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest
from guest_heads import (
    Head,
    cases,
    check_report,
    guests,
    run_guest,
    skip_where_the_head_says,
)

from pyvmm import Kvm
from pyvmm.guest.shipped import guests_dir
from pyvmm.memory.backends import choose_backend

ROUNDS = int(os.environ.get("PYVMM_ROUNDS", "1"))
VCPUS = (1, 2) if ROUNDS == 1 else (1, 2, 4)


@cache
def backend() -> str:
    with Kvm() as kvm:
        return choose_backend(kvm, "auto")[0].name


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize(("path", "options", "vcpus"), cases(VCPUS, ROUNDS))
def test_guest_ends_as_its_head_says(path: Path, options: str, vcpus: int) -> None:
    head = Head.of(path)
    skip_where_the_head_says(head, options, backend())
    report = run_guest(path, head, options, vcpus)
    check_report(report, head, options)


@pytest.mark.parametrize("options", ["", "--views 1"])
def test_interrupts_come_once_and_not_before_hlt(options: str) -> None:
    """What irq.S counts apart from its ticks: QEMU's SVM has such interrupts, no CPU has."""
    path = guests_dir() / "irq.S"
    report = run_guest(path, Head.of(path), options, 1)
    check_report(report, Head.of(path), options)
    assert list(report.measures[1:]) == [0, 0]


@pytest.mark.parametrize("path", guests(), ids=lambda path: path.name)
def test_head_is_complete(path: Path) -> None:
    text = path.read_text()
    assert re.match(rf"(?:/\*\n \*|#) {re.escape(path.name)} - ", text)
    keys = ["shows", "vcpus", "exits", "expect"]
    for key in [*keys, "modes"] if path.parent.name == "long" else keys:
        assert re.search(rf"^(?:#| \*) {key}: ", text, re.MULTILINE), f"{path.name} lacks {key}"
    assert Head.of(path).value("expect", "")


def test_most_vcpus() -> None:
    """The protocol's 28 vCPUs convert the same pages."""
    path = guests_dir() / "smp.S"
    report = run_guest(path, Head.of(path), "--param ROUNDS=1 --param FIGHT_ROUNDS=1", 28)
    assert report.passed, report.reason
