"""The catalogue on kernels with private memory: nothing fails, little is skipped.

PYVMM_VALIDATE_ALL=1 adds the subjects that take long or look at chances and at counters of
the whole system.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.abis.guest_memfd import RULES, GuestMemfdState, GuestMemfdSystem
from pyvmm.validate.model.explore import explore
from pyvmm.validate.model.play import Play
from pyvmm.validate.model.script import Layout, Script, to_text

SUBJECTS: tuple[str, ...] = (
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
# The model; with a vCPU that stays inside the guest, too, when all is asked for.
RUNNING = ""
if "PYVMM_VALIDATE_ALL" in os.environ:
    SUBJECTS += LONG_SUBJECTS
    RUNNING = "MODEL"
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
    report = validate("-k", f"{subject} and not MODEL")
    passed = states(report, "pass")
    assert len(passed) > 4 or len(passed) == len(report["results"]), states(report, "skip")


def test_what_every_case_of_the_merged_abi_needs_is_here() -> None:
    report = validate("--backend", "guest_memfd", "-k", "(conversions or slots) and not MODEL")
    unexpected = [
        (name, message)
        for name, message in states(report, "skip")
        if not any(word in message for word in MAY_BE_MISSING)
    ]
    assert not unexpected
    assert len(states(report, "pass")) >= 100


@pytest.mark.lab(kernel="memory-error")
def test_the_rfcs_abi() -> None:
    # Guest paging is KVM's work without nested paging: test_shadow_paging.py.
    report = validate("--backend", "memory_error", "-k", "not MODEL and not guest_paging or SH2")
    assert not states(report, "skip")
    assert len(states(report, "pass")) >= 80


@pytest.mark.lab(kernel="7.3")
@pytest.mark.parametrize("subject", ["guest_memfd", "misuse", "slots"])
def test_a_newer_kernel(subject: str) -> None:
    report = validate("-k", f"{subject} and not MODEL")
    assert states(report, "pass")


# What the lab's machine cannot have: KVM has no async page faults without a local APIC.
IN_PLACE_MAY_LACK = ("async page faults", "memory control groups", "memory.current", "race")


@pytest.mark.lab(kernel="in-place")
@pytest.mark.parametrize("subject", ["calls", "states", "host", "references", "races", "kernel"])
def test_in_place_conversion(subject: str) -> None:
    report = validate("--backend", "in_place", "-k", f"in_place_{subject}")
    skipped = states(report, "skip")
    assert not [each for each in skipped if not any(word in each[1] for word in IN_PLACE_MAY_LACK)]
    assert len(states(report, "pass")) >= 8


@pytest.mark.lab(kernel="in-place")
def test_the_model_of_in_place_conversion() -> None:
    report = validate("-k", RUNNING or "MODEL6", "--model-examples", "5", "--seed", "1")
    assert len(states(report, "pass")) >= 3


@pytest.mark.lab(kernel="in-place")
def test_other_cases_know_a_kernel_that_converts_in_place() -> None:
    report = validate("-k", "attributes or capabilities")
    assert states(report, "pass")
    skipped = [message for name, message in states(report, "skip") if name.startswith("AT1.")]
    assert skipped and all("private_memory" in message for message in skipped)


def test_races_happen_here() -> None:
    report = validate("-k", "RC4 or PE1 or MR8")
    assert not states(report, "skip")
    assert all(re.search("[1-9]", each["detail"]) for each in report["results"])
    assert re.search(r"lost races in .* flips", report["machine"]["races"])
    flipped = [each["detail"] for each in report["results"] if each["id"] == "RC4"]
    numbers = [re.findall(r"[\d,]+", detail) for detail in flipped]
    lost_races, flips = (sum(int(each[at].replace(",", "")) for each in numbers) for at in (0, 1))
    print(f"{lost_races} lost races in {flips} flips: {lost_races / flips:.2%}")
    assert lost_races >= 0.005 * flips, flipped


def test_the_model() -> None:
    report = validate("-k", RUNNING or "MODEL1", "--model-examples", "5", "--seed", "1")
    assert len(states(report, "pass")) >= 3


@pytest.mark.lab(kernel="memory-error")
def test_the_model_of_the_rfcs_abi() -> None:
    report = validate("-k", RUNNING or "MODEL2", "--model-examples", "5", "--seed", "1")
    assert len(states(report, "pass")) >= 3


class ForgetsTheLastPage(GuestMemfdState):
    """A model that is wrong: a conversion of several pages leaves the last one out."""

    def convert(self, page: int, count: int, private: bool) -> None:
        super().convert(page, max(1, count - 1), private)


def test_a_wrong_model_shrinks_to_a_short_script(tmp_path: Path) -> None:
    layout = Layout(0x80000, 8, slots=2, file_pages=12, file_offset=3)

    def player(script: Script, tools: Toolbox) -> None:
        system = GuestMemfdSystem(tools, script.layout)
        Play(RULES, ForgetsTheLastPage(script.layout), system).all(script.steps)

    found = explore(
        "guest_memfd",
        layout,
        seed=1,
        examples=50,
        running=tmp_path / "running.json",
        seconds=60,
        shrink_seconds=100,
        player=player,
    )
    assert found is not None
    assert len(found.script.steps) <= 4, found
    file = tmp_path / "script.json"
    file.write_text(to_text(found.script))
    command = [sys.executable, "-m", "pyvmm", "validate", "--replay", str(file)]
    assert subprocess.run(command, timeout=100, check=False).returncode == 0
