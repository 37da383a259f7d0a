"""``bench lifecycle``: what a machine's life costs, phase by phase.

``machine`` is a whole :class:`Machine`: made, run until the guest's exit code, closed. The
phases are that machine's own steps, from the first on: what it looks at before, its arguments,
is in ``machine`` alone. Bare C makes the same system calls in the same order;
tests/host/test_bench_life.py traces both.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from pyvmm.bench.case import Bench, Case, Promise, Times
from pyvmm.bench.guests import check, guest, unexpected
from pyvmm.guest.image import Image
from pyvmm.kvm.system import Kvm
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.machine import Machine
from pyvmm.memory.backends import choose_backend
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism, Policy

PHASES = ("create", "slots", "vcpu", "first_exit", "reset", "close")
_TITLES = (
    "open /dev/kvm, create a VM",
    "RAM and a region of the emulated backend",
    "a vCPU with its CPUID, kvm_run, registers and run loop",
    "arm the deadline and run to the first exit",
    "registers as at the start, and run to an exit again",
    "close everything",
)
_DEADLINE_S = 3600
_GUEST = f"movl $0, %eax\n outl %eax, ${lib.PORT_EXIT:#x}\n"
PROMISE = Promise(ratio=1.10)


class _Life:
    """What both experiments need: the guest, the emulated backend, and bare C's phases."""

    def __init__(self) -> None:
        self.image = guest(_GUEST)
        self._code = self.image.segments[0].data
        with Kvm() as kvm:
            self.backend, self.mechanism = choose_backend(kvm, "emulated")
        self._phases = ffi.new("uint64_t[]", int(lib.BARE_PHASES))

    def bare(self, *, reset: bool) -> list[int]:
        """Nanoseconds of each phase of one life in bare C."""
        has_prot_none = self.mechanism == Mechanism.PROT_NONE
        signal, size = lib.loop_kick_signal(), len(self._code)
        check(lib.bare_life(self._code, size, signal, has_prot_none, reset, self._phases))
        return list(self._phases)


class Whole(_Life):
    """A Machine, as people use it."""

    def _live(self) -> float:
        start = time.monotonic_ns()
        with Machine(self.image, backend="emulated") as machine:
            report = machine.run()
        taken = time.monotonic_ns() - start
        if not report.passed:
            raise unexpected(0)
        return taken

    def ours(self, operations: int) -> Times:
        return (sum(self._live() for _ in range(operations)) / operations,)

    def floor(self, operations: int) -> Times:
        return (sum(sum(self.bare(reset=False)) for _ in range(operations)) / operations,)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        lib.histogram_record(latencies[0], int(self._live()))
        return [{}]


class _Timed(Machine):
    """A Machine that notes when each step of its making is through."""

    def __init__(self, image: Image) -> None:
        self.times: list[int] = []
        super().__init__(image, backend="emulated")
        self.times.append(time.monotonic_ns())

    def _create_vm(self, kvm: Kvm | None, policy: Policy) -> None:
        self.times.append(time.monotonic_ns())
        super()._create_vm(kvm, policy)
        self.times.append(time.monotonic_ns())

    def _add_memory(self) -> None:
        super()._add_memory()
        self.times.append(time.monotonic_ns())


class Phases(_Life):
    """The steps of a Machine, each timed."""

    def _live(self) -> list[float]:
        machine = _Timed(self.image)
        times, loop = machine.times, machine.loops[0]
        deadline = times[0] + _DEADLINE_S * 1_000_000_000
        self._run(loop, deadline)
        times.append(time.monotonic_ns())
        machine.platform.boot(machine.vcpus[0], 1, self.image)
        self._run(loop, deadline)
        times.append(time.monotonic_ns())
        machine.close()
        times.append(time.monotonic_ns())
        return [float(after - before) for before, after in itertools.pairwise(times)]

    def _run(self, loop: VcpuLoop, deadline: int) -> None:
        loop.limit(deadline)
        while (stop := loop.run()) == lib.STOP_SIGNAL:
            pass
        if stop != lib.STOP_GUEST_EXIT:
            raise unexpected(stop)

    def ours(self, operations: int) -> Times:
        return self._live()

    def floor(self, operations: int) -> Times:
        return [float(each) for each in self.bare(reset=True)]

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        for latency, taken in zip(latencies, self._live(), strict=True):
            lib.histogram_record(latency, int(taken))
        return [{}] * len(PHASES)


def _whole(stack: ExitStack) -> Whole:
    return Whole()


def _phases(stack: ExitStack) -> Phases:
    return Phases()


def benches() -> list[Bench]:
    """All of ``bench lifecycle``."""
    machine = Case("machine", "a Machine: made, run, closed", PROMISE)
    phases = (Case(name, title) for name, title in zip(PHASES, _TITLES, strict=True))
    return [Bench((machine,), _whole, most=1), Bench(tuple(phases), _phases, most=1)]
