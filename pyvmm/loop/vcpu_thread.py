"""A thread that runs a vCPU, and that says so when it cannot start.

threading.Thread does not: where memory runs out (``ulimit -v``) a thread may end before its
first call, and start() waits for it without end.
"""

from __future__ import annotations

import sys
import threading
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterator

from pyvmm.errors import ConfigurationError, KvmError
from pyvmm.kvm.mapping import Mapping
from pyvmm.native import lib

# Bytes that are free when a thread starts. The C library ends the process when it has none
# for the variables that a library keeps for each thread.
_ROOM = 256 << 10
_NO_MEMORY = "there is not enough memory"


class VcpuThread:
    """Calls ``work(index)`` once, in a thread that the kernel knows as ``vcpu<index>``.

    ``error`` is what that raised, to be read after :meth:`join`.

    Synchronization: the methods belong to the thread that made the object.
    """

    def __init__(self, index: int, work: Callable[[int], None]) -> None:
        self.index = index
        self.error: BaseException | None = None
        self._work = work
        self._name = b"vcpu%d" % index
        self._is_started = self._is_running = self._is_through = False
        self._has_settled, self._has_ended = allocate_lock(), allocate_lock()
        self._has_settled.acquire()
        self._has_ended.acquire()

    def start(self) -> None:
        """Return when it runs. Raises :class:`ConfigurationError` when it cannot."""
        life = self._live()
        try:
            room = Mapping(_ROOM)
            # Set first: what a signal's handler raises comes after the call, when it runs.
            self._is_started = True
            start_new_thread(next, (life, None))
            room.close()
        except (KvmError, MemoryError):
            self._is_started = False
            raise self._cannot_start(_NO_MEMORY) from None
        except RuntimeError as error:
            self._is_started = False
            raise self._cannot_start(str(error)) from None
        self._has_settled.acquire()
        if not self._is_running:
            raise self._cannot_start(_NO_MEMORY)

    def join(self) -> None:
        """Wait for its end, if it was started. Call again after a signal handler's exception."""
        while not self.is_over:
            self._has_ended.acquire()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or was never started."""
        return self._is_through or not self._is_started

    def _live(self) -> Iterator[None]:
        # A generator, for it has its frame from start(). So this runs though there is no
        # memory for another one; then the call in it fails.
        try:
            self._run()
        except BaseException as error:
            self.error = error
        finally:
            if not self._is_running:
                self._has_settled.release()
            self._is_through = True
            self._has_ended.release()
        return
        yield  # which makes it a generator

    def _run(self) -> None:
        self._is_running = True
        self._has_settled.release()
        lib.name_thread(self._name)
        # What debuggers and coverage asked threading for.
        sys.settrace(threading.gettrace())
        sys.setprofile(threading.getprofile())
        self._work(self.index)

    def _cannot_start(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"vCPU {self.index}", f"its thread cannot start ({why})", "use fewer vCPUs"
        )
