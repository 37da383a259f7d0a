"""$PYVMM_GUEST_CPU: guests of all threads run on one CPU, and what the host does beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SPIN = """
import os, signal, sys, threading
sys.path.insert(0, "tests/host")
from bare_vm import BareVm
from pyvmm.errors import KvmError
from pyvmm.native import lib

own = os.sched_getaffinity(0)
with BareVm("1: jmp 1b") as vm:
    tid, after = [], []

    def run_loop():
        vm.bare.loop.run()

    def run_bare():
        try:
            vm.vcpu.run()
        except KvmError:
            pass

    def run(enter):
        tid.append(threading.get_native_id())
        enter()
        after.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run, args=({ENTER},))
    thread.start()
    while not tid or os.sched_getaffinity(tid[0]) == own:
        pass
    print(*os.sched_getaffinity(tid[0]))
    while thread.is_alive():
        vm.vcpu.kvm_run.immediate_exit = 1
        vm.bare.loop.kick()
        signal.pthread_kill(thread.ident, lib.loop_kick_signal())
        thread.join(0.01)
    print(after[0] == own, os.sched_getaffinity(0) == own)
"""


def run(code: str, cpu: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, cpu],
        env={**os.environ, "PYVMM_GUEST_CPU": cpu},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def last_cpu() -> str:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("this process may use one CPU")
    return str(max(cpus))


@pytest.mark.parametrize("enter", ["run_loop", "run_bare"])
def test_a_thread_is_there_in_the_guest_and_anywhere_afterwards(last_cpu: str, enter: str) -> None:
    done = run(_SPIN.replace("{ENTER}", enter), last_cpu)
    assert done.stdout.split() == [last_cpu, "True", "True"], done.stderr


@pytest.mark.parametrize("cpu", ["", "-1", "one", "9999", "99999999999999999999"])
def test_a_cpu_that_is_none(cpu: str) -> None:
    done = run("import pyvmm; pyvmm.Kvm()", cpu)
    assert f"PYVMM_GUEST_CPU={cpu}: this process may not run there; unset it" in done.stderr
