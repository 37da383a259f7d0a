"""The dirty ring: pages that a vCPU wrote, in order (KVM_CAP_DIRTY_LOG_RING, Linux 5.11).

Documentation/virt/kvm/api.rst, 7.36. Enable it before the first vCPU, with the ring's
size in bytes: ``vm.enable_cap(lib.KVM_CAP_DIRTY_LOG_RING, entries * DirtyRing.ENTRY_SIZE)``.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.errors import ConfigurationError
from pyvmm.kvm.arguments import need, number
from pyvmm.kvm.mapping import PAGE_SIZE, Mapping, is_present
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi, lib

# Far more than any kernel's KVM_DIRTY_RING_MAX_ENTRIES.
_MOST_ENTRIES = 1 << 24


class DirtyPage(NamedTuple):
    """A page that was written: its memslot (address space << 16 | id) and page number there."""

    slot: int
    page: int


class DirtyRing:
    """The ring of one vCPU, mapped; ``entries`` as it was enabled, a power of two.

    Synchronization: one thread may harvest while the vCPU runs.
    """

    ENTRY_SIZE: int = ffi.sizeof("struct kvm_dirty_gfn")

    def __init__(self, vcpu: Vcpu, entries: int) -> None:
        need("vcpu", vcpu, Vcpu)
        number("entries", entries, 1, _MOST_ENTRIES)
        self._mapping = Mapping(
            entries * self.ENTRY_SIZE,
            fd=vcpu.fileno(),
            offset=lib.KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE,
        )
        if not is_present(self._mapping, entries * self.ENTRY_SIZE - 1):
            self._mapping.close()
            raise ConfigurationError(
                f"dirty ring of {entries} entries",
                f"{vcpu.name} has no ring of that size",
                "enable KVM_CAP_DIRTY_LOG_RING with it before the first vCPU",
            )
        self._entries = entries
        self._next = 0

    def harvest(self) -> list[DirtyPage]:
        """The pages written since the last harvest, oldest first.

        Their entries can be used again after :meth:`pyvmm.kvm.vm.Vm.reset_dirty_rings`.
        """
        ring = ffi.cast("struct kvm_dirty_gfn *", self._mapping.pointer)
        pages: list[DirtyPage] = []
        while len(pages) < self._entries:
            entry = ring[self._next % self._entries]
            # x86 loads in order: once the flag is seen, so are slot and offset.
            if entry.flags & lib.KVM_DIRTY_GFN_F_MASK != lib.KVM_DIRTY_GFN_F_DIRTY:
                break
            pages.append(DirtyPage(entry.slot, entry.offset))
            entry.flags = lib.KVM_DIRTY_GFN_F_RESET
            self._next += 1
        return pages

    def close(self) -> None:
        self._mapping.close()
