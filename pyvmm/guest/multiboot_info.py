"""What a multiboot guest is told: its memory, its command line and its modules.

Multiboot specification, version 0.6.96, section 3.3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pyvmm.guest.placing import HIGH_START, LOW_END

#: What a multiboot guest finds in EAX.
LOADER_MAGIC = 0x2BADB002

_BIOS_START = 0xF0000
_4_GIB = 1 << 32
_AVAILABLE, _RESERVED = 1, 2
# What of the structure is valid: memory, command line, modules, memory map, loader's name.
_FLAGS = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
# flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms, mmap_length,
# mmap_addr, drives_length, drives_addr, config_table, boot_loader_name; the rest, video too, is
# zero.
_INFO = struct.Struct("<7I16x6I48x")
_MODULE = struct.Struct("<IIII")
_RANGE = struct.Struct("<IQQI")
_LOADER = b"pyvmm\0"


@dataclass(frozen=True, slots=True)
class Module:
    """``data``, and the string that the guest is given with it."""

    string: bytes
    data: bytes


def memory_map(ram: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """GPA, bytes and kind of each range, as a PC has them: 640 KiB, and what is above 1 MiB."""
    ranges = [
        (0, LOW_END, _AVAILABLE),
        (LOW_END, 0xA0000 - LOW_END, _RESERVED),
        (_BIOS_START, HIGH_START - _BIOS_START, _RESERVED),
    ]
    for gpa, size in ram:
        start = max(gpa, HIGH_START)
        if gpa + size > start:
            ranges.append((start, gpa + size - start, _AVAILABLE))
    return ranges


def boot_information(
    gpa: int,
    command_line: bytes,
    modules: Sequence[tuple[int, Module]],
    ram: Sequence[tuple[int, int]],
) -> bytes:
    """The structure for ``gpa`` and, behind it, all that it points to but the modules' bytes.

    ``modules`` have the GPA that each has been loaded at.
    """
    kinds = memory_map(ram)
    mmap_at = gpa + _INFO.size
    mmap = b"".join(_RANGE.pack(_RANGE.size - 4, *each) for each in kinds)
    modules_at = mmap_at + len(mmap)
    strings_at = modules_at + _MODULE.size * len(modules)
    strings = _LOADER + command_line + b"\0"
    entries = b""
    for start, module in modules:
        entries += _MODULE.pack(start, start + len(module.data), strings_at + len(strings), 0)
        strings += module.string + b"\0"
    below_4_gib = sum(size for start, size in ram if start < _4_GIB)
    info = _INFO.pack(
        _FLAGS,
        LOW_END >> 10,
        (below_4_gib - HIGH_START) >> 10,
        0,
        strings_at + len(_LOADER),
        len(modules),
        modules_at,
        len(mmap),
        mmap_at,
        0,
        0,
        0,
        strings_at,
    )
    return info + mmap + entries + strings
