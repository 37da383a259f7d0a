"""What the Linux boot protocol puts into memory and registers (Documentation/arch/x86/boot.rst).

A kernel is entered in 64-bit mode where it can be, and otherwise in protected mode; no code of
its real-mode setup runs. The zero page tells it where memory, initrd and command line are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pyvmm.errors import ConfigurationError
from pyvmm.guest.acpi import ACPI_GPA
from pyvmm.guest.bzimage import SETUP_SECTS, BzImage
from pyvmm.guest.image import Segment
from pyvmm.guest.long_mode import TABLES_SIZE, page_tables, set_long_mode
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi

#: Plain memory below 4 GiB ends here at the latest: above it are interrupt controllers.
LOW_MEMORY_END = 3 << 30
HIGH_MEMORY = 4 << 30

# Below 640 KiB, out of the way of what the kernel puts there for its other CPUs.
_GDT_GPA, _ZERO_PAGE_GPA, _TABLES_GPA, _COMMAND_LINE_GPA = 0x6000, 0x7000, 0x9000, 0x20000
_LOW_END, _BIOS_GPA, _MIB = 0x9FC00, 0xE0000, 1 << 20
_MOST_COMMAND_LINE = 0xFFFF
_PAGE = 4096
assert _TABLES_GPA + TABLES_SIZE <= _COMMAND_LINE_GPA

# The zero page's fields behind the header's, and some of the header's own.
_RSDP, _E820_ENTRIES, _E820_TABLE = 0x070, 0x1E8, 0x2D0
_LOADER, _CODE32_START, _INITRD, _COMMAND_LINE = 0x210, 0x214, 0x218, 0x228
_UNKNOWN_LOADER = 0xFF
_USABLE, _RESERVED = 1, 2

# __BOOT_CS and __BOOT_DS, which the protocol names.
_CODE, _DATA = 0x10, 0x18
_CODE_64, _CODE_32, _DATA_32 = 0x00AF9B00_0000FFFF, 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF
_PROTECTED = 0x11  # CR0: PE and ET
_FLAGS_RESERVED = 0x2


def e820_map(ram: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """GPA, bytes and kind: the memory map of a PC with these pieces of plain memory."""
    usable = [(gpa, size, _USABLE) for gpa, size in ram]
    gpa, size, _ = usable[0]
    usable[0] = (_MIB, gpa + size - _MIB, _USABLE)
    return [
        (0, _LOW_END, _USABLE),
        (_LOW_END, 0xA0000 - _LOW_END, _RESERVED),
        (_BIOS_GPA, _MIB - _BIOS_GPA, _RESERVED),
        *usable,
    ]


def place(
    kernel: BzImage, ram: Sequence[tuple[int, int]], append: str, initrd: bytes | None
) -> list[Segment]:
    """What goes where, in the first piece of ``ram``, which begins at 0.

    Raises :class:`ConfigurationError` where the kernel, the initrd or the command line has no
    room.
    """
    end = ram[0][1]
    kernel_end = kernel.gpa + kernel.memory
    if kernel_end > end:
        raise ConfigurationError(
            kernel.name,
            f"it needs memory from {kernel.gpa:#x} to {kernel_end:#x}, and RAM ends at {end:#x}",
            f"--memory {-(-kernel_end // _MIB)} or more",
        )
    command_line = append.encode("utf-8", "surrogateescape")
    most = min(kernel.most_command_line, _MOST_COMMAND_LINE)
    if len(command_line) > most:
        raise ConfigurationError(
            f"command line of {len(command_line)} bytes", f"{kernel.name} reads at most {most}"
        )
    if b"\0" in command_line:
        raise ConfigurationError("command line", "it has a NUL in it")
    segments = [
        Segment(_GDT_GPA, struct.pack("<4Q", 0, 0, _code(kernel), _DATA_32)),
        Segment(_COMMAND_LINE_GPA, command_line + b"\0"),
        Segment(kernel.gpa, kernel.code),
    ]
    if kernel.is_64_bit:
        segments.append(Segment(_TABLES_GPA, page_tables(_TABLES_GPA)))
    where, size = 0, 0
    if initrd is not None:
        where, size = _initrd_gpa(kernel, kernel_end, end, len(initrd)), len(initrd)
        segments.append(Segment(where, initrd))
    segments.append(Segment(_ZERO_PAGE_GPA, _zero_page(kernel, ram, where, size)))
    return segments


def _code(kernel: BzImage) -> int:
    return _CODE_64 if kernel.is_64_bit else _CODE_32


def _initrd_gpa(kernel: BzImage, kernel_end: int, ram_end: int, size: int) -> int:
    """As high as the kernel can reach, on a page of its own."""
    end = min(kernel.initrd_end, ram_end)
    gpa = end - size & -_PAGE
    if gpa < kernel_end:
        raise ConfigurationError(
            f"initrd of {size} bytes",
            f"{max(0, end - kernel_end)} bytes are left for it between the kernel, which ends at "
            f"{kernel_end:#x}, and {end:#x}",
            f"--memory {-(-(kernel_end + size + _PAGE) // _MIB)} or more"
            if end == ram_end
            else "the kernel takes it no higher",
        )
    return gpa


def _zero_page(
    kernel: BzImage, ram: Sequence[tuple[int, int]], initrd_gpa: int, initrd_size: int
) -> bytes:
    page = bytearray(_PAGE)
    page[SETUP_SECTS : SETUP_SECTS + len(kernel.header)] = kernel.header
    page[_LOADER] = _UNKNOWN_LOADER
    struct.pack_into("<I", page, _CODE32_START, kernel.gpa)
    struct.pack_into("<I", page, _COMMAND_LINE, _COMMAND_LINE_GPA)
    struct.pack_into("<Q", page, _RSDP, ACPI_GPA)
    struct.pack_into("<II", page, _INITRD, initrd_gpa, initrd_size)
    entries = e820_map(ram)
    page[_E820_ENTRIES] = len(entries)
    for at, entry in enumerate(entries):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * at, *entry)
    return bytes(page)


def enter(vcpu: Vcpu, kernel: BzImage) -> None:
    """Give the bootstrap processor the state that the protocol wants."""
    if kernel.is_64_bit:
        set_long_mode(vcpu, _TABLES_GPA)
    sregs = vcpu.get_sregs()
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.selector = _DATA
        if not kernel.is_64_bit:
            segment.base, segment.limit, segment.type, segment.s = 0, 0xFFFFFFFF, 3, 1
            segment.dpl, segment.present, segment.db, segment.l, segment.g = 0, 1, 1, 0, 1
    sregs.cs.selector, sregs.cs.type = _CODE, 11
    if not kernel.is_64_bit:
        sregs.cr0 = _PROTECTED
    sregs.gdt.base, sregs.gdt.limit = _GDT_GPA, 4 * 8 - 1
    vcpu.set_sregs(sregs)
    regs = ffi.new("struct kvm_regs *")
    regs.rip, regs.rsi, regs.rflags = kernel.entry, _ZERO_PAGE_GPA, _FLAGS_RESERVED
    vcpu.set_regs(regs)
