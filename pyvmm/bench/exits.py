"""``bench exits``: what one exit costs, by who answers it.

Each guest is a loop of one instruction that exits, in real mode unless its name says long. What
KVM answers itself (cpuid, ioeventfd, coalesced writes) is done many times for one exit, and the
time is for one of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial

from pyvmm.bench.case import Bench, Case, Experiment, Promise
from pyvmm.bench.experiments import (
    AsObject,
    ByDevice,
    ByGuest,
    Coalesced,
    Immediate,
    InPlace,
    Interrupts,
    Kick,
    LoopExperiment,
    MmioInPlace,
    MsrInPlace,
    Recorded,
    StopEach,
    SystemIoctl,
)
from pyvmm.bench.guests import (
    COALESCED_GPA,
    INSIDE,
    NOTHING_GPA,
    PORT_IN_C,
    PORT_IN_KERNEL,
    PORT_IN_PYTHON,
    RESULT_IN_C,
    UNKNOWN_MSR,
    VECTOR,
    forever,
    guest,
    inside,
    long_guest,
    long_port,
    opened,
    port,
    segment,
)
from pyvmm.bench.priority import on_cpu, ordinary
from pyvmm.errors import UnsupportedError
from pyvmm.guest.assembler import assemble
from pyvmm.kvm.eventfd import EventFd
from pyvmm.kvm.system import Kvm
from pyvmm.machine import Machine
from pyvmm.memory.backends import BACKENDS
from pyvmm.native import lib

IN_C = Promise(ratio=1.02)
IN_PLACE = Promise(more_ns=500)
AS_OBJECT = Promise(more_ns=1200)
RECORDING = Promise(more_ns=60)

SetUp = Callable[[ExitStack], Experiment]


def _machine(stack: ExitStack, code: str, *, protocol_off: bool = False) -> Machine:
    machine = opened(stack, Machine(guest(code), backend="emulated"))
    if protocol_off:
        machine.loops[0].raw.protocol.unclaimed_to_python = True
    return machine


def _by_c(code: str, reason: int, kind: type[LoopExperiment] = LoopExperiment) -> SetUp:
    return lambda stack: kind(_machine(stack, code), reason)


def _in_long_mode(code: str, reason: int) -> SetUp:
    def set_up(stack: ExitStack) -> Experiment:
        machine = opened(stack, Machine(long_guest(code), backend="emulated"))
        return LoopExperiment(machine, reason)

    return set_up


def _by_python(code: str, reason: int, kind: type[LoopExperiment]) -> SetUp:
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


# ---- the table ----

_OUT = forever("outl %eax, %dx", port(PORT_IN_C))
_IN = forever("inl %dx, %eax", port(RESULT_IN_C))
_OUT_TO_PYTHON = forever("outl %eax, %dx", port(PORT_IN_PYTHON))
_IN_FROM_PYTHON = forever("inl %dx, %eax", port(PORT_IN_PYTHON))
_STORE = forever("movl %eax, %es:0", segment(NOTHING_GPA))
_LOAD = forever("movl %es:0, %eax", segment(NOTHING_GPA))
_LONG_OUT = forever("outl %eax, %dx", long_port(PORT_IN_C))
_LONG_IN = forever("inl %dx, %eax", long_port(RESULT_IN_C))
_LONG_STORE = forever(f"movq %rax, {NOTHING_GPA:#x}")
_LONG_LOAD = forever(f"movq {NOTHING_GPA:#x}, %rax")


def benches() -> list[Bench]:
    """All of ``bench exits``, in the order of its table."""
    return [*_floors(), *_in_c(), *_of_long_mode(), *_in_python(), *_stops(), *_in_kvm(), *_kicks()]


def _one(
    name: str,
    title: str,
    set_up: SetUp,
    promise: Promise | None = None,
    *,
    least: int = 1,
) -> Bench:
    return Bench((Case(name, title, promise),), set_up, least=least)


def _floors() -> Iterator[Bench]:
    yield _one(
        "system_ioctl",
        "KVM_GET_API_VERSION from bare C, on both sides",
        lambda stack: SystemIoctl(stack.enter_context(Kvm())),
    )
    yield _one(
        "immediate_exit",
        "KVM_RUN that does not enter the guest",
        lambda stack: Immediate(_machine(stack, _OUT), 0),
    )


def _in_c() -> Iterator[Bench]:
    io, mmio = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO
    yield _one("port_out_c", "OUT, C answers", _by_c(_OUT, io), IN_C)
    yield _one("port_in_c", "IN, C answers", _by_c(_IN, io), IN_C)
    yield _one(
        "port_in_guest_tsc",
        "IN, C answers, by the guest's own TSC: a mean of 100",
        _by_guest,
        least=INSIDE,
    )
    yield _one("mmio_write_c", "MMIO write, C answers", _by_c(_STORE, mmio), IN_C)
    yield _one("mmio_read_c", "MMIO read, C answers", _by_c(_LOAD, mmio), IN_C)
    yield _one(
        "port_out_recorded",
        "OUT, C answers, recording on; floor: the same with it off",
        _by_c(_OUT, io, Recorded),
        RECORDING,
    )


def _of_long_mode() -> Iterator[Bench]:
    """The same in 64-bit mode: the floor is the same loop in bare C on the same vCPU."""
    io, mmio = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO
    for name, title, code, reason in (
        ("port_out_long", "OUT", _LONG_OUT, io),
        ("port_in_long", "IN", _LONG_IN, io),
        ("mmio_write_long", "MMIO write of 64 bits", _LONG_STORE, mmio),
        ("mmio_read_long", "MMIO read of 64 bits", _LONG_LOAD, mmio),
    ):
        set_up = _in_long_mode(code, reason)
        yield _one(name, f"{title} in long mode, C answers", set_up, IN_C)


def _in_python() -> Iterator[Bench]:
    io, mmio = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO
    for name, title, code in (
        ("port_out_in_place", "OUT, Python reads the fields in place", _OUT_TO_PYTHON),
        ("port_in_in_place", "IN, Python answers in place", _IN_FROM_PYTHON),
    ):
        yield _one(name, title, _by_python(code, io, InPlace), IN_PLACE)
    yield _one(
        "port_out_object",
        "OUT, Python is given an exit object",
        _by_python(_OUT_TO_PYTHON, io, AsObject),
        AS_OBJECT,
    )
    yield _one("port_out_device", "OUT, a device in Python behind the bus", _by_device)
    for name, title, code in (
        ("mmio_write_in_place", "MMIO write, Python reads the fields in place", _STORE),
        ("mmio_read_in_place", "MMIO read, Python answers in place", _LOAD),
    ):
        yield _one(name, title, _by_python(code, mmio, MmioInPlace), IN_PLACE)
    for name, reason in (("rdmsr", lib.KVM_EXIT_X86_RDMSR), ("wrmsr", lib.KVM_EXIT_X86_WRMSR)):
        set_up = partial(_msr, instruction=name, reason=reason)
        yield _one(name, f"{name.upper()}, Python answers in place", set_up)


def _stops() -> Iterator[Bench]:
    yield _one(
        "hlt",
        "HLT, the loop stops",
        lambda stack: StopEach(_machine(stack, forever("hlt")), lib.KVM_EXIT_HLT, 1, lib.STOP_HLT),
    )
    yield _one("hypercall", "KVM_HC_MAP_GPA_RANGE that changes nothing, C answers", _hypercall)
    yield _one("interrupt", "KVM_INTERRUPT, its handler and an exit", _interrupts)


def _in_kvm() -> Iterator[Bench]:
    cpuid = "xorl %eax, %eax\n cpuid"
    for name, title, set_up in (
        ("guest_loop", "in the guest: DEC and JNZ", partial(_inside, code=inside(""))),
        ("cpuid", "in KVM: CPUID, with the guest's loop", partial(_inside, code=inside(cpuid))),
        ("port_out_ioeventfd", "in KVM: OUT to an ioeventfd", _ioeventfd),
        (
            "port_out_coalesced",
            "in KVM: OUT into the ring, which Python empties",
            partial(_coalesced, is_port=True),
        ),
        (
            "mmio_write_coalesced",
            "in KVM: MMIO write into the ring, which Python empties",
            partial(_coalesced, is_port=False),
        ),
    ):
        yield _one(name, title, set_up, least=INSIDE)


def _kicks() -> Iterator[Bench]:
    for name, guest_does, code in (
        ("kick", "exits all the time", _OUT),
        ("kick_spinning", "never exits", "1: jmp 1b"),
    ):
        yield Bench(
            (Case(name, f"a kick to the loop's return, a guest that {guest_does}"),),
            partial(_kick, code=code),
            pinned=False,
            least=8,
            most=32,
        )
