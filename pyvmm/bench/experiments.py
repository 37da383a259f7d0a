"""Exits of one kind on one vCPU, by way of pyvmm and by a bare loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pyvmm.bench.case import Times
from pyvmm.bench.guests import (
    INSIDE,
    NOTHING_GPA,
    PORT_IN_PYTHON,
    UNKNOWN_MSR,
    VECTOR,
    check,
    unexpected,
)
from pyvmm.errors import KvmError, PyvmmError, UnsupportedError
from pyvmm.kvm.coalesced import CoalescedRing
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.system import Kvm
from pyvmm.machine import Machine
from pyvmm.native import ffi, lib

_DEADLINE_S = 3600


class LoopExperiment:
    """Exits of one kind, answered by a run loop and by a bare one on the same vCPU.

    Here C answers; what Python answers is in the subclasses. ``parts`` operations of the
    guest make one exit.
    """

    def __init__(self, machine: Machine, reason: int, parts: int = 1) -> None:
        self.machine = machine
        self.vcpu = machine.vcpus[0]
        self.run = self.vcpu.kvm_run
        self.loop = machine.loops[0]
        self.raw = self.loop.raw
        self.reason = reason
        self.parts = parts
        self.until = time.monotonic_ns() + _DEADLINE_S * 1_000_000_000
        self.ring = ffi.NULL
        self.raw.recording = False

    def exits(self, count: int) -> None:
        """So many exits by way of pyvmm."""
        raw, loop, until = self.raw, self.loop, self.until
        last = raw.exit_total + count
        while (left := last - raw.exit_total) > 0:
            loop.limit(until, left)
            stop = loop.run()
            if stop not in (lib.STOP_MAX_EXITS, lib.STOP_SIGNAL):
                raise unexpected(stop)

    def bare_exits(self, count: int) -> None:
        fd = self.vcpu.fileno()
        check(lib.bare_exits(fd, self.run, self.reason, count, self.parts, self.ring, ffi.NULL))

    def ours(self, operations: int) -> Times:
        return self._timed(self.exits, operations)

    def floor(self, operations: int) -> Times:
        return self._timed(self.bare_exits, operations)

    def _timed(self, exits: Callable[[int], None], operations: int) -> Times:
        count = operations // self.parts
        start = time.monotonic_ns()
        exits(count)
        return ((time.monotonic_ns() - start) / (count * self.parts),)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        """From the exit log: from one exit to the next."""
        raw = self.raw
        first = raw.log.written
        raw.recording = True
        self.exits(min(operations // self.parts + 1, raw.log.capacity))
        lib.loop_finish_record(raw)
        raw.recording = False
        lib.exit_log_split(
            ffi.addressof(raw, "log"),
            first,
            -1,
            self.parts,
            ffi.new("struct exit_split *"),
            latencies[0],
        )
        return [{}]


class Recorded(LoopExperiment):
    """The same exits with and without histogram and exit log."""

    def ours(self, operations: int) -> Times:
        self.raw.recording = True
        try:
            return self._timed(self.exits, operations)
        finally:
            lib.loop_finish_record(self.raw)
            self.raw.recording = False

    def floor(self, operations: int) -> Times:
        return self._timed(self.exits, operations)


class InPlace(LoopExperiment):
    """Python reads the fields of a port exit where they are, and answers there."""

    def exits(self, count: int) -> None:
        self.loop.limit(self.until)
        io, run, stop_exit = self.run.io, self.loop.run, lib.STOP_EXIT
        data = ffi.cast("uint32_t *", ffi.cast("char *", self.run) + io.data_offset)
        is_write = lib.KVM_EXIT_IO_OUT
        while count:
            stop = run()
            if stop == stop_exit:
                if io.port != PORT_IN_PYTHON:
                    raise unexpected(stop)
                if io.direction != is_write:
                    data[0] = 0xFFFFFFFF
                count -= 1
            elif stop != lib.STOP_SIGNAL:
                raise unexpected(stop)


class MmioInPlace(LoopExperiment):
    def exits(self, count: int) -> None:
        self.loop.limit(self.until)
        mmio, run, stop_exit = self.run.mmio, self.loop.run, lib.STOP_EXIT
        data = ffi.cast("uint64_t *", mmio.data)
        while count:
            stop = run()
            if stop == stop_exit:
                if mmio.phys_addr != NOTHING_GPA:
                    raise unexpected(stop)
                if not mmio.is_write:
                    data[0] = 0xFFFFFFFFFFFFFFFF
                count -= 1
            elif stop != lib.STOP_SIGNAL:
                raise unexpected(stop)


class MsrInPlace(LoopExperiment):
    def exits(self, count: int) -> None:
        self.loop.limit(self.until)
        msr, run, stop_exit = self.run.msr, self.loop.run, lib.STOP_EXIT
        while count:
            stop = run()
            if stop == stop_exit:
                if msr.index != UNKNOWN_MSR:
                    raise unexpected(stop)
                msr.error = 0
                count -= 1
            elif stop != lib.STOP_SIGNAL:
                raise unexpected(stop)


class AsObject(LoopExperiment):
    """Python is given an immutable object for each exit, as Machine.exits() gives it."""

    def exits(self, count: int) -> None:
        self.loop.limit(self.until)
        run, decode, stop_exit = self.loop.run, self.vcpu.exit, lib.STOP_EXIT
        while count:
            stop = run()
            if stop == stop_exit:
                exit = decode()
                if exit.port != PORT_IN_PYTHON:  # type: ignore[union-attr]
                    raise unexpected(stop)
                count -= 1
            elif stop != lib.STOP_SIGNAL:
                raise unexpected(stop)


class ByDevice(LoopExperiment):
    """A device in Python behind the machine's bus, as in Machine.run()."""

    def exits(self, count: int) -> None:
        self.loop.limit(self.until)
        kvm_run, run, stop_exit = self.run, self.loop.run, lib.STOP_EXIT
        answer = self.machine.bus.answer
        while count:
            stop = run()
            if stop == stop_exit and answer(kvm_run):
                count -= 1
            elif stop != lib.STOP_SIGNAL:
                raise unexpected(stop)


class StopEach(LoopExperiment):
    """Exits at which the loop stops for Python, which has nothing to answer."""

    def __init__(self, machine: Machine, reason: int, parts: int, stop: int) -> None:
        super().__init__(machine, reason, parts)
        self._stop = stop

    def exits(self, count: int) -> None:
        self.loop.limit(self.until)
        run, wanted = self.loop.run, self._stop
        while count:
            stop = run()
            if stop == wanted:
                count -= 1
            elif stop != lib.STOP_SIGNAL:
                raise unexpected(stop)


class Coalesced(StopEach):
    """Python empties the ring at each exit."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine, lib.KVM_EXIT_IO, INSIDE, lib.STOP_EXIT)
        self._drain = CoalescedRing(self.vcpu).drain
        offset = lib.KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE_SIZE
        self.ring = ffi.cast(
            "struct kvm_coalesced_mmio_ring *", ffi.cast("char *", self.run) + offset
        )

    def exits(self, count: int) -> None:
        for _ in range(count):
            super().exits(1)
            if len(self._drain()) != INSIDE:
                raise PyvmmError("coalesced writes", "the ring does not have what was written")


class Interrupts(LoopExperiment):
    """KVM_INTERRUPT from Python, its handler in the guest, and the next exit."""

    def __init__(self, machine: Machine, reason: int) -> None:
        super().__init__(machine, reason)
        super().exits(2)  # until the guest takes interrupts

    def exits(self, count: int) -> None:
        interrupt, some = self.vcpu.interrupt, super().exits
        for _ in range(count):
            interrupt(VECTOR)
            some(1)

    def bare_exits(self, count: int) -> None:
        check(lib.bare_interrupts(self.vcpu.fileno(), self.run, VECTOR, count, ffi.NULL))


class Immediate(LoopExperiment):
    """KVM_RUN that does not enter the guest."""

    def exits(self, count: int) -> None:
        self.loop.limit(self.until)
        kvm_run, run = self.run, self.loop.run
        for _ in range(count):
            kvm_run.immediate_exit = 1
            if run() != lib.STOP_SIGNAL:
                raise PyvmmError("immediate_exit", "KVM_RUN entered the guest")

    def bare_exits(self, count: int) -> None:
        check(lib.bare_immediate_exits(self.vcpu.fileno(), self.run, count, ffi.NULL))

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        return sample_each(partial(self.exits, 1), operations, latencies[0])


class ByGuest(LoopExperiment):
    """The guest's own TSC over INSIDE reads of a port, which it then writes to another."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine, lib.KVM_EXIT_IO)
        try:
            khz = self.vcpu.get_tsc_khz()
        except KvmError as error:
            raise UnsupportedError("the guest's TSC", error.cause) from None
        self._ns_per_tick = 1e6 / khz
        super().exits(1)  # what the guest tells first is no measure
        data = ffi.cast("char *", self.run) + self.run.io.data_offset
        self._ticks = ffi.cast("uint32_t *", data)

    def exits(self, count: int) -> None:
        """So many times INSIDE reads, and the exit that tells how long they took."""
        super().exits(count * (INSIDE + 1))

    def bare_exits(self, count: int) -> None:
        super().bare_exits(count * (INSIDE + 1))

    def _timed(self, exits: Callable[[int], None], operations: int) -> Times:
        blocks = max(1, operations // INSIDE)
        ticks = 0
        for _ in range(blocks):
            exits(1)
            ticks += self._ticks[0]
        return (ticks * self._ns_per_tick / (blocks * INSIDE),)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        for _ in range(max(1, operations // INSIDE)):
            lib.histogram_record(latencies[0], int(self._timed(self.exits, INSIDE)[0]))
        return [{}]


class SystemIoctl:
    """The least that an ioctl costs, from bare C on both sides: what a ratio of 1 looks like."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm

    def ours(self, operations: int) -> Times:
        start = time.monotonic_ns()
        check(lib.bare_system_ioctls(self._kvm.fileno(), operations, ffi.NULL))
        return ((time.monotonic_ns() - start) / operations,)

    floor = ours

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        check(lib.bare_system_ioctls(self._kvm.fileno(), min(operations, 1000), latencies[0]))
        return [{}]


class Kick:
    """From loop_kick() in another thread to the return of loop_run(), one after the other.

    The other thread runs on ``kicker_cpu``; -1: wherever it may.
    """

    def __init__(self, machine: Machine, kicker_cpu: int) -> None:
        self._loop = machine.loops[0]
        self._vcpu = machine.vcpus[0]
        self._kicker_cpu = kicker_cpu
        self._sum = ffi.new("uint64_t *")
        self._loop.raw.recording = False

    def _kicks(self, count: int, latency: Any = ffi.NULL) -> Times:
        self._sum[0] = 0
        check(lib.loop_kicks(self._loop.raw, self._kicker_cpu, count, self._sum, latency))
        return (self._sum[0] / count,)

    def ours(self, operations: int) -> Times:
        return self._kicks(operations)

    def floor(self, operations: int) -> Times:
        fd, run, signal = self._vcpu.fileno(), self._vcpu.kvm_run, lib.loop_kick_signal()
        self._sum[0] = 0
        check(lib.bare_kicks(fd, run, signal, self._kicker_cpu, operations, self._sum, ffi.NULL))
        return (self._sum[0] / operations,)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        self._kicks(operations, latencies[0])
        return [{}]


def sample_each(
    operation: Callable[[], object], operations: int, latency: Any
) -> list[dict[str, float]]:
    """Time each operation from Python."""
    now, record = time.monotonic_ns, lib.histogram_record
    for _ in range(min(operations, 1000)):
        start = now()
        operation()
        record(latency, now() - start)
    return [{}]
