"""The ioctl table against what the C compiler makes of the kernel's headers."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigurationError
from pyvmm.kvm.fd import KvmFd
from pyvmm.kvm.ioctls import IOCTLS, KVMIO, Ioctl, io, ior, iow, iowr
from pyvmm.native import ffi, lib

# KVM ioctls that the headers define on x86 as well, and why they are not in the table.
ELSEWHERE = ("KVM_ARM_", "KVM_PPC_", "KVM_S390_")  # of other architectures
LEFT_OUT = {
    "KVM_SET_MEMORY_REGION": "removed in 2.6.38",
    "KVM_SET_MEMORY_ALIAS": "removed in 2.6.36",
    "KVM_DEBUG_GUEST": "removed in 2.6.30",
    "KVM_TRACE_ENABLE": "removed in 2.6.32",
    "KVM_TRACE_PAUSE": "removed in 2.6.32",
    "KVM_TRACE_DISABLE": "removed in 2.6.32",
    "KVM_ASSIGN_PCI_DEVICE": "device assignment, removed in 4.12",
    "KVM_ASSIGN_IRQ": "device assignment",
    "KVM_ASSIGN_DEV_IRQ": "device assignment",
    "KVM_ASSIGN_SET_INTX_MASK": "device assignment",
    "KVM_ASSIGN_SET_MSIX_ENTRY": "device assignment",
    "KVM_ASSIGN_SET_MSIX_NR": "device assignment",
    "KVM_DEASSIGN_DEV_IRQ": "device assignment",
    "KVM_DEASSIGN_PCI_DEVICE": "device assignment",
    "KVM_ALLOCATE_RMA": "PowerPC",
    "KVM_CREATE_SPAPR_TCE": "PowerPC",
    "KVM_CREATE_SPAPR_TCE_64": "PowerPC",
    "KVM_DIRTY_TLB": "PowerPC",
}


def looks_like_an_ioctl(value: object) -> bool:
    """Type 0xAE in bits 8 to 15, a size that goes with the direction in bits 30 and 31."""
    if not isinstance(value, int) or not 0 <= value < 1 << 32 or value >> 8 & 0xFF != KVMIO:
        return False
    direction, size = value >> 30, value >> 16 & 0x3FFF
    return (direction == 0) == (size == 0)


@pytest.mark.parametrize("name", IOCTLS)
def test_number_is_the_compilers(name: str) -> None:
    assert IOCTLS[name].number == getattr(lib, name)


@pytest.mark.parametrize("name", IOCTLS)
def test_type_is_declared(name: str) -> None:
    type = IOCTLS[name].type
    assert type is None or ffi.sizeof(type) > 0


def test_every_x86_ioctl_is_in_the_table() -> None:
    known = {
        name
        for name in dir(lib)
        if name.startswith("KVM_")
        and not name.startswith(ELSEWHERE)
        and looks_like_an_ioctl(getattr(lib, name))
    }
    assert known - LEFT_OUT.keys() == IOCTLS.keys()


def test_numbers_are_unique() -> None:
    assert len({entry.number for entry in IOCTLS.values()}) == len(IOCTLS)


def test_makers_encode_as_the_headers_do() -> None:
    assert io("A", 0x80) == Ioctl("A", lib.KVM_RUN, None)
    assert ior("B", 0x81, "struct kvm_regs").number == lib.KVM_GET_REGS
    assert iow("C", 0x82, "struct kvm_regs").number == lib.KVM_SET_REGS
    assert iowr("D", 0xD2, "uint64_t[16]").number == lib.KVM_SET_MEMORY_ATTRIBUTES2 == 0xC080AED2


def test_unknown_name_says_what_to_do() -> None:
    with KvmFd(-1, "nothing") as fd, pytest.raises(ConfigurationError) as caught:
        fd.ioctl("KVM_GET_REGZ")
    assert "KVM_GET_REGZ" in str(caught.value)
    assert "pyvmm.kvm.ioctls" in caught.value.remedy
