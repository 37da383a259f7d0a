"""A guest as bytes at addresses: flat binaries and ELF files."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import GuestError
from pyvmm.guest.boot import START

_MAX_FILE = 16 << 20
_ELF = b"\x7fELF"
_ET_EXEC = 2
_PT_LOAD = 1
_MACHINES = (3, 62)  # EM_386, EM_X86_64


@dataclass(frozen=True, slots=True)
class Segment:
    """``data`` at ``gpa``."""

    gpa: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """A guest that is ready to be copied into RAM. ``entry`` is the IP of every vCPU.

    ``elf`` is the file with the line table that pyvmm's own assembling left, or empty.
    """

    name: str
    segments: tuple[Segment, ...]
    entry: int = START
    elf: bytes = b""


def read_guest_file(path: Path) -> bytes:
    """The file's bytes. Raises :class:`GuestError` if missing, empty or absurdly large."""
    try:
        if not path.is_file():
            cause = "it is a folder" if path.is_dir() else "it is no regular file"
            cause = cause if os.path.lexists(path) else "there is no such file"
            raise GuestError(str(path), cause, "name an assembly file, a flat binary or an ELF")
        size = path.stat().st_size
        if size > _MAX_FILE:
            raise GuestError(str(path), f"{size} bytes are too many for a guest's file")
        data = path.read_bytes()
    except OSError as error:
        raise GuestError(str(path), error.strerror or str(error)) from None
    if not data:
        raise GuestError(str(path), "it is empty")
    return data


def flat_image(name: str, data: bytes) -> Image:
    """A flat binary: loaded at 0x7C00, as a boot sector is, and entered at its first byte."""
    if not data:
        raise GuestError(name, "it is empty")
    return Image(name, (Segment(START, data),))


def is_elf(data: bytes) -> bool:
    return data.startswith(_ELF)


def elf_image(name: str, data: bytes) -> Image:
    """A linked ELF file, 32 or 64 bits, x86: its PT_LOAD segments at their physical addresses."""
    try:
        return _parse_elf(name, data)
    except (struct.error, IndexError):
        raise GuestError(name, "the ELF file is cut short") from None


def _parse_elf(name: str, data: bytes) -> Image:
    wide, little = data[4] == 2, data[5] == 1
    if data[4] not in (1, 2):
        raise GuestError(name, f"the ELF file is of class {data[4]}, neither of 32 nor of 64 bits")
    if not little:
        raise GuestError(name, "the ELF file is not little-endian")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if machine not in _MACHINES:
        raise GuestError(name, f"the ELF file is for machine {machine}, not x86")
    if kind != _ET_EXEC:
        raise GuestError(
            name,
            "the ELF file is not a linked executable",
            f"link it: ld -m elf_i386 -N -Ttext {START:#x} -o guest.elf guest.o",
        )
    if wide:
        entry, table = struct.unpack_from("<QQ", data, 24)
        entry_size, entries = struct.unpack_from("<HH", data, 54)
    else:
        entry, table = struct.unpack_from("<II", data, 24)
        entry_size, entries = struct.unpack_from("<HH", data, 42)
    segments = []
    total = 0
    for index in range(entries):
        at = table + index * entry_size
        if wide:
            kind, _, offset, _, gpa, size, whole = struct.unpack_from("<IIQQQQQ", data, at)
        else:
            kind, offset, _, gpa, size, whole = struct.unpack_from("<IIIIII", data, at)
        if kind != _PT_LOAD or whole == 0:
            continue
        if whole < size:
            raise GuestError(name, "a segment of the ELF file is larger than its memory")
        if size and offset + size > len(data):
            raise GuestError(name, "the ELF file is cut short")
        total += whole
        if total > _MAX_FILE:
            raise GuestError(name, "its segments have too many bytes in all for a guest")
        # What follows the file's bytes is the .bss.
        segments.append(Segment(gpa, data[offset : offset + size].ljust(whole, b"\0")))
    if not segments:
        raise GuestError(name, "it has no code and no data to load")
    if entry > 0xFFFF:
        raise GuestError(name, f"its entry {entry:#x} is beyond what real mode reaches with CS 0")
    return Image(name, tuple(segments), entry)
