"""The C run loop of one vCPU: deadline, kick, counters, exit log and histograms."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn

from pyvmm.errors import ClosedError, ConfigurationError, KvmError
from pyvmm.kvm.arguments import MOST_U32, c_structure, integer, need, number
from pyvmm.kvm.exits import MemoryErrorExit
from pyvmm.kvm.uapi import reason_name
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi, lib
from pyvmm.page_states import PageState

_CONVERSIONS: dict[int, PageState | None] = {
    lib.CONVERSION_NONE: None,
    lib.CONVERSION_TO_SHARED: PageState.SHARED,
    lib.CONVERSION_TO_PRIVATE: PageState.PRIVATE,
}


def create_protocol() -> Any:
    """A ``struct protocol *``, freed when the last reference goes. Raises :class:`KvmError`."""
    protocol = lib.protocol_create()
    if protocol == ffi.NULL:
        raise KvmError("protocol_create", errno.ENOMEM, "console and measures")
    return ffi.gc(protocol, lib.protocol_destroy)


def _no_protocol() -> Any:
    protocol = create_protocol()
    protocol.enabled = False
    protocol.unclaimed_to_python = True
    return protocol


def _no_memory() -> Any:
    memory = ffi.new("struct memory *")
    lib.memory_init(memory, -1, b"emulated", lib.POLICY_CONVERT)
    return memory


class ExitRecord(NamedTuple):
    """One exit in the log. Times are CLOCK_MONOTONIC nanoseconds.

    ``time_in`` is when KVM_RUN returned and ``time_out`` when it was called again.
    ``address`` is a GPA, a port or a hypercall number; ``size`` is in bytes;
    ``conversion`` the state that pages got, and ``conversion_ns`` what that took.
    """

    time_in: int
    time_out: int
    reason: str
    address: int
    size: int
    is_write: bool
    conversion: PageState | None
    conversion_ns: int


def _deinit(kept: tuple[Any, ...], loop: Any) -> None:
    lib.loop_deinit(loop)
    del kept


def _check(memory: Any, protocol: Any, sync_registers: Any, log_capacity: Any) -> None:
    """Raise for what :class:`VcpuLoop` cannot take; the calls of nearly all need no look."""
    c_structure("struct memory *", memory)
    c_structure("struct protocol *", protocol)
    number("sync_registers", sync_registers, 0, MOST_U32)
    capacity = integer("log_capacity", log_capacity)
    if not 0 <= capacity < 1 << 64 or capacity & (capacity - 1):
        raise ConfigurationError(f"an exit log of {capacity}", "it is no power of two or 0")


class VcpuLoop:
    """Runs a vCPU in C until there is something for Python.

    ``memory`` and ``protocol`` are the C structures of the machine. Without memory there are
    no private pages, and without a protocol every exit is for Python. ``sync_registers`` is what
    KVM_CAP_SYNC_REGS can do there (``KVM_SYNC_X86_*``). ``log_capacity`` (records, a power
    of two) bounds the exit log; 0 and recording off cost nothing.

    Synchronization: only :meth:`kick` may be called by another thread.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        memory: Any = None,
        protocol: Any = None,
        *,
        sync_registers: int = 0,
        log_capacity: int = 0,
    ) -> None:
        need("vcpu", vcpu, Vcpu)
        self.vcpu = vcpu
        memory = _no_memory() if memory is None else memory
        protocol = _no_protocol() if protocol is None else protocol
        loop = ffi.new("struct vcpu_loop *")
        loop.vcpu_fd = vcpu.fileno()
        loop.run = vcpu.kvm_run
        loop.run_size = vcpu.mmap_size
        try:
            loop.memory, loop.protocol = memory, protocol
            loop.sync_registers = sync_registers
            result = lib.loop_init(loop, log_capacity)
        except (OverflowError, TypeError):
            result = -errno.EINVAL
        if result == -errno.EINVAL:
            _check(memory, protocol, sync_registers, log_capacity)
        if result < 0:
            raise KvmError("loop_init", -result, vcpu.name)
        loop.recording = log_capacity > 0
        # C points to these. Whoever runs or kicks the loop keeps it, and so them, alive.
        self._loop = ffi.gc(loop, partial(_deinit, (vcpu.kvm_run, memory, protocol)))
        # No method: a function in Python around C's would cost as much as the call itself.
        self.run: Callable[[], int] = partial(lib.loop_run, self._loop)
        """Run until there is something for Python; returns a ``STOP_*`` of ``lib``.

        STOP_SIGNAL is a tick: let Python run its signal handlers, then call again.
        STOP_BUSY: another thread is in it.
        """
        vcpu.before_close(self.close)

    @property
    def raw(self) -> Any:
        """The ``struct vcpu_loop *``. Raises :class:`ClosedError` after :meth:`close`."""
        if self._loop is None:
            raise ClosedError(f"run loop of {self.vcpu.name}")
        return self._loop

    def limit(self, deadline_ns: int, max_exits: int = 0) -> None:
        """What each :meth:`run` from now on ends at; 0 for no limit.

        ``deadline_ns`` is on CLOCK_MONOTONIC (``time.monotonic_ns()``): STOP_DEADLINE. After
        ``max_exits`` exits of one run: STOP_MAX_EXITS.
        """
        raw = self.raw
        try:
            raw.deadline, raw.max_exits = deadline_ns, max_exits
        except (OverflowError, TypeError):
            number("deadline_ns", deadline_ns)
            number("max_exits", max_exits)
            raise

    def kick(self) -> None:
        """End the current :meth:`run`, or the next one. From any thread; never lost."""
        if (loop := self._loop) is not None:
            lib.loop_kick(loop)

    def disarm(self) -> None:
        """Stop the timer's ticks; the next run with a deadline starts them again."""
        if self._loop is not None:
            lib.loop_disarm(self._loop, False)

    def pause(self) -> None:
        """No tick until the next run, so that none ends another call with EINTR.

        The timer is kept, which costs the next run less than :meth:`disarm`.
        """
        if self._loop is not None:
            lib.loop_disarm(self._loop, True)

    def forget_kick(self) -> None:
        """Drop a kick that came too late for the run that it was to end."""
        if self._loop is not None:
            lib.loop_forget_kick(self._loop)

    def memory_error(self) -> MemoryErrorExit:
        """The exit behind STOP_MEMORY_ERROR, as the RFC's kernel would send it."""
        exit = self.raw.memory_exit
        page = exit.access.gpa & ~0xFFF
        return MemoryErrorExit(page, 4096, PageState(exit.wanted))

    def answer_convert(self) -> None:
        """Let the next :meth:`run` convert the page of STOP_MEMORY_ERROR and go on."""
        self.raw.convert_once = True

    def exit_counts(self) -> dict[str, int]:
        """How many exits of each reason there were, by the kernel's lower-case names."""
        return {name: count for name, count, _ in self.exits_by_reason()}

    def exits_by_reason(self) -> Iterator[tuple[str, int, Any]]:
        """Each reason's name, how many exits it had, and the ``struct exit_times`` of them.

        The last is None for "other", which are the reasons that C has no room for.
        """
        loop = self.raw
        left = lib.loop_reasons(loop)
        while left:
            lowest = left & -left
            left ^= lowest
            reason = lowest.bit_length() - 1
            yield reason_name(reason), loop.exits[reason], loop.times[reason]
        if loop.exits_beyond:
            yield "other", loop.exits_beyond, None

    def drain_log(self) -> Iterator[ExitRecord]:
        """The records that have not been taken yet, oldest first; each is given once."""
        log = self.raw.log
        first = max(log.drained, log.written - log.capacity)
        for at in range(first, log.written):
            log.drained = at + 1  # not after it: who takes the record may raise or stop
            yield self._record(log.records[at % log.capacity])

    def last_exits(self, count: int) -> list[ExitRecord]:
        """The newest ``count`` records, oldest first, taken or not."""
        log = self.raw.log
        first = max(0, log.written - min(number("count", count), log.capacity))
        return [self._record(log.records[at % log.capacity]) for at in range(first, log.written)]

    @staticmethod
    def _record(record: Any) -> ExitRecord:
        return ExitRecord(
            record.time_in,
            record.time_out,
            reason_name(record.reason),
            record.address,
            record.size,
            record.is_write != 0,
            _CONVERSIONS[record.conversion],
            record.conversion_ns,
        )

    def close(self) -> None:
        if self._loop is not None:
            self._loop.vcpu_fd = -1  # whoever still has run() gets EBADF from it
        self.run = self._refuse
        self._loop = None

    def _refuse(self) -> NoReturn:
        raise ClosedError(f"run loop of {self.vcpu.name}")
