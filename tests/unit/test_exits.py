"""Exits decoded from a kvm_run that no kernel made: every type, and whatever else."""

from __future__ import annotations

import struct
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.kvm import exits
from pyvmm.kvm.exits import exit_decoder, io_data
from pyvmm.kvm.uapi import REASON_NAMES, ExitReason, reason_name
from pyvmm.native import ffi, lib
from pyvmm.page_states import PageState

PAGE = 4096
UNION = 32


class Run:
    """A kvm_run of three pages, as KVM maps it; ``pointer`` keeps nothing alive."""

    def __init__(self, reason: int, payload: bytes = b"") -> None:
        self.memory = ffi.new("char[]", 3 * PAGE)
        self.pointer: Any = ffi.cast("struct kvm_run *", self.memory)
        self.pointer.exit_reason = reason
        ffi.memmove(self.memory + UNION, payload, len(payload))

    def decode(self) -> exits.Exit:
        return exit_decoder(self.pointer)()


IO_OUT = struct.pack("<BBHIQ", lib.KVM_EXIT_IO_OUT, 2, 0x3F8, 3, PAGE)
IO_IN = struct.pack("<BBHIQ", lib.KVM_EXIT_IO_IN, 4, 0x60C, 1, PAGE)

# One plausible exit of every reason: payload at kvm_run's union, and what it means.
CASES: list[tuple[int, bytes, exits.Exit]] = [
    (lib.KVM_EXIT_UNKNOWN, struct.pack("<Q", 77), exits.HardwareExit(77)),
    (lib.KVM_EXIT_EXCEPTION, struct.pack("<II", 13, 8), exits.ExceptionExit(13, 8)),
    (lib.KVM_EXIT_IO, IO_OUT, exits.IoExit(0x3F8, 2, 3, True, bytes(6))),
    (lib.KVM_EXIT_IO, IO_IN, exits.IoExit(0x60C, 4, 1, False, b"")),
    (
        lib.KVM_EXIT_HYPERCALL,
        struct.pack("<QQQQQQQQQ", 12, 1, 2, 3, 4, 5, 6, 0, 1),
        exits.HypercallExit(12, (1, 2, 3, 4, 5, 6), True),
    ),
    (
        lib.KVM_EXIT_DEBUG,
        struct.pack("<IIQQQ", 1, 0, 0x7C02, 0x4FF0, 0x400),
        exits.DebugExit(1, 0x7C02, 0x4FF0, 0x400),
    ),
    (lib.KVM_EXIT_HLT, b"", exits.HltExit()),
    (
        lib.KVM_EXIT_MMIO,
        struct.pack("<Q8sIB", 0xC0123, b"\1\2\3\4\0\0\0\0", 4, 1),
        exits.MmioExit(0xC0123, 4, True, b"\1\2\3\4"),
    ),
    (
        lib.KVM_EXIT_MMIO,
        struct.pack("<Q8sIB", 0xC0123, b"\1\2\3\4\0\0\0\0", 8, 0),
        exits.MmioExit(0xC0123, 8, False, b""),
    ),
    (lib.KVM_EXIT_IRQ_WINDOW_OPEN, b"", exits.IrqWindowExit()),
    (lib.KVM_EXIT_SHUTDOWN, b"", exits.ShutdownExit()),
    (
        lib.KVM_EXIT_FAIL_ENTRY,
        struct.pack("<QI", 0x80000021, 3),
        exits.FailEntryExit(0x80000021, 3),
    ),
    (lib.KVM_EXIT_INTR, b"", exits.InterruptedExit()),
    (lib.KVM_EXIT_SET_TPR, b"", exits.SetTprExit()),
    (lib.KVM_EXIT_NMI, b"", exits.NmiExit()),
    (lib.KVM_EXIT_TPR_ACCESS, struct.pack("<QI", 0xFFF0, 1), exits.TprAccessExit(0xFFF0, True)),
    (
        lib.KVM_EXIT_INTERNAL_ERROR,
        struct.pack("<II", 2, 2) + struct.pack("<QQ", 5, 6),
        exits.InternalErrorExit(2, (5, 6), b""),
    ),
    (
        lib.KVM_EXIT_INTERNAL_ERROR,
        struct.pack("<IIQB15s", 1, 3, 1, 3, b"\xdf\xe0\x90"),
        exits.InternalErrorExit(1, (1, 0x90E0DF03, 0), b"\xdf\xe0\x90"),
    ),
    (
        lib.KVM_EXIT_SYSTEM_EVENT,
        struct.pack("<IIQQ", lib.KVM_SYSTEM_EVENT_SEV_TERM, 1, 0x100, 9),
        exits.SystemEventExit(lib.KVM_SYSTEM_EVENT_SEV_TERM, (0x100,)),
    ),
    (lib.KVM_EXIT_IOAPIC_EOI, b"\x31", exits.IoapicEoiExit(0x31)),
    (
        lib.KVM_EXIT_X86_RDMSR,
        struct.pack("<B7xIIQ", 0, 2, 0xC0010015, 0),
        exits.MsrExit(0xC0010015, False, 0, 2),
    ),
    (
        lib.KVM_EXIT_X86_WRMSR,
        struct.pack("<B7xIIQ", 0, 4, 0x10, 1 << 63),
        exits.MsrExit(0x10, True, 1 << 63, 4),
    ),
    (lib.KVM_EXIT_DIRTY_RING_FULL, b"", exits.DirtyRingFullExit()),
    (lib.KVM_EXIT_AP_RESET_HOLD, b"", exits.ApResetHoldExit()),
    (lib.KVM_EXIT_X86_BUS_LOCK, b"", exits.BusLockExit()),
    (lib.KVM_EXIT_HYPERV, struct.pack("<I", 2), exits.HypervExit(2, b"\2".ljust(256, b"\0"))),
    (lib.KVM_EXIT_XEN, struct.pack("<I", 1), exits.XenExit(1, b"\1".ljust(256, b"\0"))),
    (
        lib.KVM_EXIT_MEMORY_ERROR,
        struct.pack("<I4xQQ", lib.KVM_EXIT_MEM_MAP_PRIVATE, 0x40000, PAGE),
        exits.MemoryErrorExit(0x40000, PAGE, PageState.PRIVATE),
    ),
    (
        lib.KVM_EXIT_MEMORY_ERROR,
        struct.pack("<I4xQQ", lib.KVM_EXIT_MEM_MAP_SHARED, 0xC0000, PAGE),
        exits.MemoryErrorExit(0xC0000, PAGE, PageState.SHARED),
    ),
    (lib.KVM_EXIT_NOTIFY, struct.pack("<I", 1), exits.NotifyExit(False)),
    (
        lib.KVM_EXIT_MEMORY_FAULT,
        struct.pack("<QQQ", 1 << 3, 0x40000, PAGE),
        exits.MemoryFaultExit(0x40000, PAGE, True),
    ),
    (
        lib.KVM_EXIT_TDX,
        struct.pack("<QQQ5Q", 1, 0x10002, 0, 1, 2, 3, 4, 5),
        exits.TdxExit(1, 0x10002, (1, 2, 3, 4, 5)),
    ),
    (lib.KVM_EXIT_SNP_REQ_CERTS, struct.pack("<QQ", 0x5000, 2), exits.SnpReqCertsExit(0x5000, 2)),
]


@pytest.mark.parametrize(
    ("reason", "payload", "expected"), CASES, ids=lambda value: type(value).__name__
)
def test_decode(reason: int, payload: bytes, expected: exits.Exit) -> None:
    decoded = Run(reason, payload).decode()
    assert decoded == expected
    assert type(decoded) is type(expected)


def test_every_named_reason_and_every_type_is_covered() -> None:
    assert {reason for reason, _, _ in CASES} == set(ExitReason)
    types = {type(expected) for _, _, expected in CASES}
    assert types | {exits.UnknownExit} == set(get_args(exits.Exit))


def test_exits_of_different_kinds_differ() -> None:
    assert exits.HltExit() == exits.HltExit()
    assert hash(exits.HltExit()) == hash(exits.HltExit())
    hlt: object = exits.HltExit()
    assert hlt != exits.ShutdownExit()
    assert hlt != ()
    payload = bytes(256)
    xen: object = exits.XenExit(1, payload)
    assert xen != exits.HypervExit(1, payload)
    assert exits.IoExit(1, 1, 1, True, b"\1") != exits.IoExit(1, 1, 1, True, b"\2")
    assert len({exits.HltExit(), exits.ShutdownExit(), exits.HltExit()}) == 2


def test_exits_are_immutable() -> None:
    for _, _, exit in CASES:
        for field in exit._fields:
            with pytest.raises(AttributeError):
                setattr(exit, field, 0)


def test_an_unknown_reason_keeps_number_and_bytes() -> None:
    payload = bytes(range(256))
    assert Run(9999, payload).decode() == exits.UnknownExit(9999, payload)
    assert reason_name(9999) == "exit_9999"
    assert reason_name(lib.KVM_EXIT_IO) == "io"
    assert REASON_NAMES[lib.KVM_EXIT_MEMORY_FAULT] == "memory_fault"


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        # More than the page that the data are in, a wrap-around, an offset far outside.
        (lib.KVM_EXIT_IO, struct.pack("<BBHIQ", 1, 4, 0x600, 1025, PAGE)),
        (lib.KVM_EXIT_IO, struct.pack("<BBHIQ", 1, 255, 0x600, 0xFFFFFFFF, PAGE)),
        (lib.KVM_EXIT_IO, struct.pack("<BBHIQ", 0, 1, 0x600, 1, 1 << 63)),
        (lib.KVM_EXIT_IO, struct.pack("<BBHIQ", 1, 1, 0x600, 1, (1 << 64) - 1)),
        (lib.KVM_EXIT_MMIO, struct.pack("<QQIB", 0, 0, 9, 1)),
        (lib.KVM_EXIT_MMIO, struct.pack("<QQIB", 0, 0, 0xFFFFFFFF, 0)),
        (lib.KVM_EXIT_MEMORY_ERROR, struct.pack("<I4xQQ", 3, 0, 0)),
    ],
)
def test_contradictions_are_unknown_exits(reason: int, payload: bytes) -> None:
    assert Run(reason, payload).decode() == exits.UnknownExit(reason, payload.ljust(256, b"\0"))


def test_counts_are_clamped() -> None:
    many = struct.pack("<II16Q", 1, 0xFFFFFFFF, *range(16))
    decoded = Run(lib.KVM_EXIT_INTERNAL_ERROR, many).decode()
    assert isinstance(decoded, exits.InternalErrorExit)
    assert decoded.data == tuple(range(16))
    # An instruction longer than x86 has.
    long = struct.pack("<IIQB15s", 1, 3, 1, 200, bytes(range(15)))
    decoded = Run(lib.KVM_EXIT_INTERNAL_ERROR, long).decode()
    assert isinstance(decoded, exits.InternalErrorExit)
    assert decoded.instruction == bytes(range(15))


def test_io_data_in_place() -> None:
    run = Run(lib.KVM_EXIT_IO, IO_IN)
    io_data(run.pointer)[:] = b"\1\2\3\4"
    assert bytes(ffi.buffer(run.memory + PAGE, 5)) == b"\1\2\3\4\0"
    beyond = Run(lib.KVM_EXIT_IO, struct.pack("<BBHIQ", 0, 255, 0, 0xFFFFFFFF, 1 << 63))
    assert len(io_data(beyond.pointer)) == 0


@given(
    reason=st.one_of(st.sampled_from(sorted(ExitReason)), st.integers(0, 0xFFFFFFFF)),
    payload=st.binary(max_size=256),
)
def test_decode_takes_anything(reason: int, payload: bytes) -> None:
    decoded = Run(reason, payload).decode()
    assert isinstance(decoded, get_args(exits.Exit))
    if reason not in REASON_NAMES:
        assert decoded == exits.UnknownExit(reason, payload.ljust(256, b"\0"))


def test_a_port_exit_is_read_as_the_compiler_lays_it_out() -> None:
    fields = ("direction", "size", "port", "count", "data_offset")
    offsets = [ffi.offsetof("struct kvm_run", "io", field) for field in fields]
    widths = [
        ffi.sizeof(dict(ffi.typeof(Run(0).pointer.io).fields)[field].type) for field in fields
    ]
    assert offsets == [UNION + sum(widths[:at]) for at in range(len(fields))]
    assert widths == [struct.calcsize(f"={code}") for code in "BBHIQ"]
