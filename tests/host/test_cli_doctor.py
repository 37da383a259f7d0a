"""``pyvmm doctor`` on a host with KVM, and without."""

from __future__ import annotations

import resource
from pathlib import Path

from pyvmm_command import pyvmm, quoted, with_mounts

from pyvmm.cli import doctor
from pyvmm.doctor import Checkup, DeviceFacts
from pyvmm.memory.backends import BACKENDS

SHAPE = {
    "schema", "usable", "host", "device", "vm_types", "backends", "behaviours", "capabilities",
    "limits", "tools", "kernels",
}  # fmt: skip


def test_here() -> None:
    outcome = pyvmm("doctor", "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    checkup = outcome.json
    assert set(checkup) == SHAPE
    assert checkup["usable"] and checkup["device"]["usable"]
    assert checkup["device"]["api_version"] == 12
    assert set(checkup["backends"]) == set(BACKENDS)
    assert checkup["backends"]["emulated"]["mechanism"] in ("prot_none", "slots")
    for backend in checkup["backends"].values():
        assert backend["usable"] == bool(backend["mechanism"]) != bool(backend["missing"])
    assert checkup["behaviours"]["real_mode"]["works"]
    assert checkup["capabilities"]["KVM_CAP_USER_MEMORY"]["vm"]["default"] == 1
    for tool in ("as", "ld"):
        assert checkup["tools"][tool]["path"]


def test_its_verdict_on_backends_is_what_run_finds() -> None:
    for name, backend in pyvmm("doctor", "--json").json["backends"].items():
        outcome = pyvmm("run", "hello.S", "--backend", name, "--json")
        assert outcome.status == (0 if backend["usable"] else 4)
        if backend["usable"]:
            assert outcome.json["mechanism"] == backend["mechanism"]
        else:
            assert backend["missing"] in outcome.json["reason"]


def test_text() -> None:
    outcome = pyvmm("doctor")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "yes emulated" in outcome.stdout and "\x1b" not in outcome.stdout


def test_a_kernels_long_name_stands_apart_from_its_release() -> None:
    device = DeviceFacts("/dev/kvm", False, "a problem", "a remedy", None, (), {})
    checkup = Checkup(device, {}, {}, {}, {}, {}, {}, {"x" * 40: "6.12", "y": "7.3"})
    lines = list(doctor._lines(checkup, colour=False))
    assert f"  {'x' * 40}  Linux 6.12" in lines and f"  {'y':<40}  Linux 7.3" in lines


def test_without_dev_kvm(tmp_path: Path) -> None:
    prefix = with_mounts(f"mount --bind {quoted(tmp_path)} /dev")
    outcome = pyvmm("doctor", "--json", prefix=prefix)
    assert (outcome.status, outcome.stderr) == (4, "")
    checkup = outcome.json
    assert set(checkup) == SHAPE
    assert not checkup["usable"] and "ENOENT" in checkup["device"]["problem"]
    assert "modprobe" in checkup["device"]["remedy"]
    text = pyvmm("doctor", prefix=prefix)
    assert text.status == 4 and "modprobe" in text.stdout and text.stderr == ""


def test_without_permission(tmp_path: Path) -> None:
    closed = tmp_path / "kvm"
    closed.touch(mode=0)
    prefix = with_mounts(f"mount --bind {quoted(closed)} /dev/kvm", capabilities=False)
    outcome = pyvmm("doctor", "--json", prefix=prefix)
    assert outcome.status == 4
    assert "EACCES" in outcome.json["device"]["problem"]
    assert "usermod" in outcome.json["device"]["remedy"]


def test_with_hardly_any_open_files() -> None:
    for files in range(5, 12):
        outcome = pyvmm(
            "doctor",
            "--json",
            before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),  # noqa: B023
        )
        assert outcome.status in (0, 4) and set(outcome.json) == SHAPE
        assert not outcome.json["limits"]["open_files"]["enough"]
