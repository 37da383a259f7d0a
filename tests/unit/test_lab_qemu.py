"""The lab around QEMU, with stand-ins for QEMU: refusals, silence, what is left behind."""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.cli.lab import usual_tcg
from pyvmm.lab.agent import HELLO, RUN, Unpacker, pack_structure
from pyvmm.lab.errors import KernelFailed, LabError, LabUsageError
from pyvmm.lab.initramfs import find_busybox
from pyvmm.lab.kernels import Kernel, last_log
from pyvmm.lab.lab import Lab
from pyvmm.lab.qemu import Qemu, QemuMachine, Tcg, remove_stale_folders

_SILENT = "exec sleep 1000"
_REFUSES = "echo 'qemu-system-x86_64: invalid kernel header' >&2; exit 1"
_PANICS = "echo '[    1.0] Kernel panic - not syncing: VFS: no root' >console"
_NO_9P = "echo 'pyvmm-init: no 9p: CONFIG_9P_FS' >console"

StandIn = Callable[[str], None]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put a shell script in QEMU's place, and everything it uses below tmp_path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "busybox").write_text("in busybox's place\n")
    (tools / "busybox").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places = tmp_path / "places"
    places.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(places))

    def make(script: str) -> None:
        program = tools / "qemu-system-x86_64"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return make


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    (tmp_path / "bzImage").write_bytes(b"")
    return Kernel("mine", tmp_path / "bzImage", "9.9")


def _left_behind() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("pyvmm-lab-*"))


def test_no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: Kernel) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="qemu-system-x86_64: not found; run 'pyvmm lab setup'"):
        Lab(kernel).__enter__()


def test_what_is_missing_is_said_before_a_kernel_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    with pytest.raises(LabUsageError, match="0 CPUs"):
        Lab("default", cpus=0, announce=said.append)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="qemu-system-x86_64"):
        Lab("default", announce=said.append)
    assert said == []


def test_a_working_folder_that_is_gone(
    stand_in: StandIn, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = pack_structure(HELLO, {"release": "", "log": [], "kvm": True, "private": True})
    (tmp_path / "hello").write_bytes(hello)
    stand_in(f"cat {tmp_path}/hello; exec sleep 1000")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with Lab(kernel) as lab, pytest.raises(LabUsageError, match="the working folder"):
        lab.run(["true"])


def test_no_busybox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(LabError, match="busybox: not found; run 'pyvmm lab setup'"):
        find_busybox()


def test_a_busybox_with_libraries_is_no_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/bin/sh")
    with pytest.raises(LabError, match="not statically linked"):
        find_busybox()


@pytest.mark.parametrize(
    ("script", "cause", "attempts"),
    [
        (_REFUSES, "invalid kernel header", 1),
        (_NO_9P, "CONFIG_9P_FS", 1),
        (_PANICS, "Kernel panic - not syncing: VFS: no root", 2),
        (_SILENT, "not a word on its serial console", 2),
        ("exit 0", "QEMU ended with status 0", 1),
    ],
)
def test_a_kernel_that_does_not_boot(
    stand_in: StandIn, kernel: Kernel, script: str, cause: str, attempts: int, no_leak: None
) -> None:
    stand_in(script)
    said: list[str] = []
    with pytest.raises(LabError) as caught:
        Lab(kernel, boot_timeout=0.5, announce=said.append).__enter__()
    assert caught.value.status == 125
    assert cause in str(caught.value)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(said) == attempts - 1
    assert _left_behind() == []
    if attempts == 2 and script == _PANICS:
        assert "Kernel panic" in last_log().read_text()


def test_a_kernel_without_a_cpu_is_not_one_that_does_not_boot(
    stand_in: StandIn, kernel: Kernel, tmp_path: Path
) -> None:
    """It takes a fifth of the time limit, of the one CPU that six others have, too."""
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("needs CONFIG_SCHED_INFO")
    hello = pack_structure(HELLO, {"release": "9.9", "log": [], "kvm": True, "private": True})
    (tmp_path / "hello").write_bytes(hello)
    cpu = min(os.sched_getaffinity(0))
    code = f"import os, time\nos.sched_setaffinity(0, [{cpu}])\n"
    (tmp_path / "boots.py").write_text(
        f"{code}while time.process_time() < 0.4: pass\n"
        f"os.write(1, open('{tmp_path}/hello', 'rb').read())\ntime.sleep(1000)\n"
    )
    stand_in(f"exec {sys.executable} {tmp_path}/boots.py")
    others = [
        subprocess.Popen([sys.executable, "-c", f"{code}while True: pass"], start_new_session=True)
        for _ in range(6)
    ]
    try:
        begun = time.monotonic()
        with Lab(kernel, boot_timeout=2) as lab:
            took = time.monotonic() - begun
            assert lab.release == "9.9"
        assert took > 2, "it had a CPU: the test shows nothing"
    finally:
        for each in others:
            each.kill()
            each.wait()


def test_a_qemu_that_is_killed_is_no_death_of_the_kernel(
    stand_in: StandIn, kernel: Kernel, tmp_path: Path, no_leak: None
) -> None:
    stand_in("kill -KILL $$")
    with pytest.raises(LabError, match="QEMU: it was killed") as caught:
        Lab(kernel).__enter__()
    assert not isinstance(caught.value, KernelFailed)
    hello = pack_structure(HELLO, {"release": "", "log": [], "kvm": True, "private": True})
    (tmp_path / "hello").write_bytes(hello)
    stand_in(f"cat {tmp_path}/hello; read -r word; kill -KILL $$")
    with Lab(kernel) as lab, pytest.raises(LabError, match="QEMU: it was killed"):
        lab.run(["true"], env={}, stdin=b"\n", timeout=20)
    stand_in(f"cat {tmp_path}/hello; read -r word")
    with Lab(kernel) as lab:
        assert "the lab's kernel died" in str(lab.run(["true"], stdin=b"\n", timeout=20).problem)
    assert _left_behind() == []


def test_interrupted_while_it_boots(stand_in: StandIn, kernel: Kernel, no_leak: None) -> None:
    stand_in(_SILENT)
    handler = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            Lab(kernel).__enter__()
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert _left_behind() == []


def test_qemu_dies_with_its_parent(stand_in: StandIn, kernel: Kernel) -> None:
    stand_in(f"echo $$ >{kernel.image}; exec sleep 1000")
    code = (
        "import sys, tempfile; from pathlib import Path; from pyvmm.lab.kernels import Kernel\n"
        f"tempfile.tempdir = {tempfile.gettempdir()!r}\n"
        "from pyvmm.lab.lab import Lab\n"
        f"Lab(Kernel('mine', Path({str(kernel.image)!r}), '')).__enter__()"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while not kernel.image.read_text().endswith("\n"):
            assert process.poll() is None
            time.sleep(0.01)
        pid = int(kernel.image.read_text())
        ended = os.pidfd_open(pid)
        process.kill()
    assert signal_comes(ended)
    # Its folder is for the next lab to remove, once it is old enough to be nobody's.
    (folder,) = _left_behind()
    remove_stale_folders()
    assert folder.exists()
    os.utime(folder, (1, 1))
    remove_stale_folders()
    assert not folder.exists()


def signal_comes(pidfd: int) -> bool:
    import select

    try:
        return bool(select.select([pidfd], [], [], 30)[0])
    finally:
        os.close(pidfd)


def test_a_folder_in_use_is_not_removed(stand_in: StandIn, kernel: Kernel) -> None:
    stand_in(_SILENT)
    with Qemu(QemuMachine(kernel.image, 1, 256, "", None), b"") as qemu:
        os.utime(qemu.folder, (1, 1))
        remove_stale_folders()
        assert qemu.folder.exists()
    assert _left_behind() == []


def test_what_qemu_is_told(stand_in: StandIn, kernel: Kernel, tmp_path: Path) -> None:
    results = tmp_path / "a,b"
    results.mkdir()
    stand_in('for word; do echo "$word"; done >arguments; exec sleep 1000')
    with Qemu(QemuMachine(kernel.image, 3, 512, "quiet kvm_amd.npt=0", results), b"") as qemu:
        while not (qemu.folder / "arguments").exists() or not (
            words := (qemu.folder / "arguments").read_text()
        ).endswith("mount_tag=pyvmm-results\n"):
            assert qemu.process.poll() is None
            time.sleep(0.01)
    assert "\n-smp\n3\n-m\n512\n" in words
    assert "\n-append\nquiet kvm_amd.npt=0\n" in words
    assert f"path={tmp_path}/a,,b," in words
    assert "path=/,security_model=none,readonly=on" in words
    assert "\n-accel\ntcg,thread=single\n" in words


@pytest.mark.parametrize(
    ("tcg", "cpus", "guest_cpu"), [("single", 2, ""), ("multi", 3, "2"), ("multi", 1, "")]
)
def test_what_a_command_is_told_of_the_cpus(
    stand_in: StandIn, kernel: Kernel, tmp_path: Path, tcg: Tcg, cpus: int, guest_cpu: str
) -> None:
    hello = pack_structure(HELLO, {"release": "", "log": [], "kvm": True, "private": True})
    (tmp_path / "hello").write_bytes(hello)
    stand_in(f"echo $* >{tmp_path}/words; cat {tmp_path}/hello; cat >{tmp_path}/request")
    with Lab(kernel, tcg=tcg, cpus=cpus) as lab:
        lab.run(["true"], timeout=1, env={"ENOUGH": "x" * 100})
    assert f" tcg,thread={tcg} " in (tmp_path / "words").read_text()
    ((kind, job),) = Unpacker().feed((tmp_path / "request").read_bytes().partition(b"I")[0])
    assert kind == RUN
    assert marshal.loads(job)["env"].get("PYVMM_GUEST_CPU", "") == guest_cpu


@pytest.mark.parametrize(
    ("command", "tcg"),
    [
        ("pyvmm validate", "multi"),
        ("/opt/bin/pyvmm run a.S", "multi"),
        ("python3.11 -P -m pyvmm validate", "multi"),
        ("python -m pyvmm", "multi"),
        ("python -m pytest -m pyvmm", "single"),
        ("python -c pyvmm", "single"),
        ("python", "single"),
        ("python pyvmm", "single"),
        ("sh -c pyvmm", "single"),
        ("", "single"),
    ],
)
def test_how_cpus_are_emulated_for_a_command(command: str, tcg: str, tmp_path: Path) -> None:
    assert usual_tcg("default", command.split()) == tcg
    (tmp_path / "bzImage").touch()
    assert usual_tcg(str(tmp_path / "bzImage"), command.split()) == "single"


def test_a_kernels_name_may_be_no_files_name() -> None:
    assert usual_tcg("x" * 300, ["pyvmm"]) == "multi"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 33}, "33 CPUs"),
        ({"memory_mib": 1 << 40}, "MiB of memory: this machine has"),
        ({"memory_mib": 1}, "1 MiB"),
        ({"params": ["a b"]}, "'a b'"),
        ({"params": [""]}, "''"),
        ({"params": ["a\nb"]}, "NAME=VALUE"),
        ({"params": ["x" * 1000, "y" * 1000]}, "drops the rest"),
        ({"results_mib": 0}, "0 MiB"),
        ({"tcg": "both"}, "want single or multi"),
        ({"results": "/"}, "a folder of its own"),
        ({"results": "/proc/nowhere"}, "/proc/nowhere"),
        ({"results": "/etc/passwd"}, "/etc/passwd"),
    ],
)
def test_requests_that_cannot_be_right(
    kernel: Kernel, arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(LabUsageError) as caught:
        Lab(kernel, **arguments)  # type: ignore[arg-type]
    assert complaint in str(caught.value)
    assert caught.value.status == 2
