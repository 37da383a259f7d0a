"""The multiboot header of a guest's file, and what it asks to be loaded.

Multiboot specification, version 0.6.96, sections 3.1 and 3.2. The file may be hostile.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyvmm.errors import GuestError
from pyvmm.guest.elf import EM_386, EM_X86_64, ET_EXEC, cut_short, is_elf, read_elf
from pyvmm.guest.image import Image, Segment

MAGIC = 0x1BADB002
#: The header lies within so many bytes of the file's beginning.
SEARCHED = 8192

_HEADER = struct.Struct("<III")
_ADDRESSES = struct.Struct("<IIIII")
# What a header may ask for: modules at pages' beginnings, and how much memory there is. Both
# are given always. The bits below 16 that are unknown must be refused, those above ignored. A
# video mode should be, too, but QEMU and GRUB go on without one, and guests look what they got.
_ALIGNED_MODULES, _MEMORY, _VIDEO, _HAS_ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
_KNOWN = _ALIGNED_MODULES | _MEMORY | _VIDEO
_DEMANDS = 0xFFFF
_NO_VIDEO = (
    "its multiboot header asks for a video mode (flag 2): there is none, and the guest is told so"
)
# GPAs of a multiboot guest have 32 bits.
_END = 1 << 32


@dataclass(frozen=True, slots=True)
class Header:
    """``at`` is its offset in the file; ``addresses`` are there when it says where to load:
    header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr."""

    at: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None


def find_header(data: bytes) -> Header | None:
    """The first header with a checksum that is right, or None."""
    magic = MAGIC.to_bytes(4, "little")
    at = data.find(magic, 0, SEARCHED)
    while at >= 0:
        if at % 4 == 0 and at + _HEADER.size <= min(len(data), SEARCHED):
            _, flags, checksum = _HEADER.unpack_from(data, at)
            if not MAGIC + flags + checksum & 0xFFFF_FFFF:
                return Header(at, flags, _addresses(data, at + _HEADER.size, flags))
        at = data.find(magic, at + 1, SEARCHED)
    return None


def _addresses(data: bytes, at: int, flags: int) -> tuple[int, int, int, int, int] | None:
    if not flags & _HAS_ADDRESSES or at + _ADDRESSES.size > len(data):
        return None
    header, load, load_end, bss_end, entry = _ADDRESSES.unpack_from(data, at)
    return header, load, load_end, bss_end, entry


def multiboot_image(name: str, data: bytes, most: int) -> Image:
    """The guest of a file with a multiboot header: an ELF, or what the header's addresses say.

    ``most`` is how many bytes of memory a guest may take in all. Raises :class:`GuestError`.
    """
    header = find_header(data)
    if header is None:
        raise GuestError(
            name,
            f"it has no multiboot header in its first {SEARCHED} bytes",
            "link the header to the front, or choose another --platform",
        )
    if unknown := header.flags & _DEMANDS & ~_KNOWN:
        raise GuestError(
            name, f"its multiboot header asks for {unknown:#x}, which no specification has"
        )
    if header.flags & _HAS_ADDRESSES:
        segments, entry = _by_addresses(name, data, header, most)
    elif is_elf(data):
        segments, entry = _by_elf(name, data, most)
    else:
        raise GuestError(
            name,
            "it is no ELF file, and its multiboot header does not say where to load it (flag 16)",
            "link it as ELF, or give the header addresses",
        )
    if not any(each.gpa <= entry < each.end for each in segments):
        raise GuestError(name, f"its entry {entry:#x} lies in nothing that is loaded")
    remark = _NO_VIDEO if header.flags & _VIDEO else ""
    return Image(name, tuple(segments), entry, remark=remark)


def _by_elf(name: str, data: bytes, most: int) -> tuple[list[Segment], int]:
    """The PT_LOAD segments at their physical addresses; 64 bits are just another container."""
    elf = read_elf(name, data)
    if elf.machine not in (EM_386, EM_X86_64) or elf.kind != ET_EXEC:
        raise GuestError(name, "the ELF file is no linked executable for x86")
    segments: list[Segment] = []
    total = 0
    for load in elf.loads:
        if load.memory < load.size or load.end > _END:
            raise GuestError(name, f"a segment of the ELF file at {load.gpa:#x} cannot be")
        if load.offset + load.size > len(data):
            raise cut_short(name)
        total += load.memory
        if total > most:
            raise _too_large(name, most)
        code = data[load.offset : load.offset + load.size]
        segments.append(Segment(load.gpa, code, zeros=load.memory - load.size))
    return segments, elf.start


def _too_large(name: str, most: int) -> GuestError:
    return GuestError(name, f"it takes more than the {most} bytes of RAM", "give it more --memory")


def _by_addresses(name: str, data: bytes, header: Header, most: int) -> tuple[list[Segment], int]:
    """What is loaded where the header itself says, as an a.out kernel has it."""
    if header.addresses is None:
        raise GuestError(name, "its multiboot header is cut short")
    header_gpa, load, load_end, bss_end, entry = header.addresses
    first = header.at - (header_gpa - load)
    if load > header_gpa or first < 0:
        raise GuestError(
            name, f"its multiboot header at {header_gpa:#x} is not in what it loads at {load:#x}"
        )
    size = load_end - load if load_end else len(data) - first
    if size <= 0 or first + size > len(data):
        raise GuestError(name, f"its multiboot header loads up to {load_end:#x}, past the file")
    memory = bss_end - load if bss_end else size
    if memory < size:
        raise GuestError(name, f"its multiboot header has a .bss that ends at {bss_end:#x}")
    if memory > most:
        raise _too_large(name, most)
    return [Segment(load, data[first : first + size], zeros=memory - size)], entry
