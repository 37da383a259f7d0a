"""Names for the kernel's numbers; the values come from the compiled module."""

from __future__ import annotations

from enum import IntEnum
from functools import cache

from pyvmm.native import lib


class ExitReason(IntEnum):
    """KVM_EXIT_*: why KVM_RUN returned. A kernel may know more than are named here.

    36 is the RFC's KVM_EXIT_MEMORY_ERROR; on x86 no released kernel uses it.
    """

    UNKNOWN = lib.KVM_EXIT_UNKNOWN
    EXCEPTION = lib.KVM_EXIT_EXCEPTION
    IO = lib.KVM_EXIT_IO
    HYPERCALL = lib.KVM_EXIT_HYPERCALL
    DEBUG = lib.KVM_EXIT_DEBUG
    HLT = lib.KVM_EXIT_HLT
    MMIO = lib.KVM_EXIT_MMIO
    IRQ_WINDOW_OPEN = lib.KVM_EXIT_IRQ_WINDOW_OPEN
    SHUTDOWN = lib.KVM_EXIT_SHUTDOWN
    FAIL_ENTRY = lib.KVM_EXIT_FAIL_ENTRY
    INTR = lib.KVM_EXIT_INTR
    SET_TPR = lib.KVM_EXIT_SET_TPR
    TPR_ACCESS = lib.KVM_EXIT_TPR_ACCESS
    NMI = lib.KVM_EXIT_NMI
    INTERNAL_ERROR = lib.KVM_EXIT_INTERNAL_ERROR
    SYSTEM_EVENT = lib.KVM_EXIT_SYSTEM_EVENT
    IOAPIC_EOI = lib.KVM_EXIT_IOAPIC_EOI
    HYPERV = lib.KVM_EXIT_HYPERV
    X86_RDMSR = lib.KVM_EXIT_X86_RDMSR
    X86_WRMSR = lib.KVM_EXIT_X86_WRMSR
    DIRTY_RING_FULL = lib.KVM_EXIT_DIRTY_RING_FULL
    AP_RESET_HOLD = lib.KVM_EXIT_AP_RESET_HOLD
    X86_BUS_LOCK = lib.KVM_EXIT_X86_BUS_LOCK
    XEN = lib.KVM_EXIT_XEN
    MEMORY_ERROR = lib.KVM_EXIT_MEMORY_ERROR
    NOTIFY = lib.KVM_EXIT_NOTIFY
    MEMORY_FAULT = lib.KVM_EXIT_MEMORY_FAULT
    TDX = lib.KVM_EXIT_TDX
    SNP_REQ_CERTS = lib.KVM_EXIT_SNP_REQ_CERTS


REASON_NAMES: dict[int, str] = {int(reason): reason.name.lower() for reason in ExitReason}


def reason_name(reason: int) -> str:
    """The lower-case name of an exit reason; ``exit_99`` for one without a name."""
    return REASON_NAMES.get(reason, f"exit_{reason}")


@cache
def capabilities() -> dict[str, int]:
    """Every capability that the compiled module knows: name (``KVM_CAP_*``) and number."""
    return {name: getattr(lib, name) for name in dir(lib) if name.startswith("KVM_CAP_")}


class Capability(int):
    """A capability's number; as text its name and number, looked up only then."""

    def __str__(self) -> str:
        for name, known in capabilities().items():
            if known == self:
                return f"{name} ({int(self)})"
        return f"capability {int(self)}"


class VmType(IntEnum):
    """KVM_X86_*_VM: the argument of KVM_CREATE_VM."""

    DEFAULT = lib.KVM_X86_DEFAULT_VM
    SW_PROTECTED = lib.KVM_X86_SW_PROTECTED_VM
    SEV = lib.KVM_X86_SEV_VM
    SEV_ES = lib.KVM_X86_SEV_ES_VM
    SNP = lib.KVM_X86_SNP_VM
    TDX = lib.KVM_X86_TDX_VM


class MpState(IntEnum):
    """KVM_MP_STATE_*, those of x86."""

    RUNNABLE = lib.KVM_MP_STATE_RUNNABLE
    UNINITIALIZED = lib.KVM_MP_STATE_UNINITIALIZED
    INIT_RECEIVED = lib.KVM_MP_STATE_INIT_RECEIVED
    HALTED = lib.KVM_MP_STATE_HALTED
    SIPI_RECEIVED = lib.KVM_MP_STATE_SIPI_RECEIVED
    AP_RESET_HOLD = lib.KVM_MP_STATE_AP_RESET_HOLD
