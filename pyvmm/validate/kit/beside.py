"""A call in a thread of its own, which may not come back before a signal ends it."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from pyvmm.closing import Closing
from pyvmm.errors import KvmError
from pyvmm.native import lib
from pyvmm.validate.kit import child
from pyvmm.validate.kit.check import CheckFailed

# CPU time without progress after which a call spins, and how often that was looked at meanwhile:
# no page takes the kernel so long, and a machine that stood still was not looked at.
_SPIN_S, _LOOKS = 1.0, 25
_TICK_S = 0.02
_END_S = 20.0
# <linux/posix-timers.h>: CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED. A thread that has ended is
# EINVAL, where pthread_getcpuclockid(3) would look at what was freed.
_CLOCK_OF_A_THREAD = 4 | 2
_ALONE_S = 120


def machine_time(limit_s: float) -> Iterator[None]:
    """Look once, and again until so many seconds are over in which this machine had its CPUs.

    Each look is to take a tick. One that took much longer counts little: others ran meanwhile.
    """
    left = limit_s
    while True:
        began = time.monotonic()
        yield
        left -= min(time.monotonic() - began, 2 * _TICK_S)
        if left <= 0:
            return


def thread_ends(thread: threading.Thread, limit_s: float) -> bool:
    """Whether a thread has ended, or does so in this :func:`machine_time`."""
    for _ in machine_time(limit_s):
        thread.join(min(_TICK_S, limit_s))
        if not thread.is_alive():
            return True
    return False


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """The calling thread and those that it starts share a CPU: one stops in another's call."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


class CallBeside:
    """A system call that goes on beside the case.

    A context manager, which waits for its end, and fails if only a signal ends it. ``error`` is
    the errno that it ended with, 0 for none; ``kicks``, how many signals it was sent.

    Synchronization: its methods belong to the thread that made it.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._failed: BaseException | None = None
        self.error = 0
        self.kicks = 0
        self._thread = threading.Thread(target=self._run, name="beside", daemon=True)

    def _run(self) -> None:
        try:
            self._call()
        except (KvmError, OSError) as error:
            self.error = error.errno or 0
        except BaseException as error:
            self._failed = error

    def ends(self, timeout_s: float = _END_S) -> bool:
        """Whether it has ended, or does so in this :func:`machine_time`.

        Raises what it raised but for an errno.
        """
        has_ended = thread_ends(self._thread, timeout_s)
        if self._failed is not None:
            raise self._failed
        return has_ended

    @property
    def cpu_s(self) -> float:
        """CPU time of its thread so far; 0 when it has ended."""
        if (thread := self._thread.native_id) is None:
            return 0.0
        try:
            return time.clock_gettime(~thread << 3 | _CLOCK_OF_A_THREAD)
        except OSError:
            return 0.0

    def spins(self, progress: Callable[[], int], limit_s: float = 40.0) -> bool:
        """Wait until it has ended, or has used seconds of CPU time while ``progress()`` stood."""
        until = time.monotonic() + limit_s
        seen, since, looks = progress(), self.cpu_s, 0
        while not self.ends(_TICK_S) and time.monotonic() < until:
            looks += 1
            if (now := progress()) != seen:
                seen, since, looks = now, self.cpu_s, 0
            elif looks >= _LOOKS and self.cpu_s - since > _SPIN_S:
                return not self.ends(0)
        return False

    def waits(self, timeout_s: float = 5.0) -> bool:
        """Whether it comes to wait for something in the kernel before it ends."""
        until = time.monotonic() + timeout_s
        state = Path(f"/proc/self/task/{self._thread.native_id}/stat")
        while not self.ends(0) and time.monotonic() < until:
            with suppress(OSError):
                # The state follows the name, which may have brackets.
                if state.read_text().rpartition(") ")[2].startswith("D"):
                    return True
        return False

    def interrupt(self) -> bool:
        """End it by signals; whether it ends."""
        for _ in machine_time(_END_S):
            if self.ends(_TICK_S):
                return True
            self.kick()
        return False

    def kick(self) -> None:
        """Send it a signal."""
        assert self._thread.ident is not None
        self.kicks += 1
        signal.pthread_kill(self._thread.ident, lib.loop_kick_signal())

    def __enter__(self) -> CallBeside:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = error is None and self.ends()
        by_signal = self.interrupt()
        if error is None and not ended:
            how = "only by a signal" if by_signal else "not even by a signal"
            raise CheckFailed(f"a call that goes on beside the case does not end, {how}")


class RepeatedBeside(Closing):
    """A call that a process of its own makes again and again, waiting for no other thread's
    Python. The process ends with it; ``pid`` is its number.

    Synchronization: one thread.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._made = mmap.mmap(-1, 8)  # shared with the process
        self.pid = child.start(lambda: self._repeat(call))

    @property
    def made(self) -> int:
        """How many calls have ended."""
        return int.from_bytes(self._made, "little")

    def _repeat(self, call: Callable[[], object]) -> NoReturn:
        # Without whoever would end it, it ends by itself.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_ALONE_S)
        made = 0
        while True:
            call()
            made += 1
            self._made[:] = made.to_bytes(8, "little")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            child.end_of(self.pid)
            self.pid = 0
            self._made.close()
