"""CPUID of several vCPUs: one package, one thread in each core, each with its number.

KVM_GET_SUPPORTED_CPUID tells of the CPU that it happened to be called on. Intel SDM, volume 2,
CPUID; AMD APM, volume 3, appendix E.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pyvmm.kvm.cpuid import CpuidEntry
from pyvmm.native import lib

_FEATURES, _CACHES, _TOPOLOGY, _TOPOLOGY_2 = 0x1, 0x4, 0xB, 0x1F
_AMD_FEATURES, _AMD_SIZES, _AMD_CACHES, _AMD_TOPOLOGY = (
    0x8000_0001,
    0x8000_0008,
    0x8000_001D,
    0x8000_001E,
)
_TSC_DEADLINE, _HYPERVISOR = 1 << 24, 1 << 31  # leaf 1, ECX
_SEVERAL = 1 << 28  # leaf 1, EDX
_AMD_SEVERAL = 1 << 1  # leaf 0x80000001, ECX
_THREAD, _CORE = 1, 2  # kinds of level in leaf 0xB
_MOST_CORES = 64  # that leaf 4 can tell of; leaf 0xB tells of all
_LAST_LEVEL = 3  # of cache: the one that cores share


def cpuid_of_vcpu(
    entries: Iterable[CpuidEntry], index: int, vcpus: int, *, tsc_deadline: bool
) -> list[CpuidEntry]:
    """What vCPU ``index`` of so many is told, whose APIC id is its index.

    ``tsc_deadline``: its LAPIC is the kernel's and has that timer (KVM_CAP_TSC_DEADLINE_TIMER).
    """
    return list(_entries(entries, index, vcpus, _TSC_DEADLINE if tsc_deadline else 0))


def _entries(
    entries: Iterable[CpuidEntry], index: int, vcpus: int, more: int
) -> Iterator[CpuidEntry]:
    bits = (vcpus - 1).bit_length()
    levels = ((0, 0, 1, _THREAD), (1, bits, vcpus, _CORE), (2, 0, 0, 0))
    for entry in entries:
        leaf = entry.function
        if leaf == _FEATURES:
            yield replace(
                entry,
                ebx=entry.ebx & 0xFFFF | vcpus << 16 & 0xFF0000 | index << 24,
                ecx=entry.ecx | _HYPERVISOR | more,
                edx=entry.edx | (_SEVERAL if vcpus > 1 else 0),
            )
        elif leaf in (_CACHES, _AMD_CACHES) and entry.eax & 0x1F:
            is_shared = entry.eax >> 5 & 7 >= _LAST_LEVEL
            cores = min(vcpus, _MOST_CORES) - 1 << 26 if leaf == _CACHES else 0
            sharing = (1 << bits) - 1 << 14 if is_shared else 0
            yield replace(entry, eax=entry.eax & 0x3FFF | sharing | cores)
        elif leaf == _TOPOLOGY and entry.index == 0:
            flags = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            for level, shift, count, kind in levels:
                ecx = level | kind << 8
                yield CpuidEntry(_TOPOLOGY, level, flags, shift, count, ecx, index)
        elif leaf in (_TOPOLOGY, _TOPOLOGY_2):
            continue
        elif leaf == _AMD_FEATURES and vcpus > 1:
            yield replace(entry, ecx=entry.ecx | _AMD_SEVERAL)
        elif leaf == _AMD_SIZES:
            yield replace(entry, ecx=entry.ecx & ~0xF0FF | bits << 12 | vcpus - 1)
        elif leaf == _AMD_TOPOLOGY:
            yield replace(entry, eax=index, ebx=index, ecx=0)
        else:
            yield entry
