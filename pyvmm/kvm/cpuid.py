"""CPUID tables: ``struct kvm_cpuid2`` from and to tuples."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pyvmm.errors import KvmError
from pyvmm.kvm.arguments import listed, need, pointer, structure
from pyvmm.kvm.fd import KvmFd
from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.native import ffi

# Far more than KVM_MAX_CPUID_ENTRIES: the question is not asked for ever.
_MOST_ENTRIES = 4096
_ADDRESS_SIZES = 0x8000_0008
_FEWEST_ADDRESS_BITS = 36  # of a CPU without that leaf


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One leaf. ``index`` counts where ``flags`` has KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def cpuid_entries(table: Any) -> Iterator[CpuidEntry]:
    """The entries of a ``struct kvm_cpuid2 *``, which is checked as KVM_SET_CPUID2 does it."""
    return _entries(pointer(IOCTLS["KVM_SET_CPUID2"], table, lambda _: 0))


def _entries(kept: Any) -> Iterator[CpuidEntry]:
    table = ffi.cast("struct kvm_cpuid2 *", kept)
    for at in range(table.nent):
        entry = table.entries[at]
        yield CpuidEntry(
            entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx
        )


def cpuid_table(entries: Iterable[CpuidEntry]) -> Any:
    """A ``struct kvm_cpuid2 *`` for KVM_SET_CPUID2."""
    fields = []
    for entry in listed("CPUID entries", entries):
        need("CPUID entry", entry, CpuidEntry)
        fields.append(asdict(entry))
    try:
        return ffi.new("struct kvm_cpuid2 *", {"nent": len(fields), "entries": fields})
    except (OverflowError, TypeError):
        for each in fields:
            structure("struct kvm_cpuid_entry2", **each)
        raise


def physical_address_bits(table: Any) -> int:
    """How many bits a guest physical address has, by a ``struct kvm_cpuid2 *``."""
    for at in reversed(range(table.nent)):  # it is one of the last
        entry = table.entries[at]
        if entry.function == _ADDRESS_SIZES:
            return int(entry.eax & 0xFF)
    return _FEWEST_ADDRESS_BITS


def ask_cpuid(fd: KvmFd, name: str) -> Any:
    """The table that one of the KVM_GET_*CPUID* ioctls fills: a ``struct kvm_cpuid2 *``."""
    count = 128
    while True:
        table = ffi.new("struct kvm_cpuid2 *", {"nent": count, "entries": count})
        try:
            fd.ioctl(name, table)
            return table
        except KvmError as error:
            if error.errno != errno.E2BIG or count > _MOST_ENTRIES:
                raise
        count *= 2
