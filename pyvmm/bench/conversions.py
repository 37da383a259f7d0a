"""``bench conversions``: what a conversion costs, and where its time goes.

Implicit ones: a guest touches a region's first page by turns through its private and its
shared view. Explicit ones: the host asks for a range, without a guest. The floor makes
the same system calls in the same order, each a step of :mod:`pyvmm.bench.conversion_calls`.

The parts of a split, all but the first two from the calls' own times in bare C:
  exit          an exit of the same kind that converts nothing: KVM_RUN, to the guest and back
  refault       what KVM_RUN takes more than that, right after a conversion
  allocate      the page in the file it goes to
  attributes    KVM_SET_MEMORY_ATTRIBUTES, or KVM_SET_MEMORY_ATTRIBUTES2 of the file
  switch        one view made present and the other absent: mprotect or memslots
  discard       the page in the file it came from
  bookkeeping   recognise the exit, lock, page states, counters, complete the access
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from pyvmm.bench.case import Bench, Case, Promise, Times
from pyvmm.bench.conversion_calls import PARTS, Directions, Sums
from pyvmm.bench.guests import (
    NOTHING_GPA,
    PORT_IN_C,
    check,
    forever,
    guest,
    opened,
    port,
    segment,
    unexpected,
)
from pyvmm.errors import UnsupportedError
from pyvmm.guest.real_mode import REGION_GPA, SHARED_VIEW_GPA
from pyvmm.machine import Machine
from pyvmm.memory.backends import BACKENDS
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism

SIZES = {"4k": 1, "16k": 4, "64k": 16, "256k": 64}
VCPUS = (2, 4)
_DEADLINE_S = 3600
PROMISE = Promise(ratio=1.05)
# EAX is the vCPU's index at the start: each has a page of its own.
_TOUCH = f"""
        movl %eax, %ebx
        shll $12, %ebx
        movw ${REGION_GPA >> 4:#x}, %ax
        movw %ax, %ds
        movw ${SHARED_VIEW_GPA >> 4:#x}, %ax
        movw %ax, %es
again:  movl %eax, %ds:(%bx)
        movl %eax, %es:(%bx)
        jmp again
"""
_DOORBELL = f"""
        .include "pyvmm.inc"
        movw $PORT_DOORBELL_GPA, %dx
        movl ${REGION_GPA:#x}, %eax
        outl %eax, %dx
        movw $PORT_DOORBELL_PAGES, %dx
        movl $1, %eax
        outl %eax, %dx
        movw $PORT_DOORBELL_RING, %dx
again:  movl $TO_PRIVATE, %eax
        outl %eax, %dx
        movl $TO_SHARED, %eax
        outl %eax, %dx
        jmp again
"""
_ONE_VIEW = f"""
        .include "pyvmm.inc"
        movw ${REGION_GPA >> 4:#x}, %ax
        movw %ax, %es
        movw $PORT_DOORBELL_GPA, %dx
        movl ${REGION_GPA:#x}, %eax
        outl %eax, %dx
        movw $PORT_DOORBELL_PAGES, %dx
        movl $1, %eax
        outl %eax, %dx
        movw $PORT_DOORBELL_RING, %dx
again:  movl $TO_PRIVATE, %eax
        outl %eax, %dx
        movl %eax, %es:0
        movl $TO_SHARED, %eax
        outl %eax, %dx
        movl %eax, %es:0
        jmp again
"""
_PLAIN_WRITE = forever("movl %eax, %es:0", segment(NOTHING_GPA))
_PLAIN_OUT = forever("outl %eax, %dx", port(PORT_IN_C))


class Guests:
    """vCPUs that convert a page each, one thread for each vCPU.

    All batches convert as many times to private as to shared, so that pages end shared.
    """

    def __init__(self, machine: Machine, *, warm_up: int = 4, early: bool = False) -> None:
        self.machine = machine
        self.until = time.monotonic_ns() + _DEADLINE_S * 1_000_000_000
        for loop in machine.loops:
            loop.raw.recording = False
        # Once around first: memslots are split, and stay so.
        self.in_threads(lambda index: self.convert(index, warm_up))
        self.bare = [Directions(machine, at, 1, early=early) for at in range(len(machine.loops))]

    def convert(self, index: int, conversions: int) -> None:
        loop = self.machine.loops[index]
        raw = loop.raw
        last = raw.exit_total + conversions
        while (left := last - raw.exit_total) > 0:
            loop.limit(self.until, left)
            stop = loop.run()
            if stop not in (lib.STOP_MAX_EXITS, lib.STOP_SIGNAL):
                raise unexpected(stop)

    def bare_convert(self, index: int, conversions: int, timing: int) -> None:
        vcpu, bare = self.machine.vcpus[index], self.bare[index]
        fd, run = vcpu.fileno(), vcpu.kvm_run
        check(lib.bare_conversions(fd, run, bare.to_private, bare.to_shared, conversions, timing))

    def in_threads(self, work: Callable[[int], None]) -> float:
        """Let each vCPU's thread do it at once; the nanoseconds that it took them on average."""
        count = len(self.machine.loops)
        taken = [0] * count
        errors: list[BaseException] = []
        ready = threading.Barrier(count)

        def one(index: int) -> None:
            try:
                ready.wait()
                start = time.monotonic_ns()
                work(index)
                taken[index] = time.monotonic_ns() - start
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(index,)) for index in range(1, count)]
        for thread in threads:
            thread.start()
        one(0)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return sum(taken) / count

    def record(self, conversions: int) -> int:
        """Convert with recording on; the number of vCPU 0's first record."""
        first = int(self.machine.loops[0].raw.log.written)
        for loop in self.machine.loops:
            loop.raw.recording = True
        self.in_threads(lambda at: self.convert(at, conversions))
        for loop in self.machine.loops:
            lib.loop_finish_record(loop.raw)
            loop.raw.recording = False
        return first

    def split(self, first: int, conversion: int, latency: Any = ffi.NULL) -> Any:
        """The ``struct exit_split *`` of vCPU 0's records from ``first`` on."""
        split = ffi.new("struct exit_split *")
        log = ffi.addressof(self.machine.loops[0].raw, "log")
        lib.exit_log_split(log, first, conversion, 1, split, latency)
        return split


class Together:
    """Both directions of several vCPUs, each in a thread: one of its own conversions."""

    def __init__(self, machine: Machine) -> None:
        self._guests = Guests(machine)

    def ours(self, operations: int) -> Times:
        guests = self._guests
        return (guests.in_threads(lambda at: guests.convert(at, operations)) / operations,)

    def floor(self, operations: int) -> Times:
        guests = self._guests
        taken = guests.in_threads(lambda at: guests.bare_convert(at, operations, lib.BARE_UNTIMED))
        return (taken / operations,)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        self._guests.split(self._guests.record(min(operations, 512)), -1, latencies[0])
        return [{}]


_DIRECTIONS = (lib.CONVERSION_TO_PRIVATE, lib.CONVERSION_TO_SHARED)


class Apart:
    """One vCPU: both directions together, recording off; then each by itself, recorded."""

    def __init__(self, machine: Machine, plain: Machine, warm_up: int) -> None:
        self._guests = Guests(machine, warm_up=warm_up)
        self._plain_loop = plain.loops[0]
        self._plain_loop.raw.recording = False

    def ours(self, operations: int) -> Times:
        guests = self._guests
        whole = guests.in_threads(lambda at: guests.convert(at, operations)) / operations
        first = guests.record(min(operations, 512))
        return (whole, *(_whole(guests.split(first, each)) for each in _DIRECTIONS))

    def floor(self, operations: int) -> Times:
        guests = self._guests
        taken = guests.in_threads(lambda at: guests.bare_convert(0, operations, lib.BARE_UNTIMED))
        bare = guests.bare[0]
        bare.start_over()
        guests.bare_convert(0, operations, lib.BARE_TIME_WHOLE)
        return (taken / operations, Sums(bare.to_private).whole, Sums(bare.to_shared).whole)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        guests, some = self._guests, min(operations, 512)
        exit_ns = self._plain_exit(some)
        first = guests.record(some)
        guests.split(first, -1, latencies[0])
        bare = guests.bare[0]
        bare.start_over()
        guests.bare_convert(0, some, lib.BARE_TIME_PARTS)
        splits: list[dict[str, float]] = [{}]
        for direction, sums, latency in zip(
            _DIRECTIONS, (Sums(bare.to_private), Sums(bare.to_shared)), latencies[1:], strict=True
        ):
            split = guests.split(first, direction, latency)
            splits.append(
                {
                    "outside": split.outside_ns / split.count,
                    "exit": exit_ns,
                    "handling": split.handling_ns / split.count,
                    **sums.parts,
                }
            )
        return splits

    def _plain_exit(self, count: int) -> float:
        """KVM_RUN's own time when the exit converted nothing."""
        loop = self._plain_loop
        raw = loop.raw
        first = raw.log.written
        raw.recording = True
        last = raw.exit_total + count
        while (left := last - raw.exit_total) > 0:
            loop.limit(self._guests.until, left)
            loop.run()
        lib.loop_finish_record(raw)
        raw.recording = False
        split = ffi.new("struct exit_split *")
        lib.exit_log_split(ffi.addressof(raw, "log"), first, -1, 1, split, ffi.NULL)
        return float(split.outside_ns / split.count)


def _whole(split: Any) -> float:
    return float((split.handling_ns + split.outside_ns) / split.count)


class Early:
    """The floor of a touch with the stale side discarded before the views are switched."""

    def __init__(self, machine: Machine) -> None:
        self._late, self._early = Guests(machine), Guests(machine, early=True)

    @staticmethod
    def _wholes(guests: Guests, operations: int) -> Times:
        guests.bare_convert(0, operations, lib.BARE_TIME_WHOLE)
        return Sums(guests.bare[0].to_private).whole, Sums(guests.bare[0].to_shared).whole

    def ours(self, operations: int) -> Times:
        return self._wholes(self._early, operations)

    def floor(self, operations: int) -> Times:
        return self._wholes(self._late, operations)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        for latency, whole in zip(latencies, self._wholes(self._early, operations), strict=True):
            lib.histogram_record(latency, int(whole))
        return [{}, {}]


class Explicit:
    """The host converts a range to and fro; no guest runs."""

    def __init__(self, machine: Machine, pages: int) -> None:
        self._machine, self._pages = machine, pages
        self._gpa = machine.memory.regions[0].gpa
        self._times = ffi.new("uint64_t[2]")
        self._convert(2)
        self._bare = Directions(machine, 0, pages)

    def _convert(self, pairs: int, latencies: Sequence[Any] = (ffi.NULL, ffi.NULL)) -> Times:
        private, shared = self._times, self._times + 1
        private[0] = shared[0] = 0
        raw = self._machine.memory.raw
        check(
            lib.memory_convert_pairs(
                raw, self._gpa, self._pages, pairs, private, shared, *latencies
            )
        )
        return private[0] / pairs, shared[0] / pairs

    def _bare_convert(self, pairs: int, timing: int) -> tuple[Sums, Sums]:
        bare = self._bare
        check(lib.bare_convert_pairs(bare.to_private, bare.to_shared, pairs, timing))
        return Sums(bare.to_private), Sums(bare.to_shared)

    def ours(self, operations: int) -> Times:
        return self._convert(operations)

    def floor(self, operations: int) -> Times:
        sums = self._bare_convert(operations, lib.BARE_TIME_WHOLE)
        return sums[0].whole, sums[1].whole

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        wholes = self._convert(operations, latencies)
        splits = []
        for whole, sums in zip(
            wholes, self._bare_convert(operations, lib.BARE_TIME_PARTS), strict=True
        ):
            splits.append({"handling": whole, **sums.parts})
        return splits


def split(measured: dict[str, float]) -> dict[str, float]:
    """The parts of a conversion: what has no clock of its own is what is left."""
    parts = dict(measured)
    handling = parts.pop("handling")
    calls = sum(parts[name] for name in PARTS.values() if name in parts)
    if "outside" in parts:
        parts = {"exit": parts["exit"], "refault": parts.pop("outside") - parts["exit"], **parts}
    return {**parts, "bookkeeping": handling - calls}


# ---- the cases ----


def _machine(stack: ExitStack, backend: str, code: str, vcpus: int = 1, views: int = 2) -> Machine:
    return opened(stack, Machine(guest(code), backend=backend, vcpus=vcpus, views=views))


def _apart(
    stack: ExitStack, backend: str, code: str, plain: str, warm_up: int, views: int = 2
) -> Apart:
    plain_machine = _machine(stack, "emulated", plain)
    machine = _machine(stack, backend, code, views=views)
    if views == 1 and machine.memory.mechanism != Mechanism.ATTRIBUTES:
        raise UnsupportedError(f"{backend}, one view", "it has nothing that KVM follows by itself")
    return Apart(machine, plain_machine, warm_up)


def _together(stack: ExitStack, backend: str, vcpus: int) -> Together:
    machine = _machine(stack, backend, _TOUCH, vcpus)
    backing = machine.memory.regions[0].backing
    if backing.private_file is backing.shared_file:
        raise UnsupportedError(
            f"{backend}, {vcpus} vCPUs", "bare C lets vCPUs into the guest while slots change"
        )
    return Together(machine)


def _early(stack: ExitStack, backend: str) -> Early:
    machine = _machine(stack, backend, _TOUCH)
    if machine.memory.mechanism == Mechanism.PRESENCE:
        raise UnsupportedError(
            f"{backend}, discarding early", "a page's presence is its state: nothing is switched"
        )
    return Early(machine)


def _of_backend(backend: str) -> Iterator[Bench]:
    def case(name: str, title: str, promise: Promise | None = None) -> Case:
        return Case(f"{backend}_{name}", f"{backend}: {title}", promise)

    for way, title, code, plain, warm_up, views in (
        ("touch", "by a touch of the guest", _TOUCH, _PLAIN_WRITE, 4, 2),
        # Its first two exits say which page.
        ("doorbell", "by the guest's doorbell", _DOORBELL, _PLAIN_OUT, 6, 2),
        ("one_view", "by the doorbell, one view, used after it", _ONE_VIEW, _PLAIN_OUT, 6, 1),
    ):
        yield Bench(
            (
                case(way, f"{title}, both directions, recording off", PROMISE),
                case(f"{way}_to_private", f"{title}, to private, recorded", PROMISE),
                case(f"{way}_to_shared", f"{title}, to shared, recorded", PROMISE),
            ),
            partial(_apart, backend=backend, code=code, plain=plain, warm_up=warm_up, views=views),
            least=16,
            most=512,
            split=split,
        )
    yield Bench(
        (
            case("discard_early_to_private", "a touch in bare C, discarding first; floor: last"),
            case("discard_early_to_shared", "a touch in bare C, discarding first; floor: last"),
        ),
        lambda stack: _early(stack, backend),
        least=16,
    )
    for vcpus in VCPUS:
        yield Bench(
            (case(f"touch_{vcpus}_vcpus", f"by touches of {vcpus} vCPUs at once"),),
            partial(_together, backend=backend, vcpus=vcpus),
            pinned=False,
            least=64,  # long beside the time in which the threads start
        )
    for size, pages in SIZES.items():
        yield Bench(
            (
                case(f"host_to_private_{size}", f"by the host, {size} to private", PROMISE),
                case(f"host_to_shared_{size}", f"by the host, {size} to shared", PROMISE),
            ),
            lambda stack, pages=pages: Explicit(  # type: ignore[misc]
                _machine(stack, backend, _TOUCH), pages
            ),
            split=split,
        )


def benches() -> list[Bench]:
    """All of ``bench conversions``; what this KVM does not have is skipped."""
    return [bench for backend in reversed(BACKENDS) for bench in _of_backend(backend)]
