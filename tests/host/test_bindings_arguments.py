"""What is given to an ioctl: another structure, too short, null. It is named, and nothing changes.

The kernel would take any address. So every row looks at what KVM holds before and after, and
at bytes around what was given.
"""

from __future__ import annotations

import array
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from pyvmm.errors import ConfigurationError, KvmError, PyvmmError, WrongTypeError
from pyvmm.kvm import Kvm
from pyvmm.kvm.cpuid import cpuid_entries, cpuid_table
from pyvmm.kvm.fd import KvmFd
from pyvmm.kvm.ioctls import IOCTLS, MAY_BE_NULL, SIZED_BY_THE_HOST, TAILS, Ioctl, iow, is_written
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm
from pyvmm.loop.vcpu_loop import VcpuLoop, create_protocol
from pyvmm.memory.backends import BACKENDS
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism, Policy

pytestmark = pytest.mark.usefixtures("no_leak")

POINTERS = {name: entry.type for name, entry in IOCTLS.items() if entry.type is not None}
INTEGERS = sorted(IOCTLS.keys() - POINTERS.keys())
# Methods that hand on what they are given, and their ioctls.
SETTERS = {
    "set_regs": "KVM_SET_REGS",
    "set_sregs": "KVM_SET_SREGS",
    "set_sregs2": "KVM_SET_SREGS2",
    "set_fpu": "KVM_SET_FPU",
    "set_debugregs": "KVM_SET_DEBUGREGS",
    "set_vcpu_events": "KVM_SET_VCPU_EVENTS",
    "set_lapic": "KVM_SET_LAPIC",
    "set_cpuid2": "KVM_SET_CPUID2",
    "set_xsave": "KVM_SET_XSAVE",
    "set_nested_state": "KVM_SET_NESTED_STATE",
    "set_irqchip": "KVM_SET_IRQCHIP",
    "set_pit2": "KVM_SET_PIT2",
}


class Bare:
    """A VM with one vCPU that does not run."""

    def __init__(self, stack: ExitStack) -> None:
        self.kvm = stack.enter_context(Kvm())
        self.vm = stack.enter_context(self.kvm.create_vm())
        self.vcpu = stack.enter_context(self.vm.create_vcpu(0))
        self.vcpu.set_cpuid2(self.kvm.get_supported_cpuid())

    def state(self) -> tuple[bytes, ...]:
        vcpu = self.vcpu
        return (
            bytes(ffi.buffer(vcpu.get_regs())),
            bytes(ffi.buffer(vcpu.get_sregs())),
            bytes(ffi.buffer(vcpu.get_debugregs())),
            bytes(ffi.buffer(vcpu.get_vcpu_events())),
            vcpu.get_xsave(),
            bytes(ffi.buffer(vcpu.get_fpu())),
        )


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    with ExitStack() as stack:
        yield Bare(stack)


def pointer_to(type: str) -> str:
    return ffi.getctype(type, "*")


def another(type: str) -> str:
    return "struct kvm_sregs" if type != "struct kvm_sregs" else "struct kvm_regs"


def wrong(name: str, type: str) -> Iterator[tuple[str, Any, str]]:
    """What must be refused for this ioctl: a word about it, the thing, and how it is named."""
    size = ffi.sizeof(type)
    other = another(type)
    yield "another structure", ffi.new(f"{other} *"), f"{other} *"
    yield "an array of another", ffi.new(f"{other}[1]"), f"{other}[1]"
    if type.startswith("struct"):
        yield "a structure by value", ffi.new(pointer_to(type))[0], type
    yield "an empty array", ffi.new("char[0]"), "char[0]"
    yield "a void *", ffi.cast("void *", ffi.new("char[4096]")), "void *"
    yield "a char *", ffi.cast("char *", ffi.new("char[4096]")), "char *"
    yield "floats", ffi.new("double[512]"), "double[512]"
    yield "a short array of bytes", ffi.new(f"char[{size - 1}]"), f"char[{size - 1}]"
    yield "short bytes", bytearray(size - 1), "bytearray"
    yield "a short array", array.array("B", bytes(size - 1)), "array"
    yield "an address", 0x1000, "int 0x1000"
    yield "a float", 1.5, "float"
    yield "a str", "x" * 4096, "str"
    yield "an object", object(), "object"
    if name not in MAY_BE_NULL:
        yield "null", ffi.cast(pointer_to(type), 0), f"a null {pointer_to(type)}"
        yield "any null", ffi.NULL, "a null void *"
        yield "zero", 0, "int 0x0"
    yield "None", None, "NoneType"
    if is_written(IOCTLS[name]):
        yield "what is read-only", bytes(1 << 16), "bytes, which is read-only"
        yield "a view that is", memoryview(bytes(1 << 16)), "memoryview, which is read-only"


def check(call: Callable[[], object], ioctl: str, wanted: str, given: str) -> None:
    with pytest.raises((WrongTypeError, ConfigurationError)) as caught:
        call()
    text = str(caught.value)
    for part in (f"{ioctl}: wants {wanted}", given):
        assert part in text, text
    assert isinstance(caught.value, TypeError | ValueError)


def wanted_by(name: str) -> str:
    if name == "KVM_MEMORY_ENCRYPT_OP":  # its number has the size of a long
        return "struct kvm_sev_cmd *"
    return pointer_to(POINTERS[name])


@pytest.mark.parametrize("name", POINTERS)
def test_raw(bare: Bare, name: str) -> None:
    before = bare.state()
    for fd in (bare.kvm, bare.vm, bare.vcpu):
        for what, thing, given in wrong(name, wanted_by(name)[:-2]):
            kept = bytes(ffi.buffer(thing)) if is_owner(thing) else None
            check(partial(fd.ioctl, name, thing), name, wanted_by(name), given)
            assert kept is None or bytes(ffi.buffer(thing)) == kept, what
    assert bare.state() == before


def is_owner(thing: Any) -> bool:
    return (
        isinstance(thing, ffi.CData)
        and ffi.typeof(thing).kind != "struct"
        and " owning " in repr(thing)
    )


@pytest.mark.parametrize("name", INTEGERS)
def test_raw_integers(bare: Bare, name: str) -> None:
    before = bare.state()
    for fd in (bare.kvm, bare.vm, bare.vcpu):
        for thing, given in (
            (ffi.new("struct kvm_regs *"), "struct kvm_regs *"),
            (ffi.NULL, "void *"),
            (None, "NoneType"),
            (1.0, "float"),
            ("1", "str"),
            (b"1", "bytes"),
        ):
            with pytest.raises(WrongTypeError, match=f"{name}: wants an integer") as caught:
                fd.ioctl(name, thing)
            assert given in str(caught.value)
        for number in (-1, 1 << 64, 10**5000):
            with pytest.raises(ConfigurationError, match=name):
                fd.ioctl(name, number)
    assert bare.state() == before


@pytest.mark.parametrize("method", SETTERS)
def test_methods(bare: Bare, method: str) -> None:
    name = SETTERS[method]
    owner: Any = bare.vm if hasattr(Vm, method) else bare.vcpu
    before = bare.state()
    for what, thing, given in wrong(name, POINTERS[name]):
        if isinstance(thing, bytes) or "read-only" in given:
            continue
        check(partial(getattr(owner, method), thing), name, wanted_by(name), given)
        del what
    assert bare.state() == before


def test_every_method_that_hands_on_a_structure_is_in_the_table() -> None:
    found = {
        name
        for kind in (Kvm, Vm, Vcpu)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if name.startswith("set_") and "Any" in str(inspect.signature(method).parameters.values())
    }
    assert found <= SETTERS.keys()


def test_right_ones_are_taken(bare: Bare) -> None:
    vcpu = bare.vcpu
    regs = vcpu.get_regs()
    regs.rbx = 0x1234
    size = ffi.sizeof("struct kvm_regs")
    one = ffi.new("struct kvm_regs[2]", [regs[0], {}])
    raw = ffi.new(f"unsigned char[{size}]", bytes(ffi.buffer(regs)))
    for each in (
        regs,
        ffi.addressof(regs[0]),
        ffi.cast("struct kvm_regs *", raw),
        one,
        raw,
        bytes(ffi.buffer(regs)),
        memoryview(bytes(ffi.buffer(regs))),
    ):
        vcpu.set_regs(ffi.new("struct kvm_regs *", {"rflags": 2}))
        vcpu.ioctl("KVM_SET_REGS", each)
        assert vcpu.get_regs().rbx == 0x1234
    for buffer in (bytearray(size), array.array("Q", bytes(size)), memoryview(bytearray(size + 8))):
        vcpu.ioctl("KVM_GET_REGS", buffer)
        assert bytes(memoryview(buffer).cast("B")[8:10]) == b"\x34\x12"
    for integer in ("uint64_t", "unsigned long", "__u64", "int64_t"):
        bare.kvm.check_extension(0)
        with pytest.raises(KvmError):  # the vCPU is there already
            bare.vm.ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new(f"{integer} *", 0xFFFBC000))
    with pytest.raises(WrongTypeError, match=r"wants uint64_t \*, was given double \*"):
        bare.vm.ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("double *"))
    vcpu.ioctl("KVM_SET_SIGNAL_MASK", ffi.NULL)


def test_more_is_said_than_there_is(bare: Bare) -> None:
    """A count beyond the array that follows: the kernel would read or write what is behind it."""
    for type, (length, member) in TAILS.items():
        for name, pointed in POINTERS.items():
            if pointed != type:
                continue
            array = dict(ffi.typeof(type).fields).get(member)
            fixed = ffi.sizeof(type) if array is None else array.offset
            item = 1 if array is None else ffi.sizeof(array.type.item)
            room = {member: 3} if array is not None and member else {}
            request = ffi.new(f"{type} *", room)
            count = (fixed if array is None else 3) + 1
            setattr(request, length, count)
            kept = bytes(ffi.buffer(request))
            for thing in (request, bytearray(kept)):
                with pytest.raises(ConfigurationError) as caught:
                    bare.vcpu.ioctl(name, thing)
                assert f"wants {type} *" in str(caught.value)
                assert f"{length} = {count}" in str(caught.value)
                assert f"{len(kept)} bytes" in str(caught.value)
            assert bytes(ffi.buffer(request)) == kept
            assert item
    table = bare.kvm.get_supported_cpuid()
    shorter = ffi.new("struct kvm_cpuid2 *", {"nent": 2, "entries": 1})
    with pytest.raises(ConfigurationError, match="nent = 2"):
        list(cpuid_entries(shorter))
    with pytest.raises(WrongTypeError, match="struct kvm_regs"):
        cpuid_entries(ffi.new("struct kvm_regs *"))
    assert len(list(cpuid_entries(table))) == table.nent


def test_an_xsave_area_is_as_large_as_this_host_has_it(bare: Bare) -> None:
    for name in SIZED_BY_THE_HOST:
        assert bare.vcpu._least(name) >= ffi.sizeof("struct kvm_xsave")
    with ExitStack() as stack:
        wide = stack.enter_context(bare.vm.create_vcpu(1))
        # As on a host with AMX, whose kernel writes more than a struct kvm_xsave.
        wide._xsave_size = 11_008
        for name in SIZED_BY_THE_HOST:
            for short in (ffi.new("struct kvm_xsave *"), ffi.new("char[11007]"), bytearray(11_007)):
                with pytest.raises(ConfigurationError, match=r"struct kvm_xsave \* \(11008 bytes"):
                    wide.ioctl(name, short)
        with pytest.raises(ConfigurationError, match=r"\(4096 to \d+ bytes\), was given bytes"):
            wide.set_xsave(b"short")
        with pytest.raises(ConfigurationError, match=r"was given bytes"):
            wide.set_xsave(bytes(1 << 20))


@pytest.mark.parametrize("name", POINTERS)
def test_the_type_is_as_large_as_its_number_says(name: str) -> None:
    entry = IOCTLS[name]
    size = entry.number >> 16 & 0x3FFF
    assert size in (0, ffi.sizeof(str(entry.type)))
    assert (size == 0) == (name == "KVM_REINJECT_CONTROL")


def test_one_of_ones_own(bare: Bare) -> None:
    mine = iow("KVM_MINE", 0xD9, "uint64_t[4]")
    for given in (ffi.new("uint64_t[3]"), ffi.new("uint64_t *"), ffi.new("uint32_t[8]"), bytes(31)):
        with pytest.raises(PyvmmError, match=r"KVM_MINE: wants uint64_t\(\*\)\[4\]|uint64_t\[4\]"):
            bare.vm.ioctl(mine, given)
    for right in (ffi.new("uint64_t[4]"), ffi.new("uint64_t[5]"), bytes(32)):
        with pytest.raises(KvmError, match="ENOTTY"):
            bare.vm.ioctl(mine, right)
    # Without a type anything that is an integer goes: also an address that the kernel refuses.
    with pytest.raises(KvmError, match="EFAULT"):
        bare.vm.ioctl(IOCTLS["KVM_SET_USER_MEMORY_REGION"]._replace(type=None), 8)
    for senseless in (Ioctl("X", -1), Ioctl("X", 1 << 64), Ioctl("X", 1, "struct nothing")):
        with pytest.raises(PyvmmError, match="X"):
            bare.vm.ioctl(senseless, 0)
    for number, kind in ((256, "char"), (1, "char[16384]")):
        with pytest.raises(ConfigurationError, match="X"):
            iow("X", number, kind)
    for request in (None, 5, "KVM_NOTHING", b"KVM_RUN", ("KVM_RUN", 0xAE80, None)):
        with pytest.raises(ConfigurationError, match="not in the ioctl table"):
            bare.vm.ioctl(request)  # type: ignore[arg-type]


def test_registers_given_to_the_wrong_method(bare: Bare) -> None:
    sregs = bare.vcpu.get_sregs()
    with pytest.raises(
        WrongTypeError, match=r"KVM_SET_REGS: wants struct kvm_regs \*, was given struct kvm_sregs"
    ):
        bare.vcpu.set_regs(sregs)
    with pytest.raises(
        WrongTypeError, match=r"wants struct kvm_sregs \*, was given struct kvm_reg"
    ):
        bare.vcpu.ioctl("KVM_GET_SREGS", ffi.new("struct kvm_regs *"))


NO_SEQUENCES = [5, 1.5, object(), ffi.NULL, ffi.new("struct kvm_regs *")]


@pytest.mark.parametrize("wrong", [None, *NO_SEQUENCES], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_sequence_or_mapping(bare: Bare, wrong: Any) -> None:
    before = bare.state()
    kind = type(wrong).__name__
    for call in (
        bare.kvm.get_msrs,
        bare.vcpu.get_msrs,
        bare.vcpu.set_msrs,
        bare.vcpu.set_xcrs,
        bare.vm.set_gsi_routing,
        bare.vm.x86_set_msr_filter,
        cpuid_table,
        lambda value: bare.vcpu.set_guest_debug(0, value),
        bare.vcpu.set_signal_mask if wrong is not None else bare.vcpu.get_msrs,
    ):
        with pytest.raises(WrongTypeError, match=rf"wants (a sequence|Mapping).*{kind}"):
            call(wrong)
    assert bare.state() == before


@pytest.mark.parametrize("wrong", ["x", b"ab", (1, 2), [None]], ids=repr)
def test_values_without_names(bare: Bare, wrong: Any) -> None:
    for call in (bare.vcpu.set_msrs, bare.vcpu.set_xcrs):
        with pytest.raises(WrongTypeError, match="wants Mapping, was given"):
            call(wrong)


# ---- what C is given ----


def test_a_loop_without_memory_or_protocol() -> None:
    """It runs what is there: here nothing, so the first fetch is not emulated."""
    with ExitStack() as stack:
        bare = Bare(stack)
        loop = VcpuLoop(bare.vcpu)
        loop.limit(1)  # long past
        assert loop.run() == lib.STOP_DEADLINE
        loop.close()


@pytest.mark.parametrize(
    "null", [ffi.NULL, ffi.cast("struct memory *", 0), ffi.new("struct protocol *"), 0, "x"]
)
def test_a_loop_of_what_is_no_memory(null: Any) -> None:
    with ExitStack() as stack:
        bare = Bare(stack)
        with pytest.raises(WrongTypeError, match=r"wants struct memory \*, was given"):
            VcpuLoop(bare.vcpu, null, create_protocol())


def test_a_loop_of_structures_that_are_not_ready() -> None:
    with ExitStack() as stack:
        bare = Bare(stack)
        with pytest.raises(KvmError, match="EINVAL"):
            VcpuLoop(bare.vcpu, ffi.new("struct memory *"))
        for null in (ffi.NULL, ffi.cast("struct protocol *", 0), ffi.new("struct memory *"), 1):
            with pytest.raises(WrongTypeError, match=r"wants struct protocol \*, was given"):
                VcpuLoop(bare.vcpu, None, null)
        for vcpu in (bare.vm, None, 3):
            with pytest.raises(WrongTypeError, match="wants Vcpu, was given"):
                VcpuLoop(vcpu)  # type: ignore[arg-type]
        with pytest.raises(WrongTypeError, match="wants Vm, was given"):
            GuestMemory(
                bare.vcpu,  # type: ignore[arg-type]
                BACKENDS["emulated"],
                Mechanism.SLOTS,
                Policy.CONVERT,
            )


def test_a_descriptor_without_a_kind() -> None:
    with pytest.raises(WrongTypeError, match="descriptor"):
        KvmFd("3", "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="descriptor"):
        KvmFd(1 << 31, "x")
