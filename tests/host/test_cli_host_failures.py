"""The host runs out of something while a machine is made or runs: an error, never a crash."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from _thread import start_new_thread
from pathlib import Path
from typing import Any

import pytest
from conftest import holdings
from pyvmm_command import pyvmm
from snippets import PRIVATE, spin, touches

from pyvmm import ConfigurationError, Machine, Result
from pyvmm.loop.vcpu_thread import VcpuThread

# <linux/fcntl.h>; it forbids to punch the file, and the fcntl module does not have it.
F_SEAL_FUTURE_WRITE = 0x10


def test_a_conversion_that_fails_ends_the_run_and_says_why() -> None:
    before = holdings()
    with Machine(touches(PRIVATE, PRIVATE + 0x1000), backend="emulated") as machine:
        machine.memory.regions[0].backing.shared_file.seal(F_SEAL_FUTURE_WRITE)
        report = machine.run(10)
    assert report.result is Result.ERROR
    assert "GPA 0x40000" in report.reason and "EPERM" in report.reason
    assert report.conversions.to_private == report.conversions.to_shared == 0
    assert report.exits == {"mmio": 1}
    assert holdings() == before


def test_a_thread_that_cannot_start_ends_those_that_did(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[VcpuThread] = []

    class Noted(VcpuThread):
        def start(self) -> None:
            threads.append(self)
            super().start()

    def start_two(*call: Any) -> None:
        if len(threads) == 3:
            raise RuntimeError("can't start new thread")
        start_new_thread(*call)

    before = holdings()
    monkeypatch.setattr("pyvmm.running.VcpuThread", Noted)
    monkeypatch.setattr("pyvmm.loop.vcpu_thread.start_new_thread", start_two)
    with Machine(spin(), vcpus=4) as machine:
        with pytest.raises(ConfigurationError, match=r"vCPU 3.*fewer vCPUs"):
            machine.run(60)
        assert len(threads) == 3
        assert all(thread.is_over for thread in threads)
    assert holdings() == before


def test_no_timer_for_the_deadline() -> None:
    def few_signals() -> None:
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))

    outcome = pyvmm("run", "spin.S", "--vcpus", 4, "--json", before=few_signals)
    outcome.error(2, "timer_create", "ulimit -i")
    assert outcome.json["result"] == "error"


# Stacks smaller than the largest slack: the last thread may still hold the one that glibc keeps.
_LITTLE_MEMORY = """
import _thread, resource, sys
from pyvmm import Machine, PyvmmError
_thread.stack_size(1 << 20)
guest = bytes.fromhex("a10000 30c0 e6f4 f4")
with Machine(guest, vcpus=2) as machine:
    machine.run()
outcomes = []
for slack in range(0, 4 << 20, 32 << 10):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + slack, resource.RLIM_INFINITY))
    try:
        with Machine(guest, vcpus=2) as machine:
            outcomes.append(machine.run().result.value)
    except (PyvmmError, MemoryError) as error:
        outcomes.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
assert outcomes[-1] == "pass", outcomes[-1]
print(sum("ENOMEM" in outcome for outcome in outcomes))
"""


def test_memory_that_runs_out_at_any_step_of_making_a_machine() -> None:
    arguments: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    result = subprocess.run([sys.executable, "-c", _LITTLE_MEMORY], check=False, **arguments)
    assert result.returncode == 0, result
    assert int(result.stdout) > 10


# Each limit has a process of its own, for a thread's stack is kept for the next one.
_LITTLE_MEMORY_FOR_THREADS = """
import os, resource, signal, sys, _thread
import pyvmm.machine, pyvmm.loop.vcpu_thread
from pyvmm.cli.main import main
guest, room, stack = sys.argv[1], int(sys.argv[2]), 1 << 20
_thread.stack_size(stack)
run = pyvmm.machine.Machine.run
def run_in_little_memory(machine, *arguments):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + slack, resource.RLIM_INFINITY))
    return run(machine, *arguments)
main(["run", guest])
if room:
    pyvmm.loop.vcpu_thread._ROOM = room
pyvmm.machine.Machine.run = run_in_little_memory
statuses = []
for threads in (1, 2):
    start = threads * stack + pyvmm.loop.vcpu_thread._ROOM
    for slack in range(start - (16 << 10), start + (128 << 10), 4 << 10):
        if os.fork() == 0:
            signal.alarm(20)
            status = main(["run", guest, "--vcpus", "3"])
            sys.stdout.flush()
            os._exit(status)
        statuses.append(os.wait()[1])
print("statuses:", *{os.waitstatus_to_exitcode(status) for status in statuses})
"""

_NO_THREAD = re.compile(r"pyvmm: vCPU \d: its thread cannot start \(.*\); use fewer vCPUs$")
_NO_MEMORY = re.compile(r"pyvmm: vCPU \d: its thread cannot start \(there is not enough memory\)")


@pytest.mark.parametrize("room", [0, 4096])
def test_memory_that_runs_out_while_threads_start(room: int, tmp_path: Path) -> None:
    """With less room than usual also in the thread itself, before its first call."""
    guest = tmp_path / "pass.bin"
    guest.write_bytes(bytes.fromhex("30c0 e6f4 f4"))
    arguments: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    result = subprocess.run(
        [sys.executable, "-c", _LITTLE_MEMORY_FOR_THREADS, guest, str(room)],
        check=False,
        **arguments,
    )
    assert result.returncode == 0, result
    statuses = set(result.stdout.rpartition("statuses: ")[2].split())
    complaints = result.stderr.splitlines()
    if room:  # glibc has no room for a variable of the thread
        statuses.discard("127")
        complaints = [each for each in complaints if "thread-local data: ABORT" not in each]
        assert any(_NO_MEMORY.match(each) for each in complaints), result.stderr
    assert statuses <= {"0", "2"}, result
    assert all(_NO_THREAD.match(each) for each in complaints), result.stderr
    assert any("vCPU 1" in each for each in complaints), result.stderr
    assert any("vCPU 2" in each for each in complaints), result.stderr
