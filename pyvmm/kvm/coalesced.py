"""Coalesced MMIO and ports: writes that wait in a ring instead of ending KVM_RUN.

Documentation/virt/kvm/api.rst, 4.116. Zones are registered on the VM; the ring is shared
by all its vCPUs and lies in the mapping of each.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.kvm.arguments import need
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi, lib

_ENTRIES = (PAGE_SIZE - ffi.sizeof("struct kvm_coalesced_mmio_ring")) // ffi.sizeof(
    "struct kvm_coalesced_mmio"
)


class CoalescedWrite(NamedTuple):
    """A write of the guest: a GPA, or a port where ``is_port``."""

    address: int
    data: bytes
    is_port: bool


class CoalescedRing:
    """The ring of a VM, seen through one of its vCPUs.

    Synchronization: one thread may drain while vCPUs run.
    """

    def __init__(self, vcpu: Vcpu) -> None:
        need("vcpu", vcpu, Vcpu)
        self._vcpu = vcpu

    def drain(self) -> list[CoalescedWrite]:
        """The writes that have not been taken yet, oldest first."""
        start = ffi.cast("char *", self._vcpu.kvm_run)
        ring = ffi.cast(
            "struct kvm_coalesced_mmio_ring *",
            start + lib.KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE_SIZE,
        )
        writes: list[CoalescedWrite] = []
        first, last = ring.first, ring.last
        while first != last and len(writes) < _ENTRIES:
            entry = ring.coalesced_mmio[first % _ENTRIES]
            data = bytes(entry.data)[: min(entry.len, 8)]
            writes.append(CoalescedWrite(entry.phys_addr, data, entry.pio != 0))
            first = (first + 1) % _ENTRIES
        ring.first = first
        return writes
