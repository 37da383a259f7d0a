"""Which pyvmm this is: of one version there may be several."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pyvmm.guest.shipped import guests_dir

#: What builds and editors leave among the files, and what is made of guests' sources.
_MADE = ("__pycache__", "built", "_native.c")
_LEFT = (".pyc", ".pyo", ".orig", ".rej", "~")
#: Where the header of a 64-bit ELF file has e_shoff, and e_shentsize with e_shnum.
_SECTIONS_AT, _SECTION_SIZES_AT = 40, 58
#: A section's sh_type, sh_flags, sh_offset and sh_size.
_SECTION = struct.Struct("<4xIQ8xQQ")
_SHT_NOTE, _SHT_NOBITS, _SHF_ALLOC = 7, 8, 2


@cache
def own_code() -> str:
    """The digest of the pyvmm that runs here, as it was when first asked for."""
    return code_now()


def code_now() -> str:
    """The digest of the files as they are now: those that a lab has from here on."""
    return code_of(Path(__file__).parents[2], guests_dir())


def code_of(package: Path, guests: Path) -> str:
    """The SHA-256 of all that a result may depend on: Python, package data, guests, and what is
    loaded of the compiled module.

    It is the same for a checkout and for what is installed from it, wherever that was built.
    """
    digest = hashlib.sha256()
    for top, name in ((package, ""), (guests, "guests/")):
        for path in sorted(_files(top)):
            if guests in path.parents and top != guests:
                continue  # in an installed package they are inside
            content = path.read_bytes()
            told = _loaded(content) if path.suffix == ".so" else content
            digest.update(f"{name}{path.relative_to(top)}\0".encode(errors="surrogateescape"))
            digest.update(hashlib.sha256(told).digest())
    return digest.hexdigest()


def _files(top: Path) -> Iterator[Path]:
    for path in top.rglob("*"):
        parts = path.relative_to(top).parts
        hidden = any(part.startswith(".") or part in _MADE for part in parts)
        if not hidden and not path.name.endswith(_LEFT) and path.is_file():
            yield path


def _loaded(library: bytes) -> bytes:
    """What a process has of a library: without notes, such as the build ID, and without what is for
    debuggers, which names the folder that it was built in. All of it, if it is no library."""
    try:
        (start,) = struct.unpack_from("<Q", library, _SECTIONS_AT)
        size, count = struct.unpack_from("<HH", library, _SECTION_SIZES_AT)
        sections = [_SECTION.unpack_from(library, start + number * size) for number in range(count)]
    except struct.error:
        return library
    return b"".join(
        library[offset : offset + length]
        for kind, flags, offset, length in sections
        if flags & _SHF_ALLOC and kind not in (_SHT_NOTE, _SHT_NOBITS)
    )
