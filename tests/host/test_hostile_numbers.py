"""Every public call with a number that cannot be: a PyvmmError, and never another exception.

All methods of the public classes are walked over, each number of each in its turn. What a
kernel happens to accept is right too; that the error is a sensible one others test.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from snippets import passing

from pyvmm import Machine
from pyvmm.errors import ConfigurationError, PyvmmError, WrongTypeError
from pyvmm.kvm import Kvm
from pyvmm.kvm.coalesced import CoalescedRing
from pyvmm.kvm.cpuid import CpuidEntry, cpuid_table
from pyvmm.kvm.dirty_log import DirtyBitmap
from pyvmm.kvm.dirty_ring import DirtyRing
from pyvmm.kvm.eventfd import EventFd
from pyvmm.kvm.fd import Fd, KvmFd
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.ioctls import Ioctl, io, ior, iow, iowr
from pyvmm.kvm.irq_routing import IrqchipRoute, MsiRoute
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.memfd import Memfd
from pyvmm.kvm.msrs import MsrFilterRange
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import lib

pytestmark = pytest.mark.usefixtures("no_leak")

TOO_MUCH = (1 << 31, 1 << 32, (1 << 32) + 1)  # that many bytes could be had, and cost a lot
NUMBERS = (
    -1,
    -(1 << 31),
    -(1 << 63),
    -(1 << 64),
    0,
    255,
    256,
    1 << 16,
    *TOO_MUCH,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    1 << 64,
    10**5000,
)
NO_NUMBERS = (1.5, math.nan, math.inf, -math.inf, "1", b"1", None)
HOSTILE: tuple[Any, ...] = NUMBERS + NO_NUMBERS
TAKES_MEMORY = ("allocate", "clear_dirty_log", "add_ram", "add_region", "convert")
# Not called: they need more than a number, end the object, or run a guest.
LEFT_OUT = {"run", "close", "ioctl", "before_close", "exits", "exit", "answer", "log_exits", "kick"}
# What may be None, so that it is no wrong number there.
MAY_BE_NONE = {"value", "realtime_ns", "shared_gpa", "blocked", "resample", "size", "views"}


class Parts:
    """One object of each class."""

    def __init__(self, stack: ExitStack) -> None:
        self.machine = stack.enter_context(Machine(passing()))
        self.kvm = stack.enter_context(Kvm())
        self.vm = stack.enter_context(self.kvm.create_vm())
        self.vcpu = stack.enter_context(self.vm.create_vcpu(0))
        self.loop = self.machine.loops[0]
        self.memfd = stack.enter_context(Memfd("numbers", 0x4000))
        self.event = stack.enter_context(EventFd())
        self.mapping = Mapping(0x4000)
        stack.callback(self.mapping.close)

    def owners(self) -> list[Any]:
        return [
            self.kvm,
            self.vm,
            self.vcpu,
            self.loop,
            self.memfd,
            self.event,
            self.machine.memory,
            self.machine.memory.regions[0],
        ]

    def right(self, name: str) -> Any:
        """A value that a parameter of this name may have."""
        return {
            "address": self.mapping.address,
            "attributes": 0,
            "capability": lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            "data": b"x",
            "eventfd": self.event,
            "gpa": 0x7000_0000,
            "protection": 3,
            "size": 0x1000,
            "slot": 9,
            "state": 0,
            "bitmap": DirtyBitmap(0, 64, bytes(8)),
            "debug_registers": (),
            "indices": (),
            "values": {},
            "routes": (),
            "ranges": (),
            "blocked": (),
        }.get(name, 0)


@pytest.fixture(scope="module")
def parts() -> Iterator[Parts]:
    with ExitStack() as stack:
        yield Parts(stack)


CLASSES = (Kvm, Vm, Vcpu, VcpuLoop, Memfd, EventFd, GuestMemory)
METHODS = [
    (kind, name)
    for kind in CLASSES
    for name, method in inspect.getmembers(kind, inspect.isfunction)
    if not name.startswith("_") and name not in LEFT_OUT
]


def is_number(parameter: inspect.Parameter) -> bool:
    return "int" in str(parameter.annotation).replace("Mapping[int, int]", "").replace(
        "Iterable[int]", ""
    ).replace("Sequence[int]", "") or str(parameter.annotation) in ("float", "PageState")


def shown(value: object) -> str:
    return f"{value:#x}"[:20] if isinstance(value, int) else repr(value)


def attempt(call: Callable[[], Any], what: str, value: object) -> None:
    try:
        made = call()
    except PyvmmError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 400, text
        return
    except Exception as error:
        pytest.fail(f"{what} with {shown(value)}: {type(error).__name__}: {error}")
    if hasattr(made, "close"):
        made.close()
    wrong = isinstance(value, float | str | bytes) or (value is None and what not in MAY_BE_NONE)
    assert not wrong, f"{what}: {shown(value)} was taken for a number"


@pytest.mark.parametrize(
    ("kind", "name"), METHODS, ids=lambda each: getattr(each, "__name__", each)
)
def test_methods(parts: Parts, kind: type, name: str) -> None:
    owner = next(each for each in parts.owners() if isinstance(each, kind))
    method = getattr(owner, name)
    parameters = inspect.signature(method).parameters.values()
    for parameter in parameters:
        if not is_number(parameter):
            continue
        for value in HOSTILE:
            if name in TAKES_MEMORY and value in TOO_MUCH:
                continue
            given = {
                each.name: parts.right(each.name)
                for each in parameters
                if each.default is each.empty and each.kind is not each.VAR_POSITIONAL
            }
            if parameter.kind is parameter.VAR_POSITIONAL:
                attempt(lambda: method(*given.values(), value), parameter.name, value)  # noqa: B023
                continue
            given[parameter.name] = value
            attempt(lambda: method(**given), parameter.name, value)  # noqa: B023


def entry(value: Any) -> CpuidEntry:
    return CpuidEntry(0, 0, 0, value, 0, 0, 0)


# Numbers in what is given: in lists, structures and constructors.
INSIDE: dict[str, Callable[[Parts, Any], Any]] = {
    "answer": lambda parts, value: parts.machine.answer(value),
    "answer of": lambda parts, value: parts.machine.answer(0, value),
    "xsave": lambda parts, value: parts.vcpu.set_xsave(value),
    "nested": lambda parts, value: parts.vcpu.set_nested_state(value),
    "get_msrs": lambda parts, value: parts.vcpu.get_msrs([0x174, value]),
    "get_msrs of KVM": lambda parts, value: parts.kvm.get_msrs([value]),
    "set_msrs": lambda parts, value: parts.vcpu.set_msrs({value: 0}),
    "set_msrs to": lambda parts, value: parts.vcpu.set_msrs({0x174: value}),
    "set_xcrs": lambda parts, value: parts.vcpu.set_xcrs({value: 1}),
    "set_xcrs to": lambda parts, value: parts.vcpu.set_xcrs({0: value}),
    "signals": lambda parts, value: parts.vcpu.set_signal_mask([value]),
    "debug": lambda parts, value: parts.vcpu.set_guest_debug(0, [value]),
    "cpuid": lambda parts, value: cpuid_table([entry(value)]),
    "routes": lambda parts, value: parts.vm.set_gsi_routing([IrqchipRoute(value, 0, 0)]),
    "pins": lambda parts, value: parts.vm.set_gsi_routing([IrqchipRoute(1, 0, value)]),
    "messages": lambda parts, value: parts.vm.set_gsi_routing([MsiRoute(1, value, 0)]),
    "data": lambda parts, value: parts.vm.set_gsi_routing([MsiRoute(1, 0, value)]),
    "filter": lambda parts, value: parts.vm.x86_set_msr_filter([MsrFilterRange(value, 1, b"x")]),
    "filter's": lambda parts, value: parts.vm.x86_set_msr_filter([MsrFilterRange(1, value, b"x")]),
    "filter for": lambda parts, value: parts.vm.x86_set_msr_filter(
        [MsrFilterRange(1, 1, b"x", value)]
    ),
    "bitmap": lambda parts, value: parts.vm.clear_dirty_log(0, DirtyBitmap(value, 64, b"")),
    "Memfd": lambda parts, value: Memfd("x", value),
    "huge": lambda parts, value: Memfd("x", 0, huge_page_size=value),
    "Mapping": lambda parts, value: Mapping(value),
    "Mapping's": lambda parts, value: Mapping(0x1000, fd=value),
    "Mapping at": lambda parts, value: Mapping(0x1000, fd=parts.memfd.fileno(), offset=value),
    "protection": lambda parts, value: Mapping(0x1000, protection=value),
    "EventFd": lambda parts, value: EventFd(value),
    "DirtyRing": lambda parts, value: DirtyRing(parts.vcpu, value),
    "CoalescedRing": lambda parts, value: CoalescedRing(value),
    "VcpuLoop": lambda parts, value: VcpuLoop(value),
    "its memory": lambda parts, value: VcpuLoop(parts.vcpu, 7 if value is None else value),
    "its protocol": lambda parts, value: VcpuLoop(parts.vcpu, None, 7 if value is None else value),
    "log": lambda parts, value: VcpuLoop(parts.vcpu, log_capacity=value),
    "sync": lambda parts, value: VcpuLoop(parts.vcpu, sync_registers=value),
    "request": lambda parts, value: parts.vm.ioctl(value),
    "io": lambda parts, value: io("X", value),
    "ior": lambda parts, value: ior("X", value, "char"),
    "iow": lambda parts, value: iow("X", value, "char"),
    "iowr": lambda parts, value: iowr("X", value, "char"),
    "Ioctl": lambda parts, value: parts.vm.ioctl(Ioctl("X", value), 0),
    "its integer": lambda parts, value: parts.vm.ioctl("KVM_CHECK_EXTENSION", value),
    "its pointer": lambda parts, value: parts.vcpu.ioctl("KVM_SET_REGS", value),
    "vcpus": lambda parts, value: Machine(passing(), vcpus=value),
    "views": lambda parts, value: Machine(passing(), views=value),
    "log_capacity": lambda parts, value: Machine(passing(), log_capacity=value),
    "policy": lambda parts, value: Machine(passing(), policy=value),
    "resample": lambda parts, value: parts.vm.irqfd(parts.event, 1, resample=value),
    "eventfd": lambda parts, value: parts.vm.irqfd(value, 1),
}
# None and bytes are no mistakes there.
NOT_NUMBERS = {"resample": (None,), "its pointer": (), "xsave": (), "nested": ()}


@pytest.mark.parametrize("where", INSIDE)
def test_inside(parts: Parts, where: str) -> None:
    for value in HOSTILE:
        if value in NOT_NUMBERS.get(where, ()):
            continue
        attempt(lambda: INSIDE[where](parts, value), where, value)  # noqa: B023


@pytest.mark.parametrize("value", HOSTILE, ids=shown)
def test_deadlines(value: Any) -> None:
    for name in ("run", "exits"):
        with Machine(passing()) as machine:
            attempt(lambda: finish(getattr(machine, name)(value)), "deadline", use(value))  # noqa: B023


def use(value: Any) -> Any:
    """A float is a number of seconds."""
    return 0 if isinstance(value, float) and math.isfinite(value) else value


def finish(made: Any) -> None:
    if inspect.isgenerator(made):
        list(made)


def test_a_descriptor_is_no_other_number() -> None:
    for value in (-2, 1 << 31, 10**5000, *NO_NUMBERS):
        for kind in (Fd, KvmFd):
            with pytest.raises(PyvmmError, match="descriptor"):
                kind(value, "x")  # type: ignore[arg-type]
        with pytest.raises(PyvmmError, match="descriptor"):
            GuestMemfd(value, 1)  # type: ignore[arg-type]


def test_what_is_no_number_is_a_type_error_too() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        for value in NO_NUMBERS:
            with pytest.raises(WrongTypeError, match=r"wants an integer, was given .*\(") as caught:
                vm.set_user_memory_region(value, 0, 0, 0)  # type: ignore[arg-type]
            assert isinstance(caught.value, TypeError)
            assert "slot" in str(caught.value)


@pytest.mark.parametrize(("gpa", "size"), [(0x3000_0000, -1), (0x3000_0000, 0), (-0x1000, 0x1000)])
def test_no_address_is_kept_free(gpa: int, size: int) -> None:
    with Machine(passing()) as machine:
        with pytest.raises(ConfigurationError, match="there is no address in it"):
            machine.memory.keep_free("nothing", gpa, size)
        machine.memory.add_ram(0x3000_0000, 0x1000)


@pytest.mark.parametrize("wrong", [5, "tick", object()], ids=["number", "word", "object"])
def test_a_tick_is_a_function(wrong: Any) -> None:
    with Machine(passing()) as machine:
        with pytest.raises(WrongTypeError, match="on_tick: wants a function, was given"):
            machine.on_tick = wrong
        machine.on_tick = None
        assert machine.run(20).passed
