"""A signal that comes to a copy of this process, right where it begins or ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A copy that left its caller's functions would go on as the script.
_SIGNALLED = """
import os, signal, sys
from pyvmm.lab.errors import LabError
from pyvmm.validate.jobs.job import Job, Named
from pyvmm.validate.jobs.workers import run_jobs
from pyvmm.validate.kit.case import Case
from pyvmm.validate.run.catalogue import select
from pyvmm.validate.run.runner import Runner

what, where, number = sys.argv[1], sys.argv[2], signal.Signals[sys.argv[3]]
fork, end, script = os.fork, os._exit, os.getpid()

def signalled_fork():
    pid = fork()
    if not pid:
        os.kill(os.getpid(), number)
    return pid

def fork_that_dies():
    pid = signalled_fork()
    if pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid

def signalled_end(status):
    os.kill(os.getpid(), number)
    end(status)

def interrupt(number, frame):
    raise KeyboardInterrupt

def answer(job, announce, tell):
    raise LabError("job", "done")

signal.signal(number, interrupt)
if where == "begins":
    os.fork = signalled_fork
elif where == "dies":
    os.fork = fork_that_dies
else:
    os._exit = signalled_end
try:
    if what == "case":
        case = Case("X1", "a title", lambda tools: None, "tests")
        print(*(result.state for result in Runner([case])))
    else:
        job = Job(Named("default"), (select("MR6")[0].name,), 0)
        print(*dict(run_jobs([job], 1, lambda line: None, run=answer)).values())
finally:
    sys.stdout.flush()
    if os.getpid() != script:
        print("a copy went on", file=sys.stderr, flush=True)
        end(1)
"""


@pytest.mark.parametrize(
    ("what", "where", "number", "outcome"),
    [
        ("case", "begins", "SIGINT", "pass"),
        ("case", "begins", "SIGTERM", "crash"),
        ("case", "dies", "SIGTERM", "crash"),
        ("job", "dies", "SIGTERM", "its process died; it was the second try"),
        ("job", "begins", "SIGTERM", "its process died; it was the second try"),
        ("job", "begins", "SIGINT", "its process died; it was the second try"),
        ("job", "ends", "SIGTERM", "job: done"),
        ("job", "ends", "SIGINT", "job: done"),
    ],
)
def test_a_copy_does_not_go_on_as_the_process(
    what: str, where: str, number: str, outcome: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, what, where, number],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip().endswith(outcome)
