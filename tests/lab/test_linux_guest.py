"""A Linux kernel as the guest: to its initramfs and off, on a KVM that is itself emulated.

PYVMM_LINUX_BESIDE_QEMU=3 boots it so many times in turns with QEMU on the same KVM and prints the
ratio; PYVMM_MEMTEST=FILE starts a memtest86+ (memtest86+x64.bin of Debian's package).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tiny_kernels import POWER_OFF, SEND, initramfs, kernel

from pyvmm import Kvm, Machine, Result
from pyvmm.guest.linux import Linux
from pyvmm.lab.kernels import built_kernels

# What an emulated KVM cannot measure or does not do rightly; docs/linux.md says more.
APPEND = (
    "console=ttyS0 quiet panic=-1 lpj=5000000 no_timer_check nowatchdog lapic=notscdeadline noxsave"
    " tsc=reliable tsc_early_khz="
)
SCRIPT = """
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t proc proc /proc
exec >/dev/console 2>&1
echo "shell of $(/bin/busybox uname -r) with $(/bin/busybox nproc) CPUs, $(/bin/busybox date +%Y)"
/bin/busybox grep -o 'ttyS0$' /proc/interrupts
/bin/busybox poweroff -f
"""
BOOTS = int(os.environ.get("PYVMM_LINUX_BESIDE_QEMU", "0"))
MEMTEST = os.environ.get("PYVMM_MEMTEST", "")


def image() -> tuple[bytes, str]:
    """The default kernel's file, or another one's of the lab, and its release."""
    found = min(built_kernels(), key=lambda each: each.name != "default")
    return found.image.read_bytes(), found.release


def append() -> str:
    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return f"{APPEND}{vcpu.get_tsc_khz()}"


def test_linux_boots_to_a_shell_and_powers_off() -> None:
    vcpus = 2
    kernel, release = image()
    platform = Linux(append=append(), initrd=initramfs(SCRIPT))
    with Machine(kernel, platform=platform, vcpus=vcpus) as machine:
        report = machine.run(240)
    assert report.passed, (report.reason, report.serial)
    year = time.gmtime().tm_year
    assert f"shell of {release} with {vcpus} CPUs, {year}\r\nttyS0\r\n" in report.serial
    assert (report.platform, report.mode) == ("linux", "long")


def test_a_panic_fails() -> None:
    kernel, _ = image()
    with Machine(kernel, platform=Linux(append=append())) as machine:
        report = machine.run(240)
    assert report.result is Result.FAIL
    assert "reset the machine by its reset register" in report.reason
    assert "Kernel panic - not syncing" in report.serial


def test_a_kernel_by_the_command_line(tmp_path: Path) -> None:
    source = f"movl 0x228(%rsi), %ebx\n movl $0x90000, %esp\n call send\n{POWER_OFF}{SEND}"
    (tmp_path / "bzImage").write_bytes(kernel(source))
    command = [
        sys.executable,
        "-m",
        "pyvmm",
        "run",
        str(tmp_path / "bzImage"),
        "--append",
        "hello there",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("hello there\nPASS ")


@pytest.mark.skipif(not MEMTEST, reason="PYVMM_MEMTEST names none")
def test_memtest_starts() -> None:
    """Its screen is on the serial console, drawn at a line a second where exits are slow."""
    screen = bytearray()

    def show(data: bytes) -> None:
        screen.extend(data)
        if b"Errors: 0" in screen:
            machine.kick()

    platform = Linux(memory=64, append="console=ttyS0,115200", show=show)
    with Machine(Path(MEMTEST).read_bytes(), platform=platform) as machine:
        report = machine.run(250)
    assert report.result is Result.INTERRUPTED, report.reason
    assert "Memtest86+" in report.serial and "Status: Testing" in report.serial


@pytest.mark.skipif(not BOOTS, reason="PYVMM_LINUX_BESIDE_QEMU says how often")
def test_its_time_beside_qemus() -> None:
    """By the minimum of boots in turns, each with all that a command takes."""
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    kernel, release = image()
    files, words = initramfs(SCRIPT), append()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("bzImage", kernel), ("initrd", files)):
            (Path(folder) / name).write_bytes(content)
        command = [qemu, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
        command += ["-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256", "-append", words]
        command += ["-kernel", "bzImage", "-initrd", "initrd"]
        for _ in range(BOOTS):
            started = time.monotonic()
            with Machine(kernel, platform=Linux(append=words, initrd=files)) as machine:
                assert machine.run(200).passed
            ours.append(time.monotonic() - started)
            started = time.monotonic()
            run = subprocess.run(command, cwd=folder, capture_output=True, timeout=200, check=True)
            theirs.append(time.monotonic() - started)
            assert f"shell of {release}" in run.stdout.decode()
    print(f"\npyvmm {ours} s, QEMU {theirs} s, ratio {min(ours) / min(theirs):.3f}")
