"""A run as one timeline, for https://ui.perfetto.dev or chrome://tracing.

The format is Chrome's JSON ("Trace Event Format"). Each vCPU has a row: its exits, the
conversions in them, the guest in between, its kicks. Where tracefs can be used it has a
second row with the kernel's view of the same thread on the same clock: its system calls,
which are the parts of a conversion, and KVM's tracepoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.loop.vcpu_loop import ExitRecord
from pyvmm.machine import Machine
from pyvmm.trace.output_file import OutputFile
from pyvmm.trace.tracefs import Tracepoint

SCHEMA = 1  # of what is in the events; the format is Chrome's

_GUEST, _KERNEL = 1, 2  # "processes" in the format's words: groups of rows
_PUNCH = 0x2  # FALLOC_FL_PUNCH_HOLE
# The x86-64 system calls that a run makes; others show their number.
_CALLS = {
    0: "read",
    1: "write",
    3: "close",
    8: "lseek",
    9: "mmap",
    10: "mprotect",
    11: "munmap",
    12: "brk",
    13: "rt_sigaction",
    14: "rt_sigprocmask",
    15: "rt_sigreturn",
    16: "ioctl",
    28: "madvise",
    186: "gettid",
    202: "futex",
    222: "timer_create",
    223: "timer_settime",
    226: "timer_delete",
    234: "tgkill",
    257: "openat",
    262: "newfstatat",
    273: "set_robust_list",
    285: "fallocate",
    334: "rseq",
    435: "clone3",
}


class TimelineFile(OutputFile):
    """The open file. Raises :class:`ConfigurationError` when it cannot be opened or written.

    ``called`` is how messages name it. Exits are written as they come, so a long run does
    not grow; one exit more than was written is kept for each vCPU.
    """

    def __init__(self, name: str, called: str = "") -> None:
        super().__init__(name, called or f"timeline {name}")
        self._last: dict[int, ExitRecord] = {}
        self.write(b'{"schema":%d,"displayTimeUnit":"ns","traceEvents":[' % SCHEMA)
        # The first event has no comma before it.
        self.write(self._bytes(_name_of("process_name", _GUEST, 0, "vCPUs")))
        self._event(_name_of("process_name", _KERNEL, 0, "kernel"))

    def exit(self, vcpu: int, record: ExitRecord) -> None:
        """An exit of a vCPU; they come in order for each."""
        last = self._last.get(vcpu)
        if last is None:
            self._event(_name_of("thread_name", _GUEST, vcpu, f"vCPU {vcpu}"))
        else:
            self._slice(vcpu, "KVM_RUN", "guest", last.time_out, record.time_in)
        self._last[vcpu] = record
        arguments: dict[str, Any] = {}
        if record.size:
            arguments = {
                "address": hex(record.address),
                "size": record.size,
                "access": "write" if record.is_write else "read",
            }
        self._slice(vcpu, record.reason, "exit", record.time_in, record.time_out, arguments)
        if record.conversion is not None:
            # The loop converts first of all; completing the access comes after it.
            self._slice(
                vcpu,
                f"to {record.conversion.name.lower()}",
                "conversion",
                record.time_in,
                min(record.time_in + record.conversion_ns, record.time_out),
            )

    def finish(self, machine: Machine, stop: Callable[[], Iterable[Tracepoint]]) -> None:
        """After the run: kicks, and what the kernel traced of the vCPUs' threads.

        ``stop`` ends the tracing and gives what was traced.
        """
        threads: dict[int, int] = {}
        for vcpu, loop in enumerate(machine.loops):
            threads[loop.raw.timer_thread] = vcpu
            for name, time in (
                ("kick sent", loop.raw.kick_sent_ns),
                ("kick seen", loop.raw.kick_seen_ns),
            ):
                if time:
                    self._instant(_GUEST, vcpu, name, "kick", time)
            self._event(_name_of("thread_name", _KERNEL, vcpu, f"vCPU {vcpu}: thread"))
        entered: dict[int, Tracepoint] = {}
        for point in stop():
            if point.thread not in threads:
                continue
            vcpu = threads[point.thread]
            if point.name == "sys_enter":
                entered[vcpu] = point
            elif point.name == "sys_exit":
                if vcpu in entered:
                    self._call(vcpu, entered.pop(vcpu), point)
            else:
                details = {"details": point.details, "cpu": point.cpu}
                self._instant(_KERNEL, vcpu, point.name, "kvm", point.time, details)

    def _call(self, vcpu: int, enter: Tracepoint, leave: Tracepoint) -> None:
        arguments = {"call": enter.details, "result": leave.details, "cpu": enter.cpu}
        name = call_name(enter.details)
        self._slice(vcpu, name, "system call", enter.time, leave.time, arguments, _KERNEL)

    def _slice(
        self,
        vcpu: int,
        name: str,
        category: str,
        start: int,
        end: int,
        arguments: dict[str, Any] | None = None,
        group: int = _GUEST,
    ) -> None:
        self._event(
            {
                "ph": "X",
                "name": name,
                "cat": category,
                "pid": group,
                "tid": vcpu,
                "ts": start / 1000,
                "dur": (end - start) / 1000,
                "args": arguments or {},
            }
        )

    def _instant(
        self,
        group: int,
        vcpu: int,
        name: str,
        category: str,
        time: int,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        self._event(
            {
                "ph": "i",
                "s": "t",
                "name": name,
                "cat": category,
                "pid": group,
                "tid": vcpu,
                "ts": time / 1000,
                "args": arguments or {},
            }
        )

    def _event(self, event: dict[str, Any]) -> None:
        self.write(b",\n" + self._bytes(event))

    @staticmethod
    def _bytes(event: dict[str, Any]) -> bytes:
        return json.dumps(event).encode()

    def close(self) -> None:
        """Complete the file."""
        try:
            self.write(b"]}\n")
        finally:
            super().close()


def _name_of(what: str, group: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": group, "tid": row, "args": {"name": name}}


def call_name(details: str) -> str:
    """A name for ``NR 16 (d, ae80, 0, ...)``: the ioctl, what fallocate does, or the call."""
    number, _, rest = details.removeprefix("NR ").partition(" (")
    arguments = rest.rstrip(")").split(", ")
    name = _CALLS.get(int(number), f"system call {number}")
    try:
        if name == "ioctl":
            return _IOCTL_NAMES.get(int(arguments[1], 16) & 0xFFFFFFFF, name)
        if name == "fallocate":
            return "discard" if int(arguments[1], 16) & _PUNCH else "allocate"
    except (IndexError, ValueError):
        pass
    return name


_IOCTL_NAMES = {ioctl.number: name for name, ioctl in IOCTLS.items()}
