"""$PYVMM_GUEST_CPU: guests of all threads run on one CPU, and what the host does beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_LOOP = """
import os, sys, threading
sys.path.insert(0, "tests/host")
from bare_vm import BareVm

own = os.sched_getaffinity(0)
with BareVm("1: jmp 1b") as vm:
    tid, after = [], []

    def run():
        tid.append(threading.get_native_id())
        vm._loop.run()
        after.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    while not tid or os.sched_getaffinity(tid[0]) == own:
        pass
    print(*os.sched_getaffinity(tid[0]))
    vm._loop.kick()
    thread.join()
    print(after[0] == own, os.sched_getaffinity(0) == own)
"""

_BARE_RUN = """
import os, sys
sys.path.insert(0, "tests/host")
from bare_vm import BareVm

own = os.sched_getaffinity(0)
with BareVm("hlt") as vm:
    vm.vcpu.run()
stat = open(f"/proc/self/task/{os.getpid()}/stat").read()
print(int(stat.rpartition(")")[2].split()[36]) != int(sys.argv[1]), os.sched_getaffinity(0) == own)
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


def test_a_thread_is_there_in_the_loop_and_anywhere_afterwards(last_cpu: str) -> None:
    done = run(_LOOP, last_cpu)
    assert done.stdout.split() == [last_cpu, "True", "True"], done.stderr


def test_a_thread_has_left_it_after_a_bare_run(last_cpu: str) -> None:
    done = run(_BARE_RUN, last_cpu)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("cpu", ["", "-1", "one", "9999", "99999999999999999999"])
def test_a_cpu_that_is_none(cpu: str) -> None:
    done = run("import pyvmm; pyvmm.Kvm()", cpu)
    assert f"PYVMM_GUEST_CPU={cpu}: this process may not run there; unset it" in done.stderr
