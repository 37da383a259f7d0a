"""Guests of other VMMs where a CPU runs them: paging in protected mode, several vCPUs, interrupts.

PYVMM_KVM_UNIT_TESTS=FOLDER, with the .flat files of a built kvm-unit-tests, runs all of them beside
QEMU; that takes half an hour. PYVMM_KVM_UNIT_TESTS_ONLY=NAME,… chooses some.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from kvm_unit_tests import EXCEPTED, TIME_LIMIT, rows

from pyvmm import Machine
from pyvmm.guest.assembler import image_of, read_guest
from pyvmm.guest.options import PlatformOptions
from pyvmm.guest.platforms import make_platform
from pyvmm.report import RunReport

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAGING = (("cr3", 0x2000), ("cr4", 0x10), ("cr0", 0x80000011))
FOREIGN = os.environ.get("PYVMM_KVM_UNIT_TESTS", "")
ONLY = [name for name in os.environ.get("PYVMM_KVM_UNIT_TESTS_ONLY", "").split(",") if name]
LIMIT_S = 90.0


def report_of(name: str, options: PlatformOptions, vcpus: int = 1) -> RunReport:
    platform = make_platform(options)
    guest = read_guest(EXAMPLES / name)
    image = image_of(guest, platform.layout, is_asked=True, make=platform.image)
    with Machine(image, platform=platform, vcpus=vcpus) as machine:
        return machine.run(60)


def test_paging_in_protected_mode() -> None:
    options = PlatformOptions(platform="bare", mode="protected", load=0, registers=PAGING)
    report = report_of("bare/hello32.S", options)
    assert report.passed, report
    assert report.serial == "hello from protected mode\n"


@pytest.mark.parametrize("vcpus", [2, 8])
def test_the_other_vcpus_are_started_by_the_guest(vcpus: int) -> None:
    report = report_of("multiboot/smp.S", PlatformOptions(platform="multiboot"), vcpus)
    assert report.passed and report.exit_code == 0, report


@pytest.mark.skipif(not FOREIGN, reason="PYVMM_KVM_UNIT_TESTS names no folder of .flat files")
def test_kvm_unit_tests_as_under_qemu() -> None:
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    found = [row for row in rows(Path(FOREIGN), ONLY, qemu, LIMIT_S) if row.name not in EXCEPTED]
    assert found
    others = [row for row in found if not row.is_same and row.qemu.status != TIME_LIMIT]
    assert not others, others
