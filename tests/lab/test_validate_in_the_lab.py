"""The catalogue on kernels with private memory: nothing fails, little is skipped.

PYVMM_VALIDATE_ALL=1 adds the subjects that take long or look at chances and at counters of
the whole system.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

SUBJECTS = (
    "attributes",
    "capabilities",
    "conversions",
    "emulation",
    "exits",
    "hypercalls",
    "implicit",
    "memory_regions",
    "misuse",
    "pre_fault",
    "slots",
)
LONG_SUBJECTS = ("accounting", "costs", "guest_memfd", "huge", "races")
if "PYVMM_VALIDATE_ALL" in os.environ:
    SUBJECTS += LONG_SUBJECTS
# Cases that this kernel, or the lab's machine, has nothing for.
MAY_BE_MISSING = ("hugetlb", "default VM", "VM of type 0", "memory_error", "emulated backend")


def validate(*words: str) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "pyvmm", "validate", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), (done.stdout[-3000:], done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    bad = states(result, "fail", "hang", "crash")
    assert not bad
    return result


def states(report: Mapping[str, Any], *wanted: str) -> list[tuple[str, str]]:
    return [
        (each["name"], each["message"]) for each in report["results"] if each["state"] in wanted
    ]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subject(subject: str) -> None:
    report = validate("-k", subject)
    passed = states(report, "pass")
    assert len(passed) > 4 or len(passed) == len(report["results"]), states(report, "skip")


def test_what_every_case_of_the_merged_abi_needs_is_here() -> None:
    report = validate("--backend", "guest_memfd", "-k", "conversions or slots")
    unexpected = [
        (name, message)
        for name, message in states(report, "skip")
        if not any(word in message for word in MAY_BE_MISSING)
    ]
    assert not unexpected
    assert len(states(report, "pass")) >= 100


@pytest.mark.lab(kernel="memory-error")
def test_the_rfcs_abi() -> None:
    report = validate("--backend", "memory_error")
    assert not states(report, "skip")
    assert len(states(report, "pass")) >= 80


@pytest.mark.lab(kernel="7.3")
@pytest.mark.parametrize("subject", ["guest_memfd", "misuse", "slots"])
def test_a_newer_kernel(subject: str) -> None:
    report = validate("-k", subject)
    assert states(report, "pass")
