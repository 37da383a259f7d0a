"""The RFC's kernel without nested paging: its promises hold where KVM walks the guest's tables.

A choice of it, quickly; PYVMM_VALIDATE_ALL=1 runs all cases of the RFC's ABI and the whole model.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from pyvmm.guest.shipped import guests_dir
from pyvmm.lab.lab import Lab
from pyvmm.validate.run.worker import NO_RACE

pytestmark = [pytest.mark.boots, pytest.mark.timeout(900)]

ALL = "PYVMM_VALIDATE_ALL" in os.environ
CASES = (
    "ME1 or ME6 or ME11 or ME14 or SH2 or SH4 and mode=32 or SH9 or emulation_in_views"
    " or SH1 and (tables=none or tables=private) or SH3 and tables=private and by=write"
)
GUESTS = ("convert", "smp", "exec")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("memory-error", params=["kvm_amd.npt=0"], tcg="multi", announce=print) as lab:
        yield lab


def validate(lab: Lab, *words: str) -> dict[str, list[tuple[str, str]]]:
    """Names and messages of the cases, by how they ended."""
    command = [sys.executable, "-m", "pyvmm", "validate", "--backend", "memory_error", "--json"]
    done = lab.run([*command, "-j", "2", *words], timeout=800)
    assert done.exit_status() in (0, 1), (done.problem, done.errors.decode(), done.splats)
    found: dict[str, list[tuple[str, str]]] = {}
    for each in json.loads(done.output)["results"]:
        found.setdefault(each["state"], []).append((each["name"], each["message"]))
    return found


def test_the_cases_of_the_rfcs_abi(lab: Lab) -> None:
    found = validate(lab, "-k", "not MODEL" if ALL else CASES)
    # A busy host may keep two CPUs from meeting, in one case or another.
    skipped = found.pop("skip", [])
    assert len(skipped) <= 3 and all(message == NO_RACE for _, message in skipped), skipped
    assert list(found) == ["pass"], {**found, "pass": []}
    assert len(found["pass"]) > 30


def test_the_model(lab: Lab) -> None:
    words = ("-k", "MODEL") if ALL else ("-k", "MODEL2", "--model-examples", "2", "--seed", "1")
    found = validate(lab, *words)
    assert list(found) == ["pass"], {**found, "pass": []}


@pytest.mark.parametrize("guest", GUESTS)
def test_guests(lab: Lab, guest: str) -> None:
    command = [sys.executable, "-m", "pyvmm", "run", str(guests_dir() / f"{guest}.S")]
    words = ["--json", "--backend", "memory_error", "--deadline", "100"]
    done = lab.run([*command, *words], timeout=120)
    report = json.loads(done.output)
    assert (done.exit_status(), report["result"]) == (0, "pass"), report["reason"]
    assert report["conversions"]["to_private"] > 0


def test_the_merged_abi_says_why_it_is_not_here(lab: Lab) -> None:
    command = [sys.executable, "-m", "pyvmm", "run", "hello.S", "--backend", "guest_memfd"]
    done = lab.run(command)
    assert done.status == 4
    assert b"no private memory attribute (no TDP MMU: npt=0" in done.errors
