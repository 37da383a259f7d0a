"""The ioctl table: every KVM ioctl that pyvmm issues, by name.

The numbers are computed from the structures' sizes with ``ioctl_opt``, as
``_IOW(KVMIO, nr, struct ...)`` does in ``<linux/kvm.h>``. What the C compiler makes
of the same header is the oracle of a test, not a source.
"""

from __future__ import annotations

from typing import NamedTuple

import ioctl_opt

from pyvmm.native import ffi

KVMIO = 0xAE


class Ioctl(NamedTuple):
    """An ioctl: its name, the number for the kernel, and the C type it points to.

    ``type`` is None where the argument is a plain integer or nothing.
    """

    name: str
    number: int
    type: str | None


IOCTLS: dict[str, Ioctl] = {}


def _add(name: str, direction: int, number: int, type: str | None = None) -> None:
    # A flexible array member does not count, in C as here.
    size = ffi.sizeof(type) if type is not None and direction != ioctl_opt.IOC_NONE else 0
    IOCTLS[name] = Ioctl(name, ioctl_opt.IOC(direction, KVMIO, number, size), type)


def _io(name: str, number: int, type: str | None = None) -> None:
    """``_IO``: a plain argument, or a structure whose size is not in the number."""
    _add(name, ioctl_opt.IOC_NONE, number, type)


def _ior(name: str, number: int, type: str) -> None:
    _add(name, ioctl_opt.IOC_READ, number, type)


def _iow(name: str, number: int, type: str) -> None:
    _add(name, ioctl_opt.IOC_WRITE, number, type)


def _iowr(name: str, number: int, type: str) -> None:
    _add(name, ioctl_opt.IOC_READ | ioctl_opt.IOC_WRITE, number, type)


# /dev/kvm
_io("KVM_GET_API_VERSION", 0x00)
_io("KVM_CREATE_VM", 0x01)
_io("KVM_CHECK_EXTENSION", 0x03)
_io("KVM_GET_VCPU_MMAP_SIZE", 0x04)
_iowr("KVM_GET_SUPPORTED_CPUID", 0x05, "struct kvm_cpuid2")

# a VM
_io("KVM_CREATE_VCPU", 0x41)
_iow("KVM_SET_USER_MEMORY_REGION", 0x46, "struct kvm_userspace_memory_region")
_io("KVM_SET_TSS_ADDR", 0x47)
_iow("KVM_SET_IDENTITY_MAP_ADDR", 0x48, "uint64_t")
_iow("KVM_SET_USER_MEMORY_REGION2", 0x49, "struct kvm_userspace_memory_region2")
_io("KVM_CREATE_IRQCHIP", 0x60)
_iow("KVM_CREATE_PIT2", 0x77, "struct kvm_pit_config")
_iow("KVM_ENABLE_CAP", 0xA3, "struct kvm_enable_cap")
_iow("KVM_SET_MEMORY_ATTRIBUTES", 0xD2, "struct kvm_memory_attributes")
_iowr("KVM_CREATE_GUEST_MEMFD", 0xD4, "struct kvm_create_guest_memfd")

# a vCPU
_io("KVM_RUN", 0x80)
_ior("KVM_GET_REGS", 0x81, "struct kvm_regs")
_iow("KVM_SET_REGS", 0x82, "struct kvm_regs")
_ior("KVM_GET_SREGS", 0x83, "struct kvm_sregs")
_iow("KVM_SET_SREGS", 0x84, "struct kvm_sregs")
_iowr("KVM_TRANSLATE", 0x85, "struct kvm_translation")
_iow("KVM_SET_CPUID2", 0x90, "struct kvm_cpuid2")
_ior("KVM_GET_MP_STATE", 0x98, "struct kvm_mp_state")
_iow("KVM_SET_MP_STATE", 0x99, "struct kvm_mp_state")
_iowr("KVM_PRE_FAULT_MEMORY", 0xD5, "struct kvm_pre_fault_memory")
