"""What the header of an ELF file says, read with every bound checked: the file may be hostile.

Not by pyelftools: its import takes longer than all others of a run, and of 3,000 broken files it
met 14 with an OverflowError, where each is to be one line.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pyvmm.errors import GuestError

_MAGIC = b"\x7fELF"
_PT_LOAD, _PT_INTERP, _PT_NOTE = 1, 3, 4
# Kinds of section: addresses of functions to be called before main().
SHT_INIT_ARRAY = 14
_SHF_TLS = 0x400
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_X86_64 = 3, 62
# The layout of the header after e_machine, from e_version to e_phnum, and of a program header.
_HEADER = {32: struct.Struct("<IIIIIHHH"), 64: struct.Struct("<IQQQIHHH")}
_PROGRAM = {32: struct.Struct("<IIIIIIII"), 64: struct.Struct("<IIQQQQQQ")}
_HEADER_AT = 20
# e_shoff, e_shentsize and e_shnum: where they are in the header. A section's sh_type is followed
# by its flags, address, offset and size.
_SECTIONS = {32: (32, "<I", 46, "<III4x4xI"), 64: (40, "<Q", 58, "<IIQ8x8xQ")}
# A linker makes two or three; each is compared with each load.
_MOST_NOTES = 32


@dataclass(frozen=True, slots=True)
class Part:
    """What a PT_LOAD or PT_NOTE header places: ``size`` bytes from ``offset`` of the file at
    ``gpa``, and zeros up to ``memory`` bytes; ``address`` is the virtual one."""

    offset: int
    address: int
    gpa: int
    size: int
    memory: int

    @property
    def end(self) -> int:
        return self.gpa + self.memory


@dataclass(frozen=True, slots=True)
class Elf:
    """``kind`` is e_type and ``machine`` e_machine; ``loads`` have no empty ones. ``headers`` is
    how many bytes of headers the file begins with."""

    bits: int
    kind: int
    machine: int
    entry: int
    loads: tuple[Part, ...]
    notes: tuple[Part, ...]
    has_interpreter: bool
    headers: int

    @property
    def start(self) -> int:
        """The physical address of the entry, which the file may name by its virtual one."""
        if not any(load.gpa <= self.entry < load.end for load in self.loads):
            for load in self.loads:
                if load.address <= self.entry < load.address + load.memory:
                    return self.entry - load.address + load.gpa
        return self.entry

    def is_notes(self, load: Part) -> bool:
        """Whether a linker put nothing but notes there, as it does with the build-id."""
        return any(note.gpa <= load.gpa and load.end <= note.end for note in self.notes)

    def front(self, load: Part, code: bytes, start: int) -> int:
        """How many bytes at the beginning of a load's ``code`` are the file's own headers, which a
        linker puts there unless it is told not to, and zeros up to what the guest has there.

        ``start`` is :attr:`start`, which is none of it."""
        if load.offset or not self.headers <= load.size:
            return 0
        front = load.size - len(code[self.headers :].lstrip(b"\0"))
        if not load.gpa <= start < load.end:
            return front
        before_entry = start - load.gpa
        return 0 if before_entry < self.headers else min(front, before_entry)


def is_elf(data: bytes) -> bool:
    return data.startswith(_MAGIC)


def order_and_machine(data: bytes) -> tuple[Literal["little", "big"], int] | None:
    """The byte order and e_machine of an ELF file; None if it is broken or cut short."""
    if len(data) < _HEADER_AT or data[5] not in (1, 2):
        return None
    order: Literal["little", "big"] = "little" if data[5] == 1 else "big"
    return order, int.from_bytes(data[18:20], order)


def read_elf(name: str, data: bytes) -> Elf:
    """The header and program headers of a little-endian file. Raises :class:`GuestError`."""
    try:
        return _read(name, data)
    except (struct.error, IndexError):
        raise cut_short(name) from None


def cut_short(name: str) -> GuestError:
    """What is wrong with a file that has less than its headers say."""
    return GuestError(name, "the ELF file is cut short", "link or copy it again")


def _read(name: str, data: bytes) -> Elf:
    if data[4] not in (1, 2):
        raise GuestError(name, f"the ELF file is of class {data[4]}, neither of 32 nor of 64 bits")
    if data[5] != 1:
        raise GuestError(name, "the ELF file is not little-endian")
    bits = 32 * data[4]
    kind, machine = struct.unpack_from("<HH", data, 16)
    _, entry, table, _, _, _, each, count = _HEADER[bits].unpack_from(data, _HEADER_AT)
    program = _PROGRAM[bits]
    if count and each < program.size:
        raise GuestError(name, f"the ELF file's program headers are of {each} bytes, too few")
    if count and table + count * each > len(data):
        raise cut_short(name)
    loads: list[Part] = []
    notes: list[Part] = []
    has_interpreter = False
    for at in range(table, table + count * each, each or 1):
        if bits == 64:
            what, _, offset, address, gpa, size, memory, _ = program.unpack_from(data, at)
        else:
            what, offset, address, gpa, size, memory, _, _ = program.unpack_from(data, at)
        has_interpreter = has_interpreter or what == _PT_INTERP
        part = Part(offset, address, gpa, size, memory)
        if what == _PT_LOAD and memory:
            loads.append(part)
        elif what == _PT_NOTE and memory and len(notes) < _MOST_NOTES:
            notes.append(part)
    headers = _HEADER_AT + _HEADER[bits].size + 6  # the sizes of the sections' table follow
    if table == headers:
        headers += count * each
    return Elf(bits, kind, machine, entry, tuple(loads), tuple(notes), has_interpreter, headers)


def own_sections(data: bytes) -> Iterator[tuple[int, bool]]:
    """Of a linked file that a linker has just made: the kind of each section that has bytes, and
    whether they are of a thread's own."""
    table_at, format, each_at, section = _SECTIONS[32 * data[4]]
    (table,) = struct.unpack_from(format, data, table_at)
    each, count = struct.unpack_from("<HH", data, each_at)
    for at in range(table, table + count * each, each):
        _, kind, flags, size = struct.unpack_from(section, data, at)
        if size:
            yield kind, bool(flags & _SHF_TLS)
