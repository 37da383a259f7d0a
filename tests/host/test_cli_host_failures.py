"""The host runs out of something while a machine is made or runs: an error, never a crash."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from typing import Any

import pytest
from conftest import holdings
from pyvmm_command import pyvmm
from snippets import PRIVATE, spin, touches

from pyvmm import ConfigurationError, Machine, Result

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
    start, started = threading.Thread.start, []

    def start_two(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    before = holdings()
    monkeypatch.setattr(threading.Thread, "start", start_two)
    with Machine(spin(), vcpus=4) as machine:
        with pytest.raises(ConfigurationError, match=r"vCPU 3.*fewer vCPUs"):
            machine.run(60)
        assert not any(thread.is_alive() for thread in started)
    assert holdings() == before


def test_no_timer_for_the_deadline() -> None:
    def few_signals() -> None:
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))

    outcome = pyvmm("run", "spin.S", "--vcpus", 4, "--json", before=few_signals)
    outcome.error(2, "timer_create", "ulimit -i")
    assert outcome.json["result"] == "error"


_LITTLE_MEMORY = """
import resource, sys
from pyvmm import Machine, PyvmmError
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
