"""The catalogue on kernels with private memory: nothing fails, little is skipped.

All of it runs on the default kernel, once; PYVMM_VALIDATE_ALL=1 adds more of the model on others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.abis.guest_memfd import RULES, GuestMemfdState, GuestMemfdSystem
from pyvmm.validate.model.explore import explore
from pyvmm.validate.model.play import Play
from pyvmm.validate.model.script import Layout, Script, to_text
from pyvmm.validate.run.catalogue import all_cases, select

# The model plays with a vCPU that stays inside the guest, too, when all is asked for.
RUNNING = "MODEL" if "PYVMM_VALIDATE_ALL" in os.environ else ""
# The whole catalogue, on a busy host, too.
LONGEST_S = 1500
# Whichever test comes first waits for the run that others share.
pytestmark = pytest.mark.timeout(LONGEST_S + 60)
IN_PLACE = [
    f"in_place_{each}"
    for each in ("calls", "states", "host", "references", "races", "accesses", "kernel")
]
# What the default kernel has no case of, or few.
ON_REQUEST = ("failing_allocations", "poisoned_pages")  # --debug faults
OF_ANOTHER_KERNEL = (
    *("guest_paging", "emulation_in_views", "memory_error"),
    *(*ON_REQUEST, *IN_PLACE),
)
# Cases that this kernel, or the lab's machine, has nothing for.
MAY_BE_MISSING = ("hugetlb", "default VM", "VM of type 0", "memory_error", "emulated backend")


@cache
def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run these cases; tests that want the same ones share it."""
    command = ["timeout", str(LONGEST_S), sys.executable, "-m", "pyvmm", "validate", "--json"]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


def validate(*words: str, subject: str = "") -> Mapping[str, Any]:
    """A run in which nothing fails: of it all, or what it says of one subject."""
    done = run(*words)
    assert done.returncode in (0, 1), (done.returncode, done.stdout[-3000:], done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    report["results"] = [each for each in report["results"] if subject in ("", each["subject"])]
    assert not states(report, "fail", "hang", "crash"), report["seed"]
    return report


def states(report: Mapping[str, Any], *wanted: str) -> list[tuple[str, str]]:
    return [
        (each["name"], each["message"]) for each in report["results"] if each["state"] in wanted
    ]


@pytest.mark.parametrize("subject", sorted({each.subject for each in all_cases()}))
def test_subject(subject: str) -> None:
    report = validate(subject=subject)
    assert len(report["results"]) == sum(each.subject == subject for each in all_cases())
    if subject not in OF_ANOTHER_KERNEL:
        passed = states(report, "pass")
        assert len(passed) > 2 or len(passed) == len(report["results"]), states(report, "skip")


def test_what_every_case_of_the_merged_abi_needs_is_here() -> None:
    cases = {each.name for each in select("conversions or slots", "guest_memfd")}
    unexpected = [
        (name, message)
        for name, message in states(validate(), "skip")
        if name in cases and not any(word in message for word in MAY_BE_MISSING)
    ]
    assert not unexpected
    assert len(cases & {name for name, _ in states(validate(), "pass")}) >= 100


@pytest.mark.lab(kernel="memory-error")
def test_the_rfcs_abi() -> None:
    # Guest paging is KVM's work without nested paging: test_shadow_paging.py.
    report = validate("--backend", "memory_error", "-k", "not MODEL and not guest_paging or SH2")
    assert not states(report, "skip")
    assert len(states(report, "pass")) >= 80


@pytest.mark.lab(kernel="7.3")
@pytest.mark.parametrize("subject", ["guest_memfd", "misuse", "slots"])
def test_a_newer_kernel(subject: str) -> None:
    report = validate("-k", "(guest_memfd or misuse or slots) and not MODEL", subject=subject)
    assert states(report, "pass")


# What the lab's machine cannot have: KVM has no async page faults without a local APIC.
IN_PLACE_MAY_LACK = ("async page faults", "race happened")


@pytest.mark.lab(kernel="in-place")
@pytest.mark.parametrize("subject", IN_PLACE)
def test_in_place_conversion(subject: str) -> None:
    report = validate("--backend", "in_place", "-k", " or ".join(IN_PLACE), subject=subject)
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
    report = dict(validate())
    report["results"] = [each for each in report["results"] if each["id"] in ("RC4", "PE1", "MR8")]
    assert not states(report, "skip")
    assert all(re.search("[1-9]", each["detail"]) for each in report["results"])
    assert re.search(r"lost races in .* flips", report["machine"]["races"])
    flipped = [each["detail"] for each in report["results"] if each["id"] == "RC4"]
    numbers = [re.findall(r"[\d,]+", detail) for detail in flipped]
    lost_races, flips = (sum(int(each[at].replace(",", "")) for each in numbers) for at in (0, 1))
    print(f"{lost_races} lost races in {flips} flips: {lost_races / flips:.2%}")
    assert lost_races >= 0.005 * flips, flipped


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
