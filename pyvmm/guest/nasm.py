"""Guests in NASM's language, assembled by nasm where it is installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pyvmm.errors import GuestError
from pyvmm.guest import tool_messages
from pyvmm.guest.image import Image, Segment, elf_image
from pyvmm.guest.layout import Layout
from pyvmm.guest.linking import link
from pyvmm.guest.tools import call, named, path_of
from pyvmm.kvm.memfd import Memfd
from pyvmm.printable import printable

# By mode: nasm's object format, ld's emulation, the width of code that does not say its own.
_FORMATS = {
    "real": ("elf32", "elf_i386", 16),
    "protected": ("elf32", "elf_i386", 32),
    "long": ("elf64", "elf_x86_64", 64),
}
_ORIGIN = re.compile(
    r"^[ \t]*\[?[ \t]*org[ \t]+(?:0x(?P<hex>[0-9a-f_]+)|(?P<suffixed>[0-9][0-9a-f_]*)h"
    r"|(?P<decimal>[0-9_]+))[ \t]*\]?[ \t]*(?:;.*)?$",
    re.IGNORECASE | re.MULTILINE,
)
_HAS_ORIGIN = re.compile(r"^[ \t]*\[?[ \t]*org\b", re.IGNORECASE | re.MULTILINE)


def has_nasm() -> bool:
    return shutil.which("nasm") is not None


def assemble_nasm(
    path: Path, argument: str, source: str, parameters: Mapping[str, int], layout: Layout
) -> Image:
    """Assemble with nasm: flat where the source has an ``org``, which is then its address; else
    an object that is linked as ``layout`` says, so that addresses have lines.

    nasm reads it from ``argument``, or ``source`` where that is "-". Raises :class:`GuestError`
    with nasm's first error.
    """
    name = printable(str(path))
    form, emulation, bits = _FORMATS[layout.mode]
    is_flat = _HAS_ORIGIN.search(source) is not None
    options = ["-w-all", "-I", f"{path.parent}/", "--before", f"bits {bits}"]
    options += [f"-D{symbol}={value}" for symbol, value in parameters.items()]
    options += ["-f", "bin"] if is_flat else ["-f", form, "-g", "-F", "dwarf"]
    with Memfd("guest.o", 0) as unlinked, Memfd("guest.elf", 0) as linked:
        text = source if argument == "-" else ""
        argument = "/dev/stdin" if argument == "-" else argument
        command = ["nasm", *options, "-o", path_of(unlinked), argument]
        if said := call(path, command, text, unlinked):
            raise _rejected(name, named(said, argument, name))
        if is_flat:
            code = _bytes_of(unlinked)
            if not code:
                raise GuestError(name, "it has no code")
            origin = _origin_of(name, source)
            return Image(path.name, (Segment(origin, code),), origin, mode=layout.mode)
        if said := link(path, emulation, layout, unlinked, linked):
            complaint = tool_messages.from_linker(named(said, argument, name), name, source)
            raise GuestError(name, f"not linking: {complaint}")
        elf = _bytes_of(linked)
        return replace(elf_image(path.name, elf, layout.mode), elf=elf)


def _origin_of(name: str, source: str) -> int:
    found = _ORIGIN.search(source)
    if found is None:
        raise GuestError(name, "its org is no number", "pyvmm loads it there: write a number")
    if found["hex"] or found["suffixed"]:
        return int(found["hex"] or found["suffixed"], 16)
    return int(found["decimal"])


def _rejected(name: str, said: str) -> GuestError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line] or lines
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return GuestError(name, f"not assembling: {errors[0]}{more}")


def _bytes_of(file: Memfd) -> bytes:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
