"""Where a measuring thread runs, and before whom: a fair share of a busy CPU is a tenth.

Who is preempted all the time measures how cold a CPU's caches are when it is let on again,
and two threads that wake each other are only as quick as others' time slices are short.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def is_real_time() -> bool:
    """Whether this thread comes before ordinary ones."""
    return os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)


@contextmanager
def real_time() -> Iterator[None]:
    """Before all ordinary threads, where that may be had and nobody chose otherwise.

    The kernel still leaves them a twentieth of each second (sched(7)), and more on other CPUs.
    """
    is_chosen = os.sched_getscheduler(0) != os.SCHED_OTHER or os.nice(0) != 0
    if is_chosen or not _become(os.SCHED_FIFO, 1):
        yield
        return
    try:
        yield
    finally:
        _become(os.SCHED_OTHER, 0)


@contextmanager
def ordinary() -> Iterator[None]:
    """As others, whatever this thread is otherwise."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    if policy == os.SCHED_OTHER or not _become(os.SCHED_OTHER, 0):
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """On this one only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _become(policy: int, priority: int) -> bool:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        return False
    return True
