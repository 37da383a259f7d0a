"""Labs that are really booted: commands, their surroundings, trouble, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_command import LAB

from pyvmm.lab.errors import LabError
from pyvmm.lab.initramfs import build_initramfs, find_busybox
from pyvmm.lab.lab import Lab, RunResult

pytestmark = pytest.mark.boots

# drivers/misc/lkdtm makes the kernel fail in the way that is asked for.
_PROVOKE = "/sys/kernel/debug/provoke-crash/DIRECT"


def cli(*words: str, timeout: float = 200, **other: object) -> subprocess.CompletedProcess[bytes]:
    command = [*LAB, *words]
    return subprocess.run(command, capture_output=True, timeout=timeout, **other)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results folder, with a comma")


@pytest.fixture(scope="module")
def lab(results: Path) -> Iterator[Lab]:
    with Lab(results=results, results_mib=16) as lab:
        yield lab


def test_it_is_a_kvm_host_with_private_memory(lab: Lab) -> None:
    assert lab.lacks_private_memory is None
    assert lab.run(["uname", "-r"]).output.decode().strip() == lab.release
    assert lab.run(["test", "-c", "/dev/kvm"]).status == 0


def test_one_boot_serves_many_commands(lab: Lab) -> None:
    for number in range(20):
        result = lab.run(["sh", "-c", f"echo {number}; echo e >&2; exit {number}"])
        assert (result.status, result.output, result.errors) == (number, b"%d\n" % number, b"e\n")
        assert result.splats == () and result.problem is None


def test_files_written_anywhere_are_thrown_away(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("from the host")
    script = "cat here; echo gone >here; echo gone >new; mkdir d; rm -r d; ls; echo x >/etc/pyvmm-x"
    result = lab.run(["sh", "-c", script], cwd=tmp_path)
    assert result.status == 0, result.errors
    assert result.output == b"from the hosthere\nnew\n"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert (tmp_path / "here").read_text() == "from the host"
    assert not Path("/etc/pyvmm-x").exists()


def test_results_come_back(lab: Lab, results: Path) -> None:
    script = 'cd "$PYVMM_RESULTS" && pwd && mkdir deep && head -c 1000000 /dev/zero >deep/zeros'
    result = lab.run(["sh", "-c", script])
    assert result.output.decode() == f"{results}\n", result.errors
    assert (results / "deep/zeros").stat().st_size == 1000000


def test_this_python_and_its_packages_are_there(lab: Lab) -> None:
    code = "import sys, pytest, pyvmm; print(sys.executable, pyvmm.__file__)"
    import pyvmm

    result = lab.run([sys.executable, "-c", code])
    assert result.output.decode() == f"{sys.executable} {pyvmm.__file__}\n", result.errors


def test_environment_and_folder_are_the_callers(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVMM_ODD", os.fsdecode(b"\xff \n"))
    monkeypatch.chdir(tmp_path)
    result = lab.run(["sh", "-c", 'printf %s "$PYVMM_ODD"; pwd'])
    assert result.output == b"\xff \n" + os.fsencode(tmp_path) + b"\n"


def test_shared_memory_folder_is_usable(lab: Lab) -> None:
    code = (
        "from multiprocessing import Lock, shared_memory as s\n"
        "Lock().acquire(); m = s.SharedMemory(create=True, size=4096); m.buf[0] = 1; m.unlink()"
    )
    result = lab.run([sys.executable, "-c", code])
    assert result.status == 0, result.errors


def test_output_that_is_not_utf8(lab: Lab) -> None:
    result = lab.run(["printf", r"\377\376\0"])
    assert result.output == b"\xff\xfe\0"


@pytest.mark.parametrize(
    ("argv", "status"), [(["nowhere"], 127), (["/nowhere"], 127), (["/etc"], 126)]
)
def test_commands_that_do_not_exist_inside(lab: Lab, argv: list[str], status: int) -> None:
    result = lab.run(argv)
    assert result.status == status
    assert argv[0] in result.errors.decode()
    assert result.errors.count(b"\n") == 1


def test_a_warning_is_reported_with_its_lines(lab: Lab) -> None:
    result = lab.run(["sh", "-c", f"echo WARNING >{_PROVOKE}; exit 3"])
    assert result.status == 3
    assert result.exit_status() == 125
    assert result.exit_status(allow_warnings=True) == 3
    (splat,) = result.splats
    assert splat.title.startswith("WARNING: ")
    assert any("lkdtm_WARNING" in line for line in splat.lines)
    assert lab.run(["true"]).splats == (), "each command has its own part of the log"


def test_a_warning_is_not_lost_in_a_long_log(lab: Lab) -> None:
    """More lines after it than the kernel keeps."""
    script = (
        f"echo on >/proc/sys/kernel/printk_devkmsg; echo WARNING >{_PROVOKE}; i=0;"
        " while [ $i -lt 2000 ]; do echo '<7>" + "x" * 100 + "'; i=$((i + 1)); done >/dev/kmsg"
    )
    result = lab.run(["sh", "-c", script])
    assert result.status == 0, result.errors
    assert [splat.title.split()[0] for splat in result.splats] == ["WARNING:"]


def test_a_warning_names_its_case_after_many_quick_ones(lab: Lab) -> None:
    script = (
        "exec 3>/dev/kmsg; i=0; while [ $i -lt 50 ]; do echo '<6>pyvmm: begins: X'$i >&3;"
        " echo '<6>pyvmm: ended: X'$i >&3; i=$((i + 1)); done;"
        f" echo '<6>pyvmm: begins: last' >&3; echo WARNING >{_PROVOKE}"
    )
    (splat,) = lab.run(["sh", "-c", script]).splats
    assert splat.cases == ("last",)


class Clock:
    """The lab's clock; its time limits pass at once when a word is on the console."""

    def __init__(self, word: str, console: Path) -> None:
        self.word = word.encode()
        self.console = console
        self.ahead = 0.0

    def monotonic(self) -> float:
        if not self.ahead and self.word in self.console.read_bytes():
            self.ahead = 1e6
        return time.monotonic() + self.ahead


def until(word: str, script: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> RunResult:
    """Run a script that never ends; its time is up when this word is on the lab's console.

    The kernel writes there. A program would be late, or never run, when a task keeps its CPU.
    """
    with Lab(**options) as lab:
        assert lab._qemu is not None
        monkeypatch.setattr("pyvmm.lab.lab.time", Clock(word, lab._qemu.console))
        monkeypatch.setattr("pyvmm.lab.lab._LONGEST_WAIT", 0.1)
        result = lab.run(["sh", "-c", script], timeout=120)
        assert result.timed_out and result.status is None
        assert any(word in line for line in result.kernel_log)
        with pytest.raises(LabError, match="gone"):
            lab.run(["true"])
    return result


def test_a_time_out_ends_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    result = until("started", "echo started >/dev/kmsg; sleep 1000", monkeypatch)
    assert result.exit_status() == 124
    assert result.problem == "timed out after 120 s"


@pytest.mark.parametrize(
    ("how", "title"),
    [("PANIC", "Kernel panic"), ("BUG", "kernel BUG at"), ("EXCEPTION", "BUG: kernel NULL")],
)
def test_a_dead_kernel(how: str, title: str) -> None:
    ours, gate = os.pipe()
    said = bytearray()

    def take(data: bytes) -> None:
        said.extend(data)
        os.write(gate, b"go on\n")  # what was said is here: the kernel may die now

    script = f"echo before; read word; echo {how} >{_PROVOKE}"
    with Lab() as lab, open(ours, "rb"), open(gate, "wb"):
        result = lab.run(["sh", "-c", script], timeout=60, stdin=ours, stdout=take)
    assert result.status is None and not result.timed_out
    assert result.exit_status() == result.exit_status(allow_warnings=True) == 125
    assert said == b"before\n"
    assert result.splats[0].title.startswith(title)


@pytest.mark.parametrize(
    ("how", "title", "param"),
    [
        ("HUNG_TASK", "blocked for more than", "sysctl.kernel.hung_task_timeout_secs=2"),
        ("SOFTLOCKUP", "soft lockup", "watchdog_thresh=1"),
    ],
)
def test_a_task_that_does_not_go_on(
    how: str, title: str, param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = until(title, f"echo {how} >{_PROVOKE}", monkeypatch, params=[param])
    assert result.exit_status() == 125
    assert any(title in splat.title for splat in result.splats)


def test_a_callable_that_fails_ends_the_lab() -> None:
    def refuse(data: bytes) -> None:
        raise ValueError(data)

    with Lab() as lab:
        with pytest.raises(ValueError, match="out"):
            lab.run(["echo", "out"], stdout=refuse)
        with pytest.raises(LabError, match="gone"):
            lab.run(["true"])


def test_a_job_that_fills_the_results_folder(tmp_path: Path) -> None:
    with Lab(results=tmp_path, results_mib=8) as lab:
        script = 'while :; do head -c 1000000 /dev/zero >>"$PYVMM_RESULTS/big"; done'
        result = lab.run(["sh", "-c", script], timeout=120)
    assert result.status is None
    assert result.problem is not None and "8 MiB" in result.problem
    assert result.exit_status() == 125


def test_nested_paging_off_is_announced_not_failed() -> None:
    said: list[str] = []
    with Lab(params=["kvm_amd.npt=0"], announce=said.append) as lab:
        assert lab.lacks_private_memory == "kvm_amd.npt=0"
        assert lab.run(["true"]).exit_status() == 0
        command = [sys.executable, "-m", "pyvmm", "run", "hello.S", "--backend", "guest_memfd"]
        skipped = lab.run(command)
        assert skipped.status == 4
        assert b"(software-protected): kvm_amd.npt=0; load kvm_amd with npt=1" in skipped.errors
    assert any("no private memory: kvm_amd.npt=0" in line for line in said)


def test_no_kvm_is_said_and_the_lab_does_not_open() -> None:
    with pytest.raises(LabError, match="no KVM in this kernel: /dev/kvm"):
        Lab(params=["clearcpuid=svm"]).__enter__()


def test_two_labs_at_once() -> None:
    with Lab() as one, Lab(cpus=1) as two:
        assert one.run(["nproc"]).output == b"2\n"
        assert two.run(["nproc"]).output == b"1\n"
        assert one.run(["echo", "one"]).output == b"one\n"


# ---- the command line ----


def test_run_streams_and_returns_the_status() -> None:
    done = cli("run", "--", "sh", "-c", "cat; echo error >&2; exit 9", input=b"\x00\xffinput")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"\x00\xffinput", b"error\n")


def test_run_reports_trouble_and_keeps_the_log() -> None:
    done = cli("run", "--", "sh", "-c", f"echo PANIC >{_PROVOKE}")
    assert done.returncode == 125
    assert b"pyvmm: lab: the kernel's log has: Kernel panic - not syncing" in done.stderr
    assert b"Kernel panic - not syncing" in cli("kernel-log").stdout


def test_run_time_out() -> None:
    done = cli("run", "--timeout", "1", "--", "sleep", "1000")
    said = b"pyvmm: lab: timed out after 1 s; --timeout S gives it longer\n"
    assert (done.returncode, done.stderr) == (124, said)


def test_run_time_out_in_the_middle_of_cases() -> None:
    marks = ("begins: AA1.ended", "begins: AA2.one", "ended: AA1.ended", "begins: AA3.other")
    say = "; ".join(f"echo '<6>pyvmm: {mark}' >/dev/kmsg" for mark in marks)
    done = cli("run", "--timeout", "3", "--", "sh", "-c", f"{say}; sleep 1000")
    said = b"timed out after 3 s (while AA2.one, AA3.other ran); --timeout S gives it longer\n"
    assert (done.returncode, done.stderr) == (124, b"pyvmm: lab: " + said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["boot", "run"])
def test_interrupted(number: signal.Signals, when: str, tmp_path: Path) -> None:
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    command = [*LAB, "run", "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        if when == "run":
            assert process.stdout.readline() == b"up\n"
        while not (consoles := list(tmp_path.glob("pyvmm-lab-*/console"))):
            time.sleep(0.01)
        while not consoles[0].stat().st_size:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []
    assert not _qemus_in(tmp_path)


def _qemus_in(folder: Path) -> list[str]:
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(folder)):
                found.append(pid)
        except OSError:
            continue
    return found


def test_nobody_needs_to_be_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this runs as an ordinary user already")
    from pyvmm.lab.build import find_or_build

    image = find_or_build("default", lambda line: None).image.read_bytes()
    with tempfile.TemporaryDirectory() as place:
        Path(place, "bzImage").write_bytes(image)
        os.chmod(place, 0o777)
        os.chmod(Path(place, "bzImage"), 0o644)
        command = ["/usr/bin/python3", *LAB[1:], "run", "--kernel", f"{place}/bzImage"]
        top = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [*command, "--", "id", "-u"],
            cwd=place,
            env={"PATH": os.environ["PATH"], "HOME": place, "PYTHONPATH": str(top)},
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            timeout=200,
        )
    assert (done.returncode, done.stdout) == (0, b"0\n"), done.stderr


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"no kernel")
    for words, status, complaint in [
        (["run"], 2, "no command given"),
        (["run", "--kernel", "nosuch", "--", "true"], 2, "'nosuch'"),
        (["run", "--kernel", str(tmp_path / "image"), "--", "true"], 2, "not a bzImage"),
        (["run", "--cpus", "0", "--", "true"], 2, "0 CPUs"),
        (["run", "--memory", "999999999", "--", "true"], 2, "memory"),
        (["run", "--param", "a b", "--", "true"], 2, "'a b'"),
        (["shell"], 2, "terminal"),
        (["build", "--source", str(tmp_path / "none")], 2, "pyvmm lab setup"),
    ]:
        done = cli(*words)
        assert done.returncode == status, done.stderr
        assert done.stderr.count(b"\n") == 1, done.stderr
        assert complaint in done.stderr.decode()


def test_the_initramfs_is_an_archive(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(build_initramfs("/usr/bin/python3", "/results/are here"))
    busybox = find_busybox()
    (tmp_path / "out").mkdir()
    with open(tmp_path / "archive", "rb") as archive:
        command = [str(busybox), "cpio", "-i", "-d", "-m"]
        subprocess.run(command, stdin=archive, cwd=tmp_path / "out", check=True)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(
        ["agent.py", "bin", "dev", "host", "init", "proc", "python", "results", "root", "upper"]
    )
    assert (tmp_path / "out/results").read_text() == "/results/are here\n"
    assert os.access(tmp_path / "out/init", os.X_OK)
    subprocess.run([busybox, "sh", "-n", tmp_path / "out/init"], check=True)
