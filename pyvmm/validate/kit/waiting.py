"""How long other threads wait for a CPU while a call is under way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

_EVERY_S = 0.001


class Waiting:
    """A thread on one CPU that wants to run every millisecond. A context manager.

    ``longest_s`` is how long it had to wait for it at most, when the context is left.
    """

    def __init__(self, cpu: int) -> None:
        self.longest_s = 0.0
        self._cpu = cpu
        self._running, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"waits{cpu}", daemon=True)

    def _run(self) -> None:
        os.sched_setaffinity(0, {self._cpu})
        time.sleep(_EVERY_S)
        self._running.set()
        before = time.monotonic()
        while not self._stop.is_set():
            time.sleep(_EVERY_S)
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - before - _EVERY_S)
            before = now

    def __enter__(self) -> Waiting:
        self._thread.start()
        self._running.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


class Beside(NamedTuple):
    """How long a call took, and how long a thread had to wait beside it, in seconds."""

    took_s: float
    on_its_cpu_s: float
    on_another_s: float


def beside(call: Callable[[], object]) -> Beside:
    """Make a call on the first CPU, with a thread that wants to run on it and one on the second."""
    cpus = sorted(os.sched_getaffinity(0))
    try:
        with Waiting(cpus[0]) as same, Waiting(cpus[1]) as other:
            os.sched_setaffinity(0, {cpus[0]})
            began = time.monotonic()
            call()
            took_s = time.monotonic() - began
    finally:
        os.sched_setaffinity(0, cpus)
    return Beside(took_s, same.longest_s, other.longest_s)
