"""``bench exits``: what one exit costs, by who answers it.

All guests run in real mode, each a loop of one instruction that exits. What KVM answers
itself (cpuid, ioeventfd, coalesced writes) is done many times for one exit, and the time
is for one of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cache, partial
from typing import Any

from pyvmm.bench.case import Bench, Case, Promise, Times
from pyvmm.bench.priority import on_cpu, ordinary
from pyvmm.errors import KvmError, PyvmmError, UnsupportedError
from pyvmm.guest.assembler import assemble
from pyvmm.guest.image import Image
from pyvmm.kvm.coalesced import CoalescedRing
from pyvmm.kvm.eventfd import EventFd
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.system import Kvm
from pyvmm.machine import Machine
from pyvmm.memory.backends import BACKENDS
from pyvmm.native import ffi, lib

PORT_IN_C = 0x600  # the doorbell's GPA: C keeps the value
RESULT_IN_C = 0x60C
PORT_IN_PYTHON = 0x700
PORT_IN_KERNEL = 0x710
NOTHING_GPA = 0x80000
COALESCED_GPA = 0x90000
UNKNOWN_MSR = 0x4321
VECTOR = 0x20
# How often the guest does what KVM answers itself before it exits; the ring has 170 entries.
INSIDE = 100


_DEADLINE_S = 3600

IN_C = Promise(ratio=1.02)
IN_PLACE = Promise(more_ns=500)
AS_OBJECT = Promise(more_ns=1200)
RECORDING = Promise(more_ns=60)


@cache
def guest(code: str) -> Image:
    return assemble(f".code16\n{code}\n")


def forever(instruction: str, before: str = "") -> str:
    return f"{before}\nagain: {instruction}\n jmp again"


def inside(instruction: str, before: str = "") -> str:
    """INSIDE times the instruction, then an exit to Python, for ever."""
    return f"""{before}
        again: movw ${INSIDE}, %si
        1: {instruction}
        decw %si
        jnz 1b
        outl %eax, $0xe0
        jmp again"""


def port(number: int) -> str:
    return f"movw ${number:#x}, %dx"


def segment(gpa: int) -> str:
    return f"movw ${gpa >> 4:#x}, %ax\n movw %ax, %es"


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


def check(result: int) -> None:
    if result < 0:
        raise KvmError("bare loop", -result)


def unexpected(stop: int) -> PyvmmError:
    return PyvmmError("bench", f"the loop came back with stop code {stop}")


# ---- the cases ----


def opened(stack: ExitStack, machine: Machine) -> Machine:
    """A machine that is closed with ``stack``, its ticks before it: a tick that comes while
    the next machine is made would interrupt that."""
    stack.enter_context(machine)
    for loop in machine.loops:
        stack.callback(loop.disarm)
    return machine


def _machine(stack: ExitStack, code: str, *, protocol_off: bool = False) -> Machine:
    machine = opened(stack, Machine(guest(code), backend="emulated"))
    if protocol_off:
        machine.loops[0].raw.protocol.unclaimed_to_python = True
    return machine


def _in_c(code: str, reason: int, kind: type[LoopExperiment] = LoopExperiment) -> Any:
    return lambda stack: kind(_machine(stack, code), reason)


def _in_python(code: str, reason: int, kind: type[LoopExperiment]) -> Any:
    return lambda stack: kind(_machine(stack, code, protocol_off=True), reason)


class _Latch:
    """A device that keeps what is written to it."""

    value = 0

    def read(self, address: int, size: int) -> int:
        return self.value

    def write(self, address: int, size: int, value: int) -> None:
        self.value = value


def _by_device(stack: ExitStack) -> LoopExperiment:
    machine = _machine(stack, forever("outl %eax, %dx", port(PORT_IN_PYTHON)))
    machine.bus.add_ports(range(PORT_IN_PYTHON, PORT_IN_PYTHON + 1), _Latch())
    return ByDevice(machine, lib.KVM_EXIT_IO)


def _inside(stack: ExitStack, code: str) -> LoopExperiment:
    machine = _machine(stack, code, protocol_off=True)
    return StopEach(machine, lib.KVM_EXIT_IO, INSIDE, lib.STOP_EXIT)


def _ioeventfd(stack: ExitStack) -> LoopExperiment:
    experiment = _inside(stack, inside("outl %eax, %dx", port(PORT_IN_KERNEL)))
    eventfd = stack.enter_context(EventFd())
    experiment.machine.vm.ioeventfd(eventfd, PORT_IN_KERNEL, 4, is_port=True)
    return experiment


def _coalesced(stack: ExitStack, is_port: bool) -> LoopExperiment:
    if is_port:
        code, address = inside("outl %eax, %dx", port(PORT_IN_KERNEL)), PORT_IN_KERNEL
        capability, name = lib.KVM_CAP_COALESCED_PIO, "KVM_CAP_COALESCED_PIO"
    else:
        code, address = inside("movl %eax, %es:0", segment(COALESCED_GPA)), COALESCED_GPA
        capability, name = lib.KVM_CAP_COALESCED_MMIO, "KVM_CAP_COALESCED_MMIO"
    machine = _machine(stack, code, protocol_off=True)
    if not machine.vm.has(capability):
        raise UnsupportedError("coalesced writes", f"this KVM has no {name}")
    machine.vm.register_coalesced_mmio(address, 4, is_port=is_port)
    return Coalesced(machine)


def _msr(stack: ExitStack, instruction: str, reason: int) -> LoopExperiment:
    machine = _machine(stack, forever(instruction, f"movl ${UNKNOWN_MSR:#x}, %ecx"))
    if not machine.vm.has(lib.KVM_CAP_X86_USER_SPACE_MSR):
        raise UnsupportedError(instruction, "this KVM has no KVM_CAP_X86_USER_SPACE_MSR")
    machine.vm.enable_cap(lib.KVM_CAP_X86_USER_SPACE_MSR, lib.KVM_MSR_EXIT_REASON_UNKNOWN)
    return MsrInPlace(machine, reason)


_HYPERCALL = """
        .include "pyvmm.inc"
        guest "hypercall"
        .set SHARE, 0
again:  movl $KVM_HC_MAP_GPA_RANGE, %eax
        movl $PRIVATE_VIEW, %ebx
        movl $1, %ecx
        movl $SHARE, %edx
        xorl %esi, %esi
        {instruction}
        jmp again
"""


def _hypercall(stack: ExitStack) -> LoopExperiment:
    for backend in (name for name, each in BACKENDS.items() if each.hypercall):
        with suppress(UnsupportedError):
            code = assemble(_HYPERCALL.format(instruction=hypercall_instruction()))
            machine = opened(stack, Machine(code, backend=backend))
            if machine.loops[0].raw.protocol.features & lib.FEATURE_HYPERCALL:
                return LoopExperiment(machine, lib.KVM_EXIT_HYPERCALL)
    raise UnsupportedError(
        "KVM_EXIT_HYPERCALL",
        "no backend of this KVM has it",
        "run it in a lab: pyvmm lab run -- pyvmm bench exits",
    )


def hypercall_instruction() -> str:
    """The one that this CPU has; KVM would patch the other into it at its first use."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            is_svm = any(line.startswith("flags") and " svm" in line for line in lines)
    except OSError:
        is_svm = False
    return "vmmcall" if is_svm else "vmcall"


def _by_guest(stack: ExitStack) -> LoopExperiment:
    code = f"""
        {port(RESULT_IN_C)}
        xorl %edi, %edi
        again: rdtsc
        subl %edi, %eax
        outl %eax, $0xe0
        rdtsc
        movl %eax, %edi
        .rept {INSIDE}
        inl %dx, %eax
        .endr
        jmp again
    """
    return ByGuest(_machine(stack, code))


def _interrupts(stack: ExitStack) -> LoopExperiment:
    code = f"""
        movw $handler, {4 * VECTOR:#x}
        {port(PORT_IN_C)}
        sti
        again: outl %eax, %dx
        jmp again
        handler: iret
    """
    return Interrupts(_machine(stack, code), lib.KVM_EXIT_IO)


def _kick(stack: ExitStack, code: str) -> Kick:
    """vCPU and kicker on the last and the first CPU: where they are is half of what it takes."""
    machine = _machine(stack, code)
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        stack.enter_context(ordinary())  # or the kicker would wait for the vCPU that it kicks
        return Kick(machine, -1)
    stack.enter_context(on_cpu(others[-1]))
    return Kick(machine, first)


def _one(name: str, title: str, set_up: Any, promise: Promise | None = None, **more: Any) -> Bench:
    return Bench((Case(name, title, promise),), set_up, **more)


def benches() -> list[Bench]:
    """All of ``bench exits``, in the order of its table."""
    io, mmio = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO
    out_c = forever("outl %eax, %dx", port(PORT_IN_C))
    in_c = forever("inl %dx, %eax", port(RESULT_IN_C))
    out_python = forever("outl %eax, %dx", port(PORT_IN_PYTHON))
    in_python = forever("inl %dx, %eax", port(PORT_IN_PYTHON))
    write = forever("movl %eax, %es:0", segment(NOTHING_GPA))
    read = forever("movl %es:0, %eax", segment(NOTHING_GPA))
    halt = partial(StopEach, reason=lib.KVM_EXIT_HLT, parts=1, stop=lib.STOP_HLT)
    kernel: dict[str, Any] = {"least": INSIDE}
    return [
        _one(
            "system_ioctl",
            "KVM_GET_API_VERSION from bare C, on both sides",
            lambda stack: SystemIoctl(stack.enter_context(Kvm())),
        ),
        _one(
            "immediate_exit",
            "KVM_RUN that does not enter the guest",
            lambda stack: Immediate(_machine(stack, out_c), 0),
        ),
        _one("port_out_c", "OUT, C answers", _in_c(out_c, io), IN_C),
        _one("port_in_c", "IN, C answers", _in_c(in_c, io), IN_C),
        _one(
            "port_in_guest_tsc",
            "IN, C answers, by the guest's own TSC: a mean of 100",
            _by_guest,
            least=INSIDE,
        ),
        _one("mmio_write_c", "MMIO write, C answers", _in_c(write, mmio), IN_C),
        _one("mmio_read_c", "MMIO read, C answers", _in_c(read, mmio), IN_C),
        _one(
            "port_out_recorded",
            "OUT, C answers, recording on; floor: the same with it off",
            _in_c(out_c, io, Recorded),
            RECORDING,
        ),
        _one(
            "port_out_in_place",
            "OUT, Python reads the fields in place",
            _in_python(out_python, io, InPlace),
            IN_PLACE,
        ),
        _one(
            "port_in_in_place",
            "IN, Python answers in place",
            _in_python(in_python, io, InPlace),
            IN_PLACE,
        ),
        _one(
            "port_out_object",
            "OUT, Python is given an exit object",
            _in_python(out_python, io, AsObject),
            AS_OBJECT,
        ),
        _one("port_out_device", "OUT, a device in Python behind the bus", _by_device),
        _one(
            "mmio_write_in_place",
            "MMIO write, Python reads the fields in place",
            _in_python(write, mmio, MmioInPlace),
            IN_PLACE,
        ),
        _one(
            "mmio_read_in_place",
            "MMIO read, Python answers in place",
            _in_python(read, mmio, MmioInPlace),
            IN_PLACE,
        ),
        _one(
            "rdmsr",
            "RDMSR, Python answers in place",
            lambda s: _msr(s, "rdmsr", lib.KVM_EXIT_X86_RDMSR),
        ),
        _one(
            "wrmsr",
            "WRMSR, Python answers in place",
            lambda s: _msr(s, "wrmsr", lib.KVM_EXIT_X86_WRMSR),
        ),
        _one("hlt", "HLT, the loop stops", lambda s: halt(_machine(s, forever("hlt")))),
        _one("hypercall", "KVM_HC_MAP_GPA_RANGE that changes nothing, C answers", _hypercall),
        _one("interrupt", "KVM_INTERRUPT, its handler and an exit", _interrupts),
        _one("guest_loop", "in the guest: DEC and JNZ", lambda s: _inside(s, inside("")), **kernel),
        _one(
            "cpuid",
            "in KVM: CPUID, with the guest's loop",
            lambda s: _inside(s, inside("xorl %eax, %eax\n cpuid")),
            **kernel,
        ),
        _one("port_out_ioeventfd", "in KVM: OUT to an ioeventfd", _ioeventfd, **kernel),
        _one(
            "port_out_coalesced",
            "in KVM: OUT into the ring, which Python empties",
            lambda s: _coalesced(s, True),
            **kernel,
        ),
        _one(
            "mmio_write_coalesced",
            "in KVM: MMIO write into the ring, which Python empties",
            lambda s: _coalesced(s, False),
            **kernel,
        ),
        _one(
            "kick",
            "a kick to the loop's return, a guest that exits all the time",
            lambda s: _kick(s, out_c),
            pinned=False,
            least=8,
            most=32,
        ),
        _one(
            "kick_spinning",
            "a kick to the loop's return, a guest that never exits",
            lambda s: _kick(s, "1: jmp 1b"),
            pinned=False,
            least=8,
            most=32,
        ),
    ]
