"""The ioctl table: the KVM ioctls of an x86 host, by name.

The numbers are computed from the structures' sizes with ``ioctl_opt``, as
``_IOW(KVMIO, nr, struct ...)`` does in ``<linux/kvm.h>``. What the C compiler makes
of the same header is the oracle of a test, not a source.

An ioctl that is not in the table, of a kernel under development for instance, is made
with :func:`io`, :func:`ior`, :func:`iow` or :func:`iowr` and given to ``ioctl()``:

    vm.ioctl(iow("KVM_NEW", 0xD9, "uint64_t[4]"), ffi.new("uint64_t[4]"))
"""

from __future__ import annotations

from operator import index
from typing import NamedTuple

import ioctl_opt

from pyvmm.errors import ConfigurationError, WrongTypeError
from pyvmm.native import ffi

KVMIO = 0xAE


class Ioctl(NamedTuple):
    """An ioctl: its name, the number for the kernel, and the C type it points to.

    ``type`` is None where the argument is a plain integer or nothing. ``ioctl()`` refuses an
    argument of another type, so without one any address can be given as an integer, unchecked.
    """

    name: str
    number: int
    type: str | None = None


def _encode(direction: int, name: str, number: int, type: str) -> Ioctl:
    # A flexible array member does not count, in C as here.
    return Ioctl(name, _number(direction, name, number, ffi.sizeof(type)), type)


def _number(direction: int, name: str, number: int, size: int) -> int:
    try:
        fits = 0 <= index(number) < 1 << 8 and size < 1 << 14
    except TypeError:
        raise WrongTypeError(name, f"wants a number, was given {type(number).__name__}") from None
    if not fits:
        raise ConfigurationError(name, "an ioctl has a number of 8 bits and a size of 14")
    encoded: int = ioctl_opt.IOC(direction, KVMIO, number, size)
    return encoded


def io(name: str, number: int, type: str | None = None) -> Ioctl:
    """``_IO``: a plain argument, or a structure whose size is not in the number."""
    return Ioctl(name, _number(ioctl_opt.IOC_NONE, name, number, 0), type)


def ior(name: str, number: int, type: str) -> Ioctl:
    """``_IOR``: the kernel writes a ``type``."""
    return _encode(ioctl_opt.IOC_READ, name, number, type)


def iow(name: str, number: int, type: str) -> Ioctl:
    """``_IOW``: the kernel reads a ``type``."""
    return _encode(ioctl_opt.IOC_WRITE, name, number, type)


def iowr(name: str, number: int, type: str) -> Ioctl:
    """``_IOWR``: the kernel reads and writes a ``type``."""
    return _encode(ioctl_opt.IOC_READ | ioctl_opt.IOC_WRITE, name, number, type)


_OF_THE_SYSTEM = (
    io("KVM_GET_API_VERSION", 0x00),
    io("KVM_CREATE_VM", 0x01),
    iowr("KVM_GET_MSR_INDEX_LIST", 0x02, "struct kvm_msr_list"),
    io("KVM_GET_VCPU_MMAP_SIZE", 0x04),
    iowr("KVM_GET_SUPPORTED_CPUID", 0x05, "struct kvm_cpuid2"),
    iowr("KVM_GET_EMULATED_CPUID", 0x09, "struct kvm_cpuid2"),
    iowr("KVM_GET_MSR_FEATURE_INDEX_LIST", 0x0A, "struct kvm_msr_list"),
    ior("KVM_X86_GET_MCE_CAP_SUPPORTED", 0x9D, "uint64_t"),
    iowr("KVM_GET_SUPPORTED_HV_CPUID", 0xC1, "struct kvm_cpuid2"),
)

_OF_A_VM = (
    # vCPUs and memory
    io("KVM_CREATE_VCPU", 0x41),
    iow("KVM_GET_DIRTY_LOG", 0x42, "struct kvm_dirty_log"),
    io("KVM_SET_NR_MMU_PAGES", 0x44),
    io("KVM_GET_NR_MMU_PAGES", 0x45),
    iow("KVM_SET_USER_MEMORY_REGION", 0x46, "struct kvm_userspace_memory_region"),
    io("KVM_SET_TSS_ADDR", 0x47),
    iow("KVM_SET_IDENTITY_MAP_ADDR", 0x48, "uint64_t"),
    iow("KVM_SET_USER_MEMORY_REGION2", 0x49, "struct kvm_userspace_memory_region2"),
    iow("KVM_REGISTER_COALESCED_MMIO", 0x67, "struct kvm_coalesced_mmio_zone"),
    iow("KVM_UNREGISTER_COALESCED_MMIO", 0x68, "struct kvm_coalesced_mmio_zone"),
    iowr("KVM_CLEAR_DIRTY_LOG", 0xC0, "struct kvm_clear_dirty_log"),
    io("KVM_RESET_DIRTY_RINGS", 0xC7),
    iow("KVM_SET_MEMORY_ATTRIBUTES", 0xD2, "struct kvm_memory_attributes"),
    iowr("KVM_CREATE_GUEST_MEMFD", 0xD4, "struct kvm_create_guest_memfd"),
    # interrupts and timers
    io("KVM_CREATE_IRQCHIP", 0x60),
    iow("KVM_IRQ_LINE", 0x61, "struct kvm_irq_level"),
    iowr("KVM_GET_IRQCHIP", 0x62, "struct kvm_irqchip"),
    ior("KVM_SET_IRQCHIP", 0x63, "struct kvm_irqchip"),
    io("KVM_CREATE_PIT", 0x64),
    iowr("KVM_GET_PIT", 0x65, "struct kvm_pit_state"),
    ior("KVM_SET_PIT", 0x66, "struct kvm_pit_state"),
    iowr("KVM_IRQ_LINE_STATUS", 0x67, "struct kvm_irq_level"),
    iow("KVM_SET_GSI_ROUTING", 0x6A, "struct kvm_irq_routing"),
    io("KVM_REINJECT_CONTROL", 0x71, "struct kvm_reinject_control"),
    iow("KVM_IRQFD", 0x76, "struct kvm_irqfd"),
    iow("KVM_CREATE_PIT2", 0x77, "struct kvm_pit_config"),
    io("KVM_SET_BOOT_CPU_ID", 0x78),
    iow("KVM_IOEVENTFD", 0x79, "struct kvm_ioeventfd"),
    iow("KVM_SET_CLOCK", 0x7B, "struct kvm_clock_data"),
    ior("KVM_GET_CLOCK", 0x7C, "struct kvm_clock_data"),
    ior("KVM_GET_PIT2", 0x9F, "struct kvm_pit_state2"),
    iow("KVM_SET_PIT2", 0xA0, "struct kvm_pit_state2"),
    iow("KVM_SIGNAL_MSI", 0xA5, "struct kvm_msi"),
    # what guests may see and do
    iow("KVM_SET_PMU_EVENT_FILTER", 0xB2, "struct kvm_pmu_event_filter"),
    iow("KVM_X86_SET_MSR_FILTER", 0xC6, "struct kvm_msr_filter"),
    iow("KVM_HYPERV_EVENTFD", 0xBD, "struct kvm_hyperv_eventfd"),
    iow("KVM_XEN_HVM_CONFIG", 0x7A, "struct kvm_xen_hvm_config"),
    iowr("KVM_XEN_HVM_GET_ATTR", 0xC8, "struct kvm_xen_hvm_attr"),
    iow("KVM_XEN_HVM_SET_ATTR", 0xC9, "struct kvm_xen_hvm_attr"),
    iow("KVM_XEN_HVM_EVTCHN_SEND", 0xD0, "struct kvm_irq_routing_xen_evtchn"),
    ior("KVM_MEMORY_ENCRYPT_REG_REGION", 0xBB, "struct kvm_enc_region"),
    ior("KVM_MEMORY_ENCRYPT_UNREG_REGION", 0xBC, "struct kvm_enc_region"),
    iowr("KVM_CREATE_DEVICE", 0xE0, "struct kvm_create_device"),
)

_OF_A_VCPU = (
    # running
    io("KVM_RUN", 0x80),
    iow("KVM_SET_SIGNAL_MASK", 0x8B, "struct kvm_signal_mask"),
    iow("KVM_SET_GUEST_DEBUG", 0x9B, "struct kvm_guest_debug"),
    iowr("KVM_TRANSLATE", 0x85, "struct kvm_translation"),
    iowr("KVM_PRE_FAULT_MEMORY", 0xD5, "struct kvm_pre_fault_memory"),
    io("KVM_KVMCLOCK_CTRL", 0xAD),
    # registers
    ior("KVM_GET_REGS", 0x81, "struct kvm_regs"),
    iow("KVM_SET_REGS", 0x82, "struct kvm_regs"),
    ior("KVM_GET_SREGS", 0x83, "struct kvm_sregs"),
    iow("KVM_SET_SREGS", 0x84, "struct kvm_sregs"),
    ior("KVM_GET_SREGS2", 0xCC, "struct kvm_sregs2"),
    iow("KVM_SET_SREGS2", 0xCD, "struct kvm_sregs2"),
    iow("KVM_SET_MSRS", 0x89, "struct kvm_msrs"),
    ior("KVM_GET_FPU", 0x8C, "struct kvm_fpu"),
    iow("KVM_SET_FPU", 0x8D, "struct kvm_fpu"),
    ior("KVM_GET_XSAVE", 0xA4, "struct kvm_xsave"),
    iow("KVM_SET_XSAVE", 0xA5, "struct kvm_xsave"),
    ior("KVM_GET_XSAVE2", 0xCF, "struct kvm_xsave"),
    ior("KVM_GET_XCRS", 0xA6, "struct kvm_xcrs"),
    iow("KVM_SET_XCRS", 0xA7, "struct kvm_xcrs"),
    ior("KVM_GET_DEBUGREGS", 0xA1, "struct kvm_debugregs"),
    iow("KVM_SET_DEBUGREGS", 0xA2, "struct kvm_debugregs"),
    ior("KVM_GET_VCPU_EVENTS", 0x9F, "struct kvm_vcpu_events"),
    iow("KVM_SET_VCPU_EVENTS", 0xA0, "struct kvm_vcpu_events"),
    iowr("KVM_GET_NESTED_STATE", 0xBE, "struct kvm_nested_state"),
    iow("KVM_SET_NESTED_STATE", 0xBF, "struct kvm_nested_state"),
    iow("KVM_GET_ONE_REG", 0xAB, "struct kvm_one_reg"),
    iow("KVM_SET_ONE_REG", 0xAC, "struct kvm_one_reg"),
    iowr("KVM_GET_REG_LIST", 0xB0, "struct kvm_reg_list"),
    # CPUID, interrupts, time
    iow("KVM_SET_CPUID", 0x8A, "struct kvm_cpuid"),
    iow("KVM_SET_CPUID2", 0x90, "struct kvm_cpuid2"),
    iowr("KVM_GET_CPUID2", 0x91, "struct kvm_cpuid2"),
    iow("KVM_INTERRUPT", 0x86, "struct kvm_interrupt"),
    io("KVM_NMI", 0x9A),
    io("KVM_SMI", 0xB7),
    ior("KVM_GET_LAPIC", 0x8E, "struct kvm_lapic_state"),
    iow("KVM_SET_LAPIC", 0x8F, "struct kvm_lapic_state"),
    ior("KVM_GET_MP_STATE", 0x98, "struct kvm_mp_state"),
    iow("KVM_SET_MP_STATE", 0x99, "struct kvm_mp_state"),
    iowr("KVM_TPR_ACCESS_REPORTING", 0x92, "struct kvm_tpr_access_ctl"),
    iow("KVM_SET_VAPIC_ADDR", 0x93, "struct kvm_vapic_addr"),
    iow("KVM_X86_SETUP_MCE", 0x9C, "uint64_t"),
    iow("KVM_X86_SET_MCE", 0x9E, "struct kvm_x86_mce"),
    iowr("KVM_XEN_VCPU_GET_ATTR", 0xCA, "struct kvm_xen_vcpu_attr"),
    iow("KVM_XEN_VCPU_SET_ATTR", 0xCB, "struct kvm_xen_vcpu_attr"),
)

_OF_A_GUEST_MEMFD = (iowr("KVM_SET_MEMORY_ATTRIBUTES2", 0xD2, "struct kvm_memory_attributes2"),)

_OF_SEVERAL = (
    iowr("KVM_GET_MSRS", 0x88, "struct kvm_msrs"),
    iowr("KVM_MEMORY_ENCRYPT_OP", 0xBA, "unsigned long"),
    io("KVM_CHECK_EXTENSION", 0x03),
    iow("KVM_ENABLE_CAP", 0xA3, "struct kvm_enable_cap"),
    io("KVM_SET_TSC_KHZ", 0xA2),
    io("KVM_GET_TSC_KHZ", 0xA3),
    io("KVM_GET_STATS_FD", 0xCE),
    iow("KVM_SET_DEVICE_ATTR", 0xE1, "struct kvm_device_attr"),
    iow("KVM_GET_DEVICE_ATTR", 0xE2, "struct kvm_device_attr"),
    iow("KVM_HAS_DEVICE_ATTR", 0xE3, "struct kvm_device_attr"),
)

_OWNED = {
    "/dev/kvm": _OF_THE_SYSTEM,
    "a VM": _OF_A_VM,
    "a vCPU": _OF_A_VCPU,
    "a guest_memfd": _OF_A_GUEST_MEMFD,
}

IOCTLS: dict[str, Ioctl] = {
    entry.name: entry for entries in (*_OWNED.values(), _OF_SEVERAL) for entry in entries
}
# Whose ioctl it is, where that is one kind of descriptor alone.
OWNERS: dict[str, str] = {
    entry.name: owner for owner, entries in _OWNED.items() for entry in entries
}


# ---- what the numbers do not say ----


class Tail(NamedTuple):
    """How a structure goes on behind its end.

    ``length`` is the field with the number of ``array``'s elements; without ``array`` it is
    the size of all in bytes.
    """

    length: str
    array: str = ""


TAILS: dict[str, Tail] = {
    "struct kvm_cpuid": Tail("nent", "entries"),
    "struct kvm_cpuid2": Tail("nent", "entries"),
    "struct kvm_irq_routing": Tail("nr", "entries"),
    "struct kvm_msr_list": Tail("nmsrs", "indices"),
    "struct kvm_msrs": Tail("nmsrs", "entries"),
    "struct kvm_nested_state": Tail("size"),
    "struct kvm_pmu_event_filter": Tail("nevents", "events"),
    "struct kvm_reg_list": Tail("n", "reg"),
    "struct kvm_signal_mask": Tail("len", "sigset"),
}

# The types that are taken where they are others, or more, than the one in the number.
ALSO_TAKEN: dict[str, tuple[str, ...]] = {
    "KVM_MEMORY_ENCRYPT_OP": ("struct kvm_sev_cmd",),
    "KVM_SET_USER_MEMORY_REGION": (
        "struct kvm_userspace_memory_region",
        "struct kvm_userspace_memory_region_ext",
    ),
}

# A null pointer has a meaning: the thread's own mask; whether there is encryption.
MAY_BE_NULL = frozenset(("KVM_SET_SIGNAL_MASK", "KVM_MEMORY_ENCRYPT_OP"))

# The type is a beginning; KVM_CAP_XSAVE2 says how much this host's kernel reads or writes.
SIZED_BY_THE_HOST = frozenset(("KVM_GET_XSAVE2", "KVM_SET_XSAVE"))

# Their numbers say that the kernel writes, and it reads.
_READ_ALONE = frozenset(
    (
        "KVM_SET_IRQCHIP",
        "KVM_SET_PIT",
        "KVM_MEMORY_ENCRYPT_REG_REGION",
        "KVM_MEMORY_ENCRYPT_UNREG_REGION",
    )
)


def is_written(entry: Ioctl) -> bool:
    """Whether the kernel may write what the ioctl points to."""
    direction: int = ioctl_opt.IOC_DIR(entry.number)
    return direction & ioctl_opt.IOC_READ != 0 and entry.name not in _READ_ALONE
