"""Assembling guests with GNU as and ld."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pyvmm.errors import ConfigurationError, GuestError, WrongTypeError
from pyvmm.guest.boot import START
from pyvmm.guest.elf import is_elf
from pyvmm.guest.identify import kind_of, refusal
from pyvmm.guest.image import Image, elf_image, flat_image, read_guest_file
from pyvmm.guest.shipped import built_guest, find_guest, guests_dir
from pyvmm.guest.source import check_source, may_say_its_width, read_source
from pyvmm.guest.tools import call, named, path_of
from pyvmm.kvm.arguments import MOST_U32, need, number, shown
from pyvmm.kvm.memfd import Memfd
from pyvmm.printable import printable

_ASSEMBLY = (".S", ".s", ".asm")
MODES = ("real",)


def load_guest(
    name: str | os.PathLike[str],
    parameters: Mapping[str, int] | None = None,
    mode: str | None = None,
) -> Image:
    """An image from assembly, a flat binary or an ELF file, told apart by name and content.

    ``parameters`` become symbols of an assembly file. What cannot be a real-mode guest is
    refused with what it is, unless ``mode`` is "real": then it is run all the same. Raises
    :class:`GuestError`, and :class:`ConfigurationError` for another mode.
    """
    if mode is not None and mode not in MODES:
        raise ConfigurationError(f"mode {mode!r}", "pyvmm runs real-mode guests only", "use real")
    need("guest", name, str, bytes, os.PathLike)
    name = os.fsdecode(name)
    if not name:
        raise GuestError("guest", "its name is empty", "name a file")
    if name == "-":
        raise GuestError(
            "-", "no guest is read from standard input", "name a file (./- for one of that name)"
        )
    path = find_guest(name)
    data = read_guest_file(path)
    if path.suffix in _ASSEMBLY:
        if not parameters and (built := built_guest(path)) is not None:
            return elf_image(name, read_guest_file(built))
        source = read_source(path, data, mode)
        image = _assemble(path, str(path.absolute()), source, parameters)
        if mode is None:
            _check_width(path, source, parameters, image)
        return image
    kind = kind_of(path, data, len(data))
    if kind is not None and (mode is None or not kind.is_loadable):
        raise refusal(path, kind)
    if parameters:
        raise GuestError(name, "only an assembly file takes parameters", "drop --param")
    return elf_image(name, data) if is_elf(data) else flat_image(name, data)


def assemble(source: str, parameters: Mapping[str, int] | None = None) -> Image:
    """An image from assembly text (GNU as syntax, begin it with ``.code16``)."""
    if not isinstance(source, str):
        raise WrongTypeError("source", f"{type(source).__name__} is no str of assembly")
    check_source("guest", source)
    image = _assemble(Path("guest"), "-", source, parameters)
    _check_width(Path("guest"), source, parameters, image)
    return image


def _check_width(
    path: Path, source: str, parameters: Mapping[str, int] | None, image: Image
) -> None:
    """Refuse code that nobody said to be of 16 bits, and that is other code with 16 bits."""
    if may_say_its_width(source):
        return
    try:
        as_meant = _assemble(path, "-", f".code16\n{source}", parameters).segments
    except GuestError:
        as_meant = ()
    if as_meant != image.segments:
        cause = "it has no .code16, so as makes 32-bit code of it, which is other code in real mode"
        raise GuestError(str(path), cause, "begin it with .code16")


def _assemble(
    path: Path, argument: str, source: str, parameters: Mapping[str, int] | None
) -> Image:
    """Assemble and link ``source`` at 0x7C00, which as reads from ``argument`` ("-": its input).

    The error's cause is what as or ld say, with the name that the user gave to the file.
    """
    symbols = [f"--defsym={symbol}={value}" for symbol, value in _checked(parameters).items()]
    # One line, whatever the file is called.
    name = printable(str(path))
    macros = guests_dir() / "include" / "pyvmm.inc"
    # Memory files: whatever ends this process, no temporary file stays behind.
    with Memfd("guest.o", 0) as unlinked, Memfd("guest.elf", 0) as linked:
        include = ["-I", str(path.parent), "-I", str(macros.parent)]
        assembler = ["as", "-g", "--32", *include, *symbols, "-o", path_of(unlinked), argument]
        said = call(path, assembler, source if argument == "-" else "", unlinked)
        if said:
            from pyvmm.guest.rejected import why_not_assembled

            raise why_not_assembled(name, named(said, argument, name), source, macros)
        layout = ["-m", "elf_i386", "-N", f"-Ttext={START:#x}", f"--entry={START:#x}"]
        quiet = ["--build-id=none", "-z", "noexecstack"]
        linker = ["ld", *layout, *quiet, "-o", path_of(linked), path_of(unlinked)]
        said = call(path, linker, "", unlinked, linked)
        if said:
            from pyvmm.guest.rejected import why_not_linked

            raise why_not_linked(name, named(said, argument, name), source, macros)
        size = os.fstat(linked.fileno()).st_size
        elf = os.pread(linked.fileno(), size, 0)
        return replace(elf_image(path.name, elf), elf=elf)


def _checked(parameters: Mapping[str, int] | None) -> Mapping[str, int]:
    """The parameters. Raises :class:`WrongTypeError` and :class:`ConfigurationError`."""
    if parameters is None:
        return {}
    need("parameters", parameters, Mapping)
    for symbol, value in parameters.items():
        need("parameter's name", symbol, str)
        if not re.fullmatch(r"[A-Za-z_.$][\w.$]*", symbol, re.ASCII):
            raise ConfigurationError(f"parameter {shown(symbol)}", "its name is no symbol")
        number(f"parameter {symbol}", value, -1 << 31, MOST_U32)
    return parameters
