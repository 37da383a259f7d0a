"""Allocations that fail on purpose (Documentation/fault-injection/fault-injection.rst).

A kernel with CONFIG_FAULT_INJECTION counts the allocations of a thread that has written a number
to its fail-nth, and the one with that number fails. Other threads are left in peace.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pyvmm.closing import Closing
from pyvmm.validate.kit.check import Missing, errno_of

_DEBUGFS = Path("/sys/kernel/debug")
_FAIL_NTH, _FAIL_ALL = Path("/proc/thread-self/fail-nth"), Path("/proc/thread-self/make-it-fail")
_SPACE = _DEBUGFS / "failslab/space"
# No slab has larger objects: with more than that left of the bytes that succeed, none has failed.
_LARGEST_OBJECT = 8192
# By default only those fail that may not wait, of two pages or more, and not for user space.
_SETTINGS = {
    "failslab/ignore-gfp-wait": "N",
    "failslab/verbose": "0",
    "failslab/task-filter": "Y",  # before the probability: only where it is asked for
    "failslab/times": "-1",
    "failslab/probability": "100",
    "failslab/space": "0",  # bytes that succeed before the first fails
    "fail_page_alloc/ignore-gfp-wait": "N",
    "fail_page_alloc/ignore-gfp-highmem": "N",
    "fail_page_alloc/min-order": "0",
    "fail_page_alloc/verbose": "0",
}


class Attempt(NamedTuple):
    """``error``: the call's errno, 0 for none. ``is_reached``: whether an allocation failed."""

    error: int
    is_reached: bool


class FailingAllocations(Closing):
    """Slabs and pages of all kinds may fail, as long as it is open. A context manager.

    Raises :class:`Missing` where the kernel cannot do it, or this process may not ask it to.

    Synchronization: one thread, whose allocations fail.
    """

    def __init__(self) -> None:
        if not _FAIL_NTH.exists():
            raise Missing(
                "/proc/PID/fail-nth (CONFIG_FAULT_INJECTION; pyvmm lab build --debug faults)"
            )
        self._settings = ExitStack()
        # To move a thread to another CPU takes an allocation, too, as before and after KVM_RUN.
        self._settings.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        try:
            for name, value in _SETTINGS.items():
                self._set(_DEBUGFS / name, value)
            self._number = os.open(_FAIL_NTH, os.O_RDWR)
            self._settings.callback(os.close, self._number)
            self._all = os.open(_FAIL_ALL, os.O_RDWR)
            self._settings.callback(os.close, self._all)
        except OSError as error:
            self._settings.close()
            raise Missing(
                f"{error.filename} ({error.strerror}): CONFIG_FAILSLAB, "
                "CONFIG_FAIL_PAGE_ALLOC, debugfs, and root"
            ) from None

    def attempt(self, number: int, call: Callable[[], object]) -> Attempt:
        """``call``, of whose allocations the one with this number fails; the first has 1.

        Python's own allocations between the two system calls count, too.
        """
        text = b"%d" % number
        os.write(self._number, text)
        try:
            error = errno_of(call)
        finally:
            left = os.pread(self._number, 16, 0)
            os.pwrite(self._number, b"0", 0)
        return Attempt(error, int(left) == 0)

    def attempt_within(self, size: int, call: Callable[[], object]) -> Attempt:
        """``call``, which may have so many bytes of slabs; all that it asks for then fails.

        So does what it asks for twice, since it can do without it only once.
        """
        _SPACE.write_text(str(size))
        os.pwrite(self._all, b"1", 0)
        try:
            error = errno_of(call)
        finally:
            os.pwrite(self._all, b"0", 0)
        return Attempt(error, int(_SPACE.read_text()) <= _LARGEST_OBJECT)

    def close(self) -> None:
        self._settings.close()

    def _set(self, path: Path, value: str) -> None:
        before = path.read_text()
        path.write_text(value)
        self._settings.callback(path.write_text, before)
