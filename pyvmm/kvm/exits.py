"""Exits as immutable objects: one type for each reason, and one for what is not known.

They are named tuples because they are built once per exit: one of five fields is made in
0.23 us, and a frozen dataclass with slots in 0.61 us (Python 3.11), where a whole exit may cost
1.2 us more than in C. Code that is in a hurry reads ``vcpu.kvm_run`` in place instead.

Numbers and layouts: ``struct kvm_run`` in ``<linux/kvm.h>``, Documentation/virt/kvm/api.rst,
section 5. Answers are written into ``kvm_run``: :func:`io_data`, ``mmio.data``, ``msr.data``,
``hypercall.ret``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.native import ffi, lib
from pyvmm.page_states import PageState

_Kind = TypeVar("_Kind", bound=type)


def _exit(kind: _Kind) -> _Kind:
    """Tuples are equal when their fields are; exits must be of the same kind too.

    A base class cannot say so, for a named tuple takes none.
    """

    def is_equal(self: Any, other: Any) -> bool:
        return type(self) is type(other) and tuple.__eq__(self, other)

    def is_different(self: Any, other: Any) -> bool:
        return not is_equal(self, other)

    for name, method in (("__eq__", is_equal), ("__ne__", is_different)):
        setattr(kind, name, method)
    return kind


@_exit
class IoExit(NamedTuple):
    """KVM_EXIT_IO: ``elements`` of ``size`` bytes each; ``data`` what was written."""

    port: int
    size: int
    elements: int
    is_write: bool
    data: bytes


@_exit
class MmioExit(NamedTuple):
    """KVM_EXIT_MMIO: at most 8 bytes at ``gpa``; ``data`` what was written."""

    gpa: int
    size: int
    is_write: bool
    data: bytes


@_exit
class HypercallExit(NamedTuple):
    """KVM_EXIT_HYPERCALL: KVM_HC_* with its six arguments."""

    number: int
    arguments: tuple[int, ...]
    is_long_mode: bool


@_exit
class HardwareExit(NamedTuple):
    """KVM_EXIT_UNKNOWN: the CPU left the guest for a reason that KVM does not know."""

    hardware_reason: int


@_exit
class ExceptionExit(NamedTuple):
    """KVM_EXIT_EXCEPTION; no x86 KVM of today sends it."""

    vector: int
    error_code: int


@_exit
class HltExit(NamedTuple):
    """KVM_EXIT_HLT."""


@_exit
class ShutdownExit(NamedTuple):
    """KVM_EXIT_SHUTDOWN: on x86 a triple fault."""


@_exit
class IrqWindowExit(NamedTuple):
    """KVM_EXIT_IRQ_WINDOW_OPEN: an interrupt can be injected now."""


@_exit
class InterruptedExit(NamedTuple):
    """KVM_EXIT_INTR: a signal for the thread; KVM_RUN failed with EINTR."""


@_exit
class SetTprExit(NamedTuple):
    """KVM_EXIT_SET_TPR: the guest lowered CR8; see ``kvm_run.cr8``."""


@_exit
class NmiExit(NamedTuple):
    """KVM_EXIT_NMI."""


@_exit
class InternalErrorExit(NamedTuple):
    """KVM_EXIT_INTERNAL_ERROR. Suberror 1: the emulator cannot do an instruction.

    ``instruction`` holds the bytes it failed on, where the kernel tells.
    """

    suberror: int
    data: tuple[int, ...]
    instruction: bytes


@_exit
class FailEntryExit(NamedTuple):
    """KVM_EXIT_FAIL_ENTRY: the hardware refused to enter the guest."""

    hardware_reason: int
    cpu: int


@_exit
class DebugExit(NamedTuple):
    """KVM_EXIT_DEBUG: single step or breakpoint."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@_exit
class MsrExit(NamedTuple):
    """KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR; ``reason`` is KVM_MSR_EXIT_REASON_*.

    Answer in ``kvm_run.msr``: ``data`` of a read, ``error`` = 1 for a #GP.
    """

    msr: int
    is_write: bool
    data: int
    reason: int


@_exit
class TprAccessExit(NamedTuple):
    """KVM_EXIT_TPR_ACCESS: the guest touched its APIC's TPR, if that was asked for."""

    rip: int
    is_write: bool


@_exit
class SystemEventExit(NamedTuple):
    """KVM_EXIT_SYSTEM_EVENT: ``type`` is KVM_SYSTEM_EVENT_*."""

    type: int
    data: tuple[int, ...]


@_exit
class IoapicEoiExit(NamedTuple):
    """KVM_EXIT_IOAPIC_EOI: the end of a level-triggered interrupt, with a split irqchip."""

    vector: int


@_exit
class DirtyRingFullExit(NamedTuple):
    """KVM_EXIT_DIRTY_RING_FULL: collect and reset the ring before the next run."""


@_exit
class NotifyExit(NamedTuple):
    """KVM_EXIT_NOTIFY: the guest kept the CPU from taking any event (Linux 6.0, Intel)."""

    is_context_valid: bool


@_exit
class BusLockExit(NamedTuple):
    """KVM_EXIT_X86_BUS_LOCK: the guest took the bus lock, if that was asked for."""


@_exit
class ApResetHoldExit(NamedTuple):
    """KVM_EXIT_AP_RESET_HOLD: an SEV-ES vCPU waits for its start-up interrupt."""


@_exit
class HypervExit(NamedTuple):
    """KVM_EXIT_HYPERV: see ``struct kvm_hyperv_exit``."""

    type: int
    payload: bytes


@_exit
class XenExit(NamedTuple):
    """KVM_EXIT_XEN: see ``struct kvm_xen_exit``."""

    type: int
    payload: bytes


@_exit
class TdxExit(NamedTuple):
    """KVM_EXIT_TDX (Linux 6.16): a TDVMCALL ``number``; answer in its ``ret``."""

    flags: int
    number: int
    data: tuple[int, ...]


@_exit
class SnpReqCertsExit(NamedTuple):
    """KVM_EXIT_SNP_REQ_CERTS (Linux 7.0): put certificates into ``pages`` at ``gpa``."""

    gpa: int
    pages: int


@_exit
class MemoryFaultExit(NamedTuple):
    """KVM_EXIT_MEMORY_FAULT (Linux 6.8); ``is_private`` may be older than the page state."""

    gpa: int
    size: int
    is_private: bool


@_exit
class MemoryErrorExit(NamedTuple):
    """KVM_EXIT_MEMORY_ERROR (RFC of December 2021): map the page as ``wanted``."""

    gpa: int
    size: int
    wanted: PageState


@_exit
class UnknownExit(NamedTuple):
    """An exit without a type here, or one that contradicts itself.

    ``reason`` is the raw number, ``payload`` the 256 bytes of kvm_run's union.
    """

    reason: int
    payload: bytes


Exit = (
    IoExit
    | MmioExit
    | HypercallExit
    | HardwareExit
    | ExceptionExit
    | HltExit
    | ShutdownExit
    | IrqWindowExit
    | InterruptedExit
    | SetTprExit
    | NmiExit
    | InternalErrorExit
    | FailEntryExit
    | DebugExit
    | MsrExit
    | TprAccessExit
    | SystemEventExit
    | IoapicEoiExit
    | DirtyRingFullExit
    | NotifyExit
    | BusLockExit
    | ApResetHoldExit
    | HypervExit
    | XenExit
    | TdxExit
    | SnpReqCertsExit
    | MemoryFaultExit
    | MemoryErrorExit
    | UnknownExit
)

_OUT: int = lib.KVM_EXIT_IO_OUT
# A named tuple's own constructor is a function in Python; this is the one it calls.
_new: Any = tuple.__new__

_UNION_OFFSET = ffi.offsetof("struct kvm_run", "hw")
_UNION_SIZE = 256  # kvm_run pads it to this

# The data of port accesses lie in a page of their own.
_IO_END: int = (lib.KVM_PIO_PAGE_OFFSET + 1) * PAGE_SIZE
_MMIO_DATA: int = ffi.offsetof("struct kvm_run", "mmio", "data")
_MMIO_SIZE = 8


def _payload(run: Any) -> Any:
    return ffi.cast("char *", run) + _UNION_OFFSET


def io_data(run: Any) -> Any:
    """The buffer of a KVM_EXIT_IO in place: writable, size * count bytes.

    Empty if that would reach past the memory that is shared with the kernel.
    """
    io = run.io
    offset, size = io.data_offset, io.size * io.count
    if offset + size > _IO_END:
        offset = size = 0
    return ffi.buffer(ffi.cast("char *", run) + offset, size)


def _internal_error(run: Any) -> InternalErrorExit:
    internal = run.internal
    data = tuple(internal.data)[: min(internal.ndata, 16)]
    instruction = b""
    # struct emulation_failure: data[0] is flags, then a length byte and up to 15 bytes.
    if internal.suberror == lib.KVM_INTERNAL_ERROR_EMULATION and len(data) >= 3 and data[0] & 1:
        raw = data[1].to_bytes(8, "little") + data[2].to_bytes(8, "little")
        instruction = raw[1 : 1 + min(raw[0], 15)]
    return InternalErrorExit(internal.suberror, data, instruction)


def _memory_fault(run: Any) -> MemoryFaultExit:
    fault = ffi.cast("struct pyvmm_memory_fault *", _payload(run))
    return MemoryFaultExit(
        fault.gpa, fault.size, fault.flags & lib.KVM_MEMORY_EXIT_FLAG_PRIVATE != 0
    )


def _memory_error(run: Any) -> Exit:
    error = ffi.cast("struct pyvmm_memory_error *", _payload(run))
    if error.type == lib.KVM_EXIT_MEM_MAP_SHARED:
        return MemoryErrorExit(error.gpa, error.size, PageState.SHARED)
    if error.type == lib.KVM_EXIT_MEM_MAP_PRIVATE:
        return MemoryErrorExit(error.gpa, error.size, PageState.PRIVATE)
    return _unknown(run)


def _tdx(run: Any) -> TdxExit:
    tdx = ffi.cast("struct pyvmm_tdx *", _payload(run))
    return TdxExit(tdx.flags, tdx.nr, tuple(tdx.data))


def _snp_req_certs(run: Any) -> SnpReqCertsExit:
    request = ffi.cast("struct pyvmm_snp_req_certs *", _payload(run))
    return SnpReqCertsExit(request.gpa, request.npages)


def _bytes(run: Any) -> bytes:
    return bytes(ffi.buffer(_payload(run), _UNION_SIZE))


def _unknown(run: Any) -> UnknownExit:
    return UnknownExit(run.exit_reason, _bytes(run))


_DECODERS: dict[int, Callable[[Any], Exit]] = {
    lib.KVM_EXIT_HYPERCALL: lambda run: HypercallExit(
        run.hypercall.nr, tuple(run.hypercall.args), run.hypercall.longmode & 1 != 0
    ),
    lib.KVM_EXIT_UNKNOWN: lambda run: HardwareExit(run.hw.hardware_exit_reason),
    lib.KVM_EXIT_EXCEPTION: lambda run: ExceptionExit(run.ex.exception, run.ex.error_code),
    lib.KVM_EXIT_HLT: lambda run: HltExit(),
    lib.KVM_EXIT_SHUTDOWN: lambda run: ShutdownExit(),
    lib.KVM_EXIT_IRQ_WINDOW_OPEN: lambda run: IrqWindowExit(),
    lib.KVM_EXIT_INTR: lambda run: InterruptedExit(),
    lib.KVM_EXIT_SET_TPR: lambda run: SetTprExit(),
    lib.KVM_EXIT_NMI: lambda run: NmiExit(),
    lib.KVM_EXIT_INTERNAL_ERROR: _internal_error,
    lib.KVM_EXIT_FAIL_ENTRY: lambda run: FailEntryExit(
        run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu
    ),
    lib.KVM_EXIT_DEBUG: lambda run: DebugExit(
        run.debug.arch.exception, run.debug.arch.pc, run.debug.arch.dr6, run.debug.arch.dr7
    ),
    lib.KVM_EXIT_X86_RDMSR: lambda run: MsrExit(run.msr.index, False, 0, run.msr.reason),
    lib.KVM_EXIT_X86_WRMSR: lambda run: MsrExit(run.msr.index, True, run.msr.data, run.msr.reason),
    lib.KVM_EXIT_TPR_ACCESS: lambda run: TprAccessExit(
        run.tpr_access.rip, run.tpr_access.is_write != 0
    ),
    lib.KVM_EXIT_SYSTEM_EVENT: lambda run: SystemEventExit(
        run.system_event.type, tuple(run.system_event.data)[: min(run.system_event.ndata, 16)]
    ),
    lib.KVM_EXIT_IOAPIC_EOI: lambda run: IoapicEoiExit(run.eoi.vector),
    lib.KVM_EXIT_DIRTY_RING_FULL: lambda run: DirtyRingFullExit(),
    lib.KVM_EXIT_NOTIFY: lambda run: NotifyExit(
        run.notify.flags & lib.KVM_NOTIFY_CONTEXT_INVALID == 0
    ),
    lib.KVM_EXIT_X86_BUS_LOCK: lambda run: BusLockExit(),
    lib.KVM_EXIT_AP_RESET_HOLD: lambda run: ApResetHoldExit(),
    lib.KVM_EXIT_HYPERV: lambda run: HypervExit(run.hyperv.type, _bytes(run)),
    lib.KVM_EXIT_XEN: lambda run: XenExit(run.xen.type, _bytes(run)),
    lib.KVM_EXIT_TDX: _tdx,
    lib.KVM_EXIT_SNP_REQ_CERTS: _snp_req_certs,
    lib.KVM_EXIT_MEMORY_FAULT: _memory_fault,
    lib.KVM_EXIT_MEMORY_ERROR: _memory_error,
}


_IO: int = lib.KVM_EXIT_IO
_MMIO: int = lib.KVM_EXIT_MMIO
# One call reads all of kvm_run.io: direction, size, port, count, data_offset.
_io_fields = struct.Struct("=BBHIQ").unpack_from


def exit_decoder(run: Any) -> Callable[[], Exit]:
    """A function that gives the exit which a ``struct kvm_run *`` holds when it is called.

    It never fails, whatever the kernel sent. Port and MMIO exits are what guests make by
    the thousand; all that can be made once for them is made here.
    """
    shared = ffi.buffer(run, _IO_END)
    mmio = run.mmio

    def decode() -> Exit:
        reason = run.exit_reason
        if reason == _IO:
            direction, size, port, elements, offset = _io_fields(shared, _UNION_OFFSET)
            end = offset + size * elements
            if end <= _IO_END:
                is_write = direction == _OUT
                data = shared[offset:end] if is_write else b""
                io: IoExit = _new(IoExit, (port, size, elements, is_write, data))
                return io
        elif reason == _MMIO:
            size = mmio.len
            if size <= _MMIO_SIZE:
                is_write = mmio.is_write != 0
                data = shared[_MMIO_DATA : _MMIO_DATA + size] if is_write else b""
                access: MmioExit = _new(MmioExit, (mmio.phys_addr, size, is_write, data))
                return access
        return _DECODERS.get(reason, _unknown)(run)

    return decode
