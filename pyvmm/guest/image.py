"""A guest as bytes at addresses: flat binaries and ELF files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyvmm.errors import GuestError
from pyvmm.guest.layout import LAYOUTS, LONG, REAL, Layout

#: A kernel with all that a debugger wants has hundreds of MiB. Whether it fits is RAM's to say.
MAX_FILE = 1 << 30
# Of a larger file so much is read, to tell what it is.
_HEAD = 64 << 10
_PIECE = 1 << 20
_NAME_A_GUEST = "name an assembly file, a flat binary or an ELF"
_TOO_MANY = f"bytes are too many for a guest's file, which may have {MAX_FILE >> 20} MiB"


@dataclass(frozen=True, slots=True)
class Segment:
    """``data`` at ``gpa``, and ``zeros`` bytes behind it that nobody has to write.

    ``is_notes``: only for tools, where a linker put what nobody placed: notes, the file's headers.
    """

    gpa: int
    data: bytes
    is_notes: bool = False
    zeros: int = 0

    @property
    def end(self) -> int:
        return self.gpa + len(self.data) + self.zeros


@dataclass(frozen=True, slots=True)
class Image:
    """A guest that is ready to be copied into RAM. ``entry`` is the IP of every vCPU.

    ``elf`` is the file with the line table that pyvmm's own assembling left, or empty. ``mode``
    is what the code was made for. ``remark`` is what the guest will miss though it runs, in one
    line, or empty.
    """

    name: str
    segments: tuple[Segment, ...]
    entry: int = REAL.origin
    elf: bytes = b""
    mode: str = REAL.mode
    remark: str = ""


def read_guest_file(path: Path) -> bytes:
    """The file's bytes. Raises :class:`GuestError` if missing, empty or absurdly large."""
    try:
        if not path.is_file():
            raise GuestError(str(path), _why_no_file(path), _NAME_A_GUEST)
        with path.open("rb") as file:
            data = file.read(_HEAD)
            size = max(len(data), os.fstat(file.fileno()).st_size)
            if size > MAX_FILE:
                raise _too_large(path, data, size)
            data += read_to_end(file, MAX_FILE - len(data))
    except OSError as error:
        cause = error.strerror or str(error)
        raise GuestError(str(path), cause, "name a file that can be read") from None
    if not data:
        raise GuestError(str(path), "it is empty", _NAME_A_GUEST)
    return data


def read_standard_input() -> bytes:
    """What comes from standard input, to its end. Raises :class:`GuestError` as above."""
    try:
        with open(0, "rb", closefd=False) as file:
            data = read_to_end(file, MAX_FILE + 1)
    except OSError as error:
        raise GuestError("standard input", error.strerror or str(error)) from None
    if not data:
        raise GuestError("standard input", "it is empty", "write a guest to it")
    if len(data) > MAX_FILE:
        raise GuestError("standard input", f"more than {MAX_FILE} {_TOO_MANY}")
    return data


def read_to_end(file: BinaryIO, most: int) -> bytes:
    """All that comes, or so many bytes.

    Python makes room for all that it is asked to read, so it is asked for what the file has. Some
    files do not say how much that is.
    """
    piece = max(_PIECE, os.fstat(file.fileno()).st_size + 1)
    parts = []
    while most > 0 and (part := file.read(min(most, piece))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def _why_no_file(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    if path.is_fifo():
        return "it is a FIFO, no regular file"
    if path.is_char_device() or path.is_block_device():
        return "it is a device, no regular file"
    return "it is no regular file" if os.path.exists(path) else "there is no such file"


def _too_large(path: Path, head: bytes, size: int) -> GuestError:
    from pyvmm.guest.identify import kind_of

    kind = kind_of(path, head, size)
    if kind is None:
        return GuestError(str(path), f"{size} {_TOO_MANY}")
    cause = f"it is {kind.name}, and {size} {_TOO_MANY}"
    return GuestError(str(path), cause, kind.remedy)


def flat_image(name: str, data: bytes, layout: Layout = REAL) -> Image:
    """A flat binary: loaded at the layout's origin, and entered at its first byte."""
    if not data:
        raise GuestError(name, "it is empty")
    return Image(name, (Segment(layout.origin, data),), layout.origin, mode=layout.mode)


def elf_image(name: str, data: bytes, mode: str = REAL.mode) -> Image:
    """A linked ELF file, 32 or 64 bits, x86: its PT_LOAD segments at their physical addresses."""
    from pyvmm.guest.elf import EM_386, EM_X86_64, ET_EXEC, cut_short, read_elf

    elf = read_elf(name, data)
    if elf.machine not in (EM_386, EM_X86_64):
        raise GuestError(name, f"the ELF file is for machine {elf.machine}, not x86")
    if elf.kind != ET_EXEC:
        emulation = "elf_x86_64" if mode == LONG.mode else "elf_i386"
        raise GuestError(
            name,
            "the ELF file is not a linked executable",
            f"link it: ld -m {emulation} -N -Ttext {LAYOUTS[mode].origin:#x} -o guest.elf guest.o",
        )
    segments, start = [], elf.start
    total = 0
    for load in elf.loads:
        if load.memory < load.size:
            raise GuestError(name, "a segment of the ELF file is larger than its memory")
        if load.size and load.offset + load.size > len(data):
            raise cut_short(name)
        total += load.size
        if total > 2 * len(data):
            raise GuestError(name, "its segments name the same bytes of the file again and again")
        # What follows the file's bytes is the .bss.
        code, zeros = data[load.offset : load.offset + load.size], load.memory - load.size
        if front := elf.front(load, code, start):
            segments.append(Segment(load.gpa, code[:front], is_notes=True))
        if front < load.memory:
            segments.append(Segment(load.gpa + front, code[front:], elf.is_notes(load), zeros))
    if all(segment.is_notes for segment in segments):
        raise GuestError(name, "it has no code and no data to load")
    if not any(load.gpa <= start < load.end for load in elf.loads):
        raise GuestError(
            name,
            f"its entry {elf.entry:#x} lies in none of its segments",
            "name the entry to the linker (ld -e SYMBOL)",
        )
    return Image(name, tuple(segments), start, mode=mode)
