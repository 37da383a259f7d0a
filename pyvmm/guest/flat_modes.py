"""The guest protocol in protected and in long mode: where it has memory, and how a guest begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pyvmm.devices.in_kernel import WINDOWS
from pyvmm.errors import ConfigurationError
from pyvmm.guest.descriptors import (
    CODE,
    DATA,
    GDT_SIZE,
    IDT_SIZES,
    STUBS_SIZE,
    TSS_SIZE,
    gdt,
    idt,
    stub_code,
    tss,
)
from pyvmm.guest.image import Image
from pyvmm.guest.layout import LONG, PROTECTED
from pyvmm.guest.long_mode import TABLES_SIZE, page_tables
from pyvmm.guest.options import PlatformOptions
from pyvmm.guest.platform import Platform, Ram, RegionPlace
from pyvmm.guest.real_mode import REGION_GPA, REGION_SIZE, SHARED_VIEW_GPA, RealMode
from pyvmm.kvm.arguments import need
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi, lib

MIB = 1 << 20
LOW_RAM_SIZE, HIGH_RAM_GPA = 0x40000, 1 * MIB
DEFAULT_MIB, LEAST_MIB, MOST_MIB = 16, 2, 4064  # above that are KVM's pages and its controllers
STACK_SIZE = 16 << 10
MAX_VCPUS = 64

# What the guest is given lies at the end of low RAM, where a guest has the least to look for.
TABLES = LOW_RAM_SIZE - TABLES_SIZE
_TSS_ROOM = 128
_TSSES = TABLES - MAX_VCPUS * _TSS_ROOM
_IDT = _TSSES - IDT_SIZES[64]
_GDT = _IDT - 0x1000
_STUBS = _GDT + GDT_SIZE
assert _STUBS + STUBS_SIZE <= _IDT and TSS_SIZE <= _TSS_ROOM

# A byte of state for each page, which a report reads all of.
_MOST_REGION = 1 << 40
HIGH_REGION_GPA, HIGH_REGION_SIZE, HIGH_SHARED_VIEW_GPA = 1 << 32, 4 * MIB, 0x1_4000_0000

_FLAGS_RESERVED = 0x2
# CR0.PE, MP, ET, NE, WP, PG; CR4.PAE, OSFXSR, OSXMMEXCPT; EFER.LME, LMA, NXE.
_CR0_FLAT, _CR0_PAGING = 0x33, 0x8001_0000
_CR4_SSE, _CR4_PAE = 0x600, 0x20
_EFER_LONG = 0xD00
_BUSY_TSS = 11


class _FlatMode(Platform):
    """What protected and long mode have in common."""

    name = "protocol"
    max_vcpus = MAX_VCPUS
    ports = (*RealMode.ports, range(lib.PORT_FEATURES + 4, lib.PORT_ASSERT_HIGH + 4))
    options: ClassVar[frozenset[str]] = frozenset({"mode", "memory", "regions"})
    has_protocol = True
    is_wide = True
    vector_stubs = _STUBS
    _bits: ClassVar[int]

    def __init__(self, options: PlatformOptions | None = None) -> None:
        options = PlatformOptions() if options is None else options
        mebibytes = DEFAULT_MIB if options.memory is None else options.memory
        need("memory in MiB", mebibytes, int)
        if not LEAST_MIB <= mebibytes <= MOST_MIB:
            raise ConfigurationError(
                f"--memory {mebibytes}", f"RAM may end at {LEAST_MIB} to {MOST_MIB} MiB here"
            )
        self.ram = ((0, LOW_RAM_SIZE), (HIGH_RAM_GPA, mebibytes * MIB - HIGH_RAM_GPA))
        self._end = mebibytes * MIB
        self._more = tuple(RegionPlace(*region) for region in options.regions)
        for place in self._more:
            _check_region(place)

    def regions(self, views: int) -> tuple[RegionPlace, ...]:
        for place in self._more:
            if views == 1 and place.shared_gpa is not None:
                raise ConfigurationError(
                    f"region at {place.gpa:#x}", "with one view it has no GPA for shared pages"
                )
        own = (RegionPlace(REGION_GPA, REGION_SIZE, SHARED_VIEW_GPA if views == 2 else None),)
        return (*own, *self._more)

    def load(self, image: Image, ram: Ram, vcpus: int) -> None:
        stacks = self._end - vcpus * STACK_SIZE
        for segment in image.segments:
            more = -(-(segment.end + vcpus * STACK_SIZE) // MIB)
            for name, first, end, remedy in (
                ("descriptor and page tables", _GDT, LOW_RAM_SIZE, f"link it at {HIGH_RAM_GPA:#x}"),
                ("stacks", stacks, self._end, f"--memory {more} or more"),
            ):
                if segment.gpa < end and first < segment.end:
                    raise ConfigurationError(
                        image.name,
                        f"{segment.end - segment.gpa} bytes at {segment.gpa:#x} reach into the "
                        f"{name} at {first:#x}-{end - 1:#x}",
                        remedy,
                    )
        self.place(image, ram)
        if self._bits == 64:
            ram.write_ram(TABLES, page_tables(TABLES))
        ram.write_ram(_GDT, gdt(self._bits))
        ram.write_ram(_STUBS, stub_code())
        ram.write_ram(_IDT, idt(self._bits, _STUBS))
        for index in range(vcpus):
            ram.write_ram(_TSSES + index * _TSS_ROOM, tss(self._bits, self._stack(index)))

    def boot(self, vcpu: Vcpu, vcpus: int, image: Image) -> None:
        if not 0 <= image.entry < 1 << self._bits:
            raise ConfigurationError(
                image.name, f"its entry {image.entry:#x} is no address of {self._bits} bits"
            )
        sregs = vcpu.get_sregs()
        segments = (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss)
        _set_segments(sregs.cs, segments, self._bits)
        sregs.gdt.base, sregs.gdt.limit = _GDT, GDT_SIZE - 1
        sregs.idt.base, sregs.idt.limit = _IDT, IDT_SIZES[self._bits] - 1
        sregs.tr.base, sregs.tr.limit = _TSSES + vcpu.index * _TSS_ROOM, TSS_SIZE - 1
        sregs.tr.type, sregs.tr.present, sregs.tr.s = _BUSY_TSS, 1, 0
        sregs.cr0, sregs.cr4 = _CR0_FLAT, _CR4_SSE
        if self._bits == 64:
            sregs.cr3, sregs.efer = TABLES, _EFER_LONG
            sregs.cr0 |= _CR0_PAGING
            sregs.cr4 |= _CR4_PAE
        vcpu.set_sregs(sregs)
        regs = ffi.new("struct kvm_regs *")
        regs.rip, regs.rsp, regs.rflags = image.entry, self._stack(vcpu.index), _FLAGS_RESERVED
        regs.rdi, regs.rsi = vcpu.index, vcpus
        vcpu.set_regs(regs)

    def _stack(self, index: int) -> int:
        """Where a vCPU's stack begins: below the end of RAM, 16-byte aligned as before a call."""
        return self._end - index * STACK_SIZE


class ProtectedMode(_FlatMode):
    """Flat segments of 32 bits, no paging."""

    mode = "protected"
    layout = PROTECTED
    _bits = 32


class LongMode(_FlatMode):
    """64-bit mode at privilege level 0, the first 8 GiB mapped to themselves."""

    mode = "long"
    layout = LONG
    _bits = 64

    def regions(self, views: int) -> tuple[RegionPlace, ...]:
        shared = HIGH_SHARED_VIEW_GPA if views == 2 else None
        own, *more = super().regions(views)
        return (own, RegionPlace(HIGH_REGION_GPA, HIGH_REGION_SIZE, shared), *more)


def _set_segments(code: Any, others: Sequence[Any], bits: int) -> None:
    for segment in (code, *others):
        segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, DATA
        segment.type, segment.s, segment.present, segment.dpl = 3, 1, 1, 0
        segment.db, segment.l, segment.g = 1, 0, 1
    code.selector, code.type = CODE, 11
    code.db, code.l = int(bits == 32), int(bits == 64)


def _check_region(place: RegionPlace) -> None:
    """No region is where every PC has its interrupt controllers, whether the VM has them or not."""
    if place.size > _MOST_REGION:
        raise ConfigurationError(
            f"region at {place.gpa:#x}, {place.size:#x} bytes",
            f"a region may have {_MOST_REGION >> 30} GiB",
        )
    for gpa in (place.gpa, place.shared_gpa):
        for name, first, size in WINDOWS:
            if gpa is not None and gpa < first + size and first < gpa + place.size:
                raise ConfigurationError(
                    f"region at {gpa:#x}, {place.size:#x} bytes",
                    f"it overlaps {name} at {first:#x}",
                    "move it",
                )
