"""The kernel's own view of a run: tracepoints of this process's threads.

Documentation/trace/ftrace.rst. Everything happens in an instance of its own, so that
nobody else's tracing is disturbed; its clock is CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pyvmm.closing import Closing
from pyvmm.errors import UnsupportedError

_ROOT = Path("/sys/kernel/tracing")
_EVENTS = ("kvm", "raw_syscalls")
# One for each instruction where KVM emulates the guest: they would push out all others.
_TOO_MANY = ("kvm/kvm_emulate_insn",)
_KIB_PER_CPU = 16384
_LINE = re.compile(
    r"^\s*.*-(?P<tid>\d+)\s+\[(?P<cpu>\d+)\]\s+\S+\s+(?P<seconds>\d+)\.(?P<micros>\d{6}): "
    r"(?P<name>\w+): ?(?P<details>.*)$"
)


class Tracepoint(NamedTuple):
    """One event. ``time`` is CLOCK_MONOTONIC nanoseconds, to the microsecond."""

    time: int
    thread: int
    cpu: int
    name: str
    details: str


class KernelTrace(Closing):
    """Traces this process and the threads it starts, from ``with`` to :meth:`stop`.

    Raises :class:`UnsupportedError` where there is no tracefs or it may not be used.
    """

    def __init__(self) -> None:
        self._mounted = False
        if not (_ROOT / "instances").is_dir():
            self._mount()
        self._folder = _ROOT / "instances" / f"pyvmm-{os.getpid()}"
        try:
            self._folder.mkdir()
        except OSError as error:
            self._unmount()
            raise UnsupportedError(
                str(_ROOT), error.strerror or str(error), "tracing needs root"
            ) from None
        try:
            self._check_numbers()
            self._start()
        except UnsupportedError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise UnsupportedError(str(error.filename), error.strerror or str(error)) from None

    def _mount(self) -> None:
        mount = ["mount", "-t", "tracefs", "tracefs", str(_ROOT)]
        try:
            done = subprocess.run(mount, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UnsupportedError("tracefs", error.strerror or str(error)) from None
        if done.returncode != 0 or not (_ROOT / "instances").is_dir():
            cause = (done.stderr.strip().splitlines() or ["this kernel has none"])[-1]
            raise UnsupportedError("tracefs", cause, "mount it as root, or do without")
        self._mounted = True

    def _check_numbers(self) -> None:
        """A trace numbers threads as the first PID namespace does; so must this process."""
        self._write("tracing_on", "1")
        self._write("trace_marker", "pyvmm")
        self._write("tracing_on", "0")
        lines = (self._folder / "trace").read_text(errors="replace").splitlines()
        numbers = [int(found["tid"]) for line in lines if (found := _LINE.match(line))]
        self._write("trace", "")  # empties it
        if numbers != [threading.get_native_id()]:
            raise UnsupportedError(
                "tracefs", "this process is in a PID namespace of its own", "run it outside of that"
            )

    def _start(self) -> None:
        self._write("tracing_on", "0")
        self._write("trace_clock", "mono")
        self._write("buffer_size_kb", str(_KIB_PER_CPU))
        self._write("options/event-fork", "1")
        self._write("set_event_pid", str(os.getpid()))
        found = [name for name in _EVENTS if (self._folder / "events" / name).is_dir()]
        for name in found:
            self._write(f"events/{name}/enable", "1")
        for name in _TOO_MANY:
            if (self._folder / "events" / name).is_dir():
                self._write(f"events/{name}/enable", "0")
        self._write("tracing_on", "1")

    def _write(self, name: str, value: str) -> None:
        (self._folder / name).write_text(value)

    def stop(self) -> Iterator[Tracepoint]:
        """End tracing; what was traced, as far as the buffer held it."""
        self._write("tracing_on", "0")
        with open(self._folder / "trace", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                found = _LINE.match(line)
                if found:
                    time = int(found["seconds"]) * 1_000_000_000 + int(found["micros"]) * 1000
                    yield Tracepoint(
                        time, int(found["tid"]), int(found["cpu"]), found["name"], found["details"]
                    )

    def close(self) -> None:
        """Remove the instance, and the mount if it was made here."""
        with suppress(OSError):
            self._write("tracing_on", "0")
            for name in _EVENTS:
                with suppress(OSError):
                    self._write(f"events/{name}/enable", "0")
        with suppress(OSError):
            self._folder.rmdir()
        self._unmount()

    def _unmount(self) -> None:
        if self._mounted:
            subprocess.run(["umount", str(_ROOT)], capture_output=True, check=False)
            self._mounted = False
