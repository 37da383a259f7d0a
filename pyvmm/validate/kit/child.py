"""Work in a copy of this process, which ends when the work does."""

from __future__ import annotations

import os
from collections.abc import Callable

#: The exit status of a child whose work raised an error.
DIED = 255


def start(work: Callable[[], int]) -> int:
    """Begin ``work`` in a child; its process id. What it returns is the child's exit status."""
    pid = os.fork()
    if pid == 0:
        status = DIED
        try:
            status = work()
        finally:
            os._exit(status)
    return pid


def end_of(pid: int) -> int:
    """Wait for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(work: Callable[[], int]) -> int:
    """Do ``work`` in a child: what it returns, :data:`DIED`, or minus a signal."""
    return end_of(start(work))
