"""How long other threads wait for a CPU while a call is under way."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

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
