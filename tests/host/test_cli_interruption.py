"""Ctrl-C and SIGTERM in the middle of a run: what happened so far, whole, and 130 or 143."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from pyvmm_command import COMMAND, GUESTS, ROOT

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
_PATIENCE_S = 30

# Ends only by a signal; what it does first is seen in the report.
TALKER = """
.code16
    mov $'!', %al
    out %al, $0xe9
    movb $1, 0x0
    push $0x4000
    pop %ds
    movb $1, 0x0
    jmp .
"""


def start(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "run", *map(str, words), "--json", "--deadline", "60"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )


def wait_until(what: Callable[[], bool]) -> None:
    """Look again and again; a test that waits in vain has found something."""
    end = time.monotonic() + _PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


def answers_signals(pid: int) -> bool:
    """Whether the command has taken SIGTERM over from Python's start, which leaves it alone."""
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    taken = int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)
    return bool(taken >> (signal.SIGTERM - 1) & 1)


def has_vcpus(process: subprocess.Popen[bytes]) -> bool:
    folder = Path(f"/proc/{process.pid}/fd")
    for fd in os.listdir(folder):
        with suppress(OSError):
            if "anon_inode:kvm-vcpu" in os.readlink(folder / fd):
                return True
    return False


def has_private_pages(process: subprocess.Popen[bytes]) -> bool:
    """Whether the private side of a region of the emulated backend has memory."""
    folder = Path(f"/proc/{process.pid}/fd")
    for fd in os.listdir(folder):
        with suppress(OSError):
            path = folder / fd
            if "memfd:private" in os.readlink(path) and path.stat().st_blocks:
                return True
    return False


def end(
    process: subprocess.Popen[bytes], signals: Sequence[signal.Signals]
) -> tuple[int, dict[str, Any]]:
    for number in signals:
        process.send_signal(number)
    out, err = process.communicate(timeout=_PATIENCE_S)
    assert err == b""
    assert out.count(b"\n") == 1
    return process.returncode, json.loads(out)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", list(STATUS))
def test_spinning_vcpus(number: signal.Signals, times: int) -> None:
    process = start(GUESTS / "spin.S", "--vcpus", 4)
    wait_until(lambda: has_vcpus(process))
    status, report = end(process, [number] * times)
    assert status == STATUS[number]
    assert report["result"] == "interrupted"
    assert report["reason"] == f"{number.name} ended the run"


def test_when_only_the_other_vcpus_still_run(tmp_path: Path) -> None:
    guest = tmp_path / "first_ends.S"
    guest.write_text(".code16\n test %eax, %eax\n jnz .\n out %al, $0xf4\n")
    process = start(guest, "--vcpus", 3)
    task = psutil.Process(process.pid)
    # The main thread has nothing to do but to wait for two that spin.
    wait_until(lambda: has_vcpus(process) and task.num_threads() >= 3 and is_asleep(process.pid))
    status, report = end(process, [signal.SIGTERM])
    assert (status, report["result"]) == (143, "interrupted")


def is_asleep(thread: int) -> bool:
    return "State:\tS" in Path(f"/proc/{thread}/task/{thread}/status").read_text()


def test_what_happened_so_far_is_reported(tmp_path: Path) -> None:
    guest = tmp_path / "talker.S"
    guest.write_text(TALKER)
    log = tmp_path / "log"
    process = start(guest, "--log", log, "--backend", "emulated")
    wait_until(lambda: has_private_pages(process))
    status, report = end(process, [signal.SIGINT])
    assert status == 130
    assert report["console"] == "!"
    assert report["exits"]["io"] == 1
    assert report["conversions"]["to_private"] == report["conversions"]["implicit"] == 1
    assert report["memory"][0]["private"] == [[0x40000, 4096]]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) == sum(report["exits"].values())


def test_while_assembling(tmp_path: Path) -> None:
    guest, fifo = tmp_path / "guest.S", tmp_path / "fifo"
    guest.write_text(f'.include "{fifo}"\n')
    os.mkfifo(fifo)
    process = start(guest)
    writer = os.open(fifo, os.O_WRONLY)  # returns when the assembler reads
    assembler = psutil.Process(process.pid).children()
    assert len(assembler) == 1
    status, report = end(process, [signal.SIGTERM])
    os.close(writer)
    assert status == 143
    assert report["result"] == "interrupted" and report["backend"] == ""
    assert not assembler[0].is_running()


def test_while_nobody_reads_the_log(tmp_path: Path) -> None:
    """Opening a FIFO waits for its reader; there is no machine yet."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = start(GUESTS / "hello.S", "--log", fifo)
    wait_until(lambda: waits_for_a_reader(process.pid))
    status, report = end(process, [signal.SIGINT])
    assert status == 130
    assert report["result"] == "interrupted" and report["backend"] == ""


def waits_for_a_reader(pid: int) -> bool:
    return Path(f"/proc/{pid}/wchan").read_text() == "wait_for_partner"


def test_at_any_moment(rng: random.Random) -> None:
    ended = set()
    for _ in range(24):
        guest = rng.choice(["spin.S", "storm.S", "hello.S"])
        process = start(GUESTS / guest, "--vcpus", rng.choice([1, 2]))
        wait_until(lambda pid=process.pid: answers_signals(pid))  # type: ignore[misc]
        time.sleep(rng.random() ** 2 * 0.4)
        number = rng.choice(list(STATUS))
        if process.poll() is not None:  # it was quicker
            process.communicate()
            continue
        status, report = end(process, [number] * rng.choice([1, 2]))
        ended.add(report["result"])
        # It may also have passed in the same moment.
        assert (status, report["result"]) in ((STATUS[number], "interrupted"), (0, "pass"))
    assert "interrupted" in ended


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("option", ["--baseline", "--replay", "--junit"])
def test_validate_that_waits_for_a_fifo(
    tmp_path: Path, option: str, number: signal.Signals
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = [*COMMAND, "validate", "-k", "MR6", option, str(fifo)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: answers_signals(process.pid))
        process.send_signal(number)
        assert process.communicate(timeout=_PATIENCE_S) == (b"", b"")
        assert process.returncode == STATUS[number]
    finally:
        process.kill()


def test_validate_tells_the_cases_that_it_left_out(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    words = [*COMMAND, "validate", "-j", "1", "--json-lines", "--junit", str(junit)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        planned = json.loads(process.stdout.readline())["cases"]
        while "ended" not in json.loads(process.stdout.readline()):
            pass
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    told = list(ElementTree.fromstring(junit.read_bytes()).iter("testcase"))
    assert {each.get("name") for each in told} == set(planned) and len(told) == len(planned)
    (reason,) = {each.get("message") for case in told for each in case.iter("error")}
    assert reason == "did not run: SIGINT ended the run"
