"""64-bit mode at privilege level 0, without interrupts: page tables, segments, control registers.

Intel SDM, volume 3: 4.5 (4-level paging) and 10.8.5 (entering IA-32e mode).
"""

from __future__ import annotations

import struct
from functools import cache

from pyvmm.kvm.vcpu import Vcpu

_PAGE, _HUGE, _GIB = 1 << 12, 2 << 20, 1 << 30
#: How far the page tables reach, in bytes of linear and guest-physical address.
REACH = 8 * _GIB
#: What they take, in bytes: one PML4, one PDPT, a page directory for each GiB.
TABLES_SIZE = (2 + REACH // _GIB) * _PAGE

# CR0.PE, ET, PG; CR4.PAE; EFER.LME, LMA.
_CR0, _CR4, _EFER = 0x8000_0011, 0x20, 0x500
_PRESENT_WRITE_USER, _HUGE_PAGE = 0x7, 0x80
_CODE, _DATA = 0x08, 0x10


@cache
def page_tables(gpa: int) -> bytes:
    """Tables that lie at ``gpa`` and map the first eight GiB to themselves by 2 MiB pages."""
    pdpt, first = gpa + _PAGE, gpa + 2 * _PAGE
    directories = [first + index * _PAGE for index in range(REACH // _GIB)]
    pages = range(0, REACH, _HUGE)
    return b"".join(
        (
            struct.pack("<Q", pdpt | _PRESENT_WRITE_USER).ljust(_PAGE, b"\0"),
            _entries(directories, _PRESENT_WRITE_USER).ljust(_PAGE, b"\0"),
            _entries(list(pages), _PRESENT_WRITE_USER | _HUGE_PAGE),
        )
    )


def _entries(addresses: list[int], flags: int) -> bytes:
    return struct.pack(f"<{len(addresses)}Q", *(address | flags for address in addresses))


def set_long_mode(vcpu: Vcpu, tables: int) -> None:
    """Flat 64-bit segments and paging by the tables at GPA ``tables``.

    KVM wants KVM_SET_CPUID2 before, with long mode in it.
    """
    sregs = vcpu.get_sregs()
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, _DATA
        segment.type, segment.s, segment.present, segment.dpl = 3, 1, 1, 0
        segment.db, segment.l, segment.g = 1, 0, 1
    sregs.cs.selector, sregs.cs.type, sregs.cs.db, sregs.cs.l = _CODE, 11, 0, 1
    sregs.cr3, sregs.cr4, sregs.cr0, sregs.efer = tables, _CR4, _CR0, _EFER
    vcpu.set_sregs(sregs)
