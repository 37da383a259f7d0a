"""Assembling guests with GNU as and ld."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pyvmm.errors import ConfigurationError, GuestError, WrongTypeError
from pyvmm.guest import preprocessor
from pyvmm.guest.elf import is_elf
from pyvmm.guest.elf_kind import check_code
from pyvmm.guest.identify import kind_of, refusal
from pyvmm.guest.image import (
    Image,
    elf_image,
    flat_image,
    read_guest_file,
    read_standard_input,
)
from pyvmm.guest.kind import Kind
from pyvmm.guest.layout import LAYOUTS, LONG, REAL, Layout
from pyvmm.guest.linking import link
from pyvmm.guest.nasm import has_nasm
from pyvmm.guest.shipped import built_guest, find_guest, guests_dir
from pyvmm.guest.source import check_nasm, may_say_its_width, read_source, read_text
from pyvmm.guest.text import MAX_SOURCE, text_of
from pyvmm.guest.tools import call, named, path_of
from pyvmm.kvm.arguments import MOST_U32, need, number, shown
from pyvmm.kvm.memfd import Memfd
from pyvmm.printable import printable

STANDARD_INPUT = Path("<stdin>")
ASSEMBLY, C, NASM = "assembly", "C", "NASM"
_PREPROCESSED = ".sx"
_ASSEMBLY = (".S", ".s", ".asm", _PREPROCESSED)
# So much of a text is looked at.
_HEAD = 1 << 16
# The magic number that begins the header, as assemblers write it.
_MULTIBOOT = re.compile(rb"\b0x1badb002\b|\b1badb002h\b", re.IGNORECASE)
# What a boot loader has that looks for that number itself.
_SHORT = re.compile(rb"\.code16|\bbits\s+16\b|\buse16\b", re.IGNORECASE)
# By mode: the widths of as and ld, and of the code.
_TOOLS = {
    "real": ("--32", "elf_i386", 16),
    "protected": ("--32", "elf_i386", 32),
    "long": ("--64", "elf_x86_64", 64),
}


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A guest's file; ``name`` is what the user calls it."""

    name: str
    path: Path
    data: bytes

    @property
    def argument(self) -> str:
        """What a compiler is given to read it; "-" for its own standard input."""
        return "-" if self.path == STANDARD_INPUT else str(self.path.absolute())

    def language(self) -> str:
        """In which language it is source: assembly (GNU as), C or NASM; "" for anything else."""
        suffix = self.path.suffix
        if suffix == ".nasm" or (suffix == ".asm" and has_nasm() and self._is_for_nasm()):
            return NASM
        if suffix in _ASSEMBLY:
            return ASSEMBLY
        if suffix == ".c":
            return C
        return self._language_by_content() if self.path == STANDARD_INPUT else ""

    def _is_for_nasm(self) -> bool:
        from pyvmm.guest.dialects import dialect

        found = dialect(self.data[:_HEAD].decode(errors="replace"), self.name)
        return found is not None and found.name == NASM

    def _language_by_content(self) -> str:
        is_binary = is_elf(self.data) or len(self.data) > MAX_SOURCE
        text = None if is_binary else text_of(self.data)
        if text is None:
            return ""
        from pyvmm.guest.languages import language_of

        kind = language_of(text, self.name, "")
        languages = {"C source": C, "GNU assembly under another name": ASSEMBLY, "text": ASSEMBLY}
        return NASM if kind.name.startswith(NASM) else languages.get(kind.name, "")

    def kind(self) -> Kind | None:
        """What it is, by its content; None if it may be a real-mode guest, or is other assembly."""
        language = self.language()
        if language == C:
            return Kind("C source", mode=LONG.mode)
        head = self.data[:_HEAD]
        if language and _MULTIBOOT.search(head) and not _SHORT.search(head):
            return Kind("assembly with a multiboot header", platform="multiboot")
        return None if language else kind_of(self.path, self.data, len(self.data))


def read_guest(name: str | os.PathLike[str]) -> GuestFile:
    """The file called ``name``, or the guest of that name that comes with pyvmm; "-" is standard
    input.

    Raises :class:`GuestError`.
    """
    need("guest", name, str, bytes, os.PathLike)
    name = os.fsdecode(name)
    if not name:
        raise GuestError("guest", "its name is empty", "name a file")
    if name == "-":
        return GuestFile(str(STANDARD_INPUT), STANDARD_INPUT, read_standard_input())
    path = find_guest(name)
    return GuestFile(name, path, read_guest_file(path))


def image_of(
    file: GuestFile,
    layout: Layout,
    parameters: Mapping[str, int] | None = None,
    *,
    is_asked: bool = False,
    make: Callable[[str, bytes], Image] | None = None,
) -> Image:
    """An image of the file for a world with this layout.

    ``make(name, data)`` makes it of a binary, one that was assembled too; by default an ELF file
    is loaded as it says, and anything else as the layout does.
    ``is_asked``: the user has asked for that world, so that source which looks like something
    else is taken. Raises :class:`GuestError`.
    """
    language = file.language()
    if language:
        image = _image_of_source(file, language, layout, parameters, is_asked)
        return _remade(image, make)
    if parameters:
        raise GuestError(file.name, "only source takes parameters", "drop --param")
    if make is not None:
        return make(file.name, file.data)
    if not is_elf(file.data):
        return flat_image(file.name, file.data, layout)
    return elf_image(file.name, file.data, layout.mode)


def _image_of_source(
    file: GuestFile,
    language: str,
    layout: Layout,
    parameters: Mapping[str, int] | None,
    is_asked: bool,
) -> Image:
    path, data = file.path, file.data
    symbols = _checked(parameters)
    if language == C:
        from pyvmm.guest.compiler import compile_guest

        source = read_text(path, data)
        return compile_guest(path, file.argument, source, symbols, layout.mode)
    if language == NASM:
        from pyvmm.guest.nasm import assemble_nasm

        source = read_text(path, data)
        check_nasm(str(path), source, layout.mode, is_asked)
        return assemble_nasm(path, file.argument, source, symbols, layout)
    if not parameters and layout == REAL and (built := built_guest(path)) is not None:
        return elf_image(file.name, read_guest_file(built))
    source = read_source(path, data, layout.mode, is_asked)
    image = _assemble(path, file.argument, source, parameters, layout)
    if not is_asked and layout.mode == REAL.mode:
        _check_width(path, source, parameters, image)
    return image


def _remade(image: Image, make: Callable[[str, bytes], Image] | None) -> Image:
    """The same of the ELF file, or the flat binary, that was made of source."""
    if make is None:
        return image
    made = make(image.name, image.elf or image.segments[0].data)
    start = made.segments[0].gpa
    # Flat code of NASM's has an address of its own.
    return replace(made, elf=image.elf) if image.elf or made.entry != start else image


def check_kind(file: GuestFile, mode: str, *, is_asked: bool) -> None:
    """Refuse a file that is no guest of the guest protocol in a mode, by what it is.

    ``is_asked``: the user has asked for that mode, so that what looks like something else is
    taken, where it can be loaded. Raises :class:`GuestError`.
    """
    if file.language():  # it is compiled for the mode
        return
    kind = file.kind()
    has_place = kind is None or kind.is_loadable or (mode != REAL.mode and kind.platform != "")
    if kind is not None and kind.mode != mode and not (is_asked and has_place):
        raise refusal(file.path, kind, mode)
    if is_elf(file.data):
        check_code(file.name, file.data, mode)


def load_guest(
    name: str | os.PathLike[str],
    parameters: Mapping[str, int] | None = None,
    mode: str | None = None,
) -> Image:
    """An image from assembly, C, a flat binary or an ELF file, told apart by name and content.

    ``parameters`` become symbols of assembly and macros of C. Without ``mode`` an ELF file chooses
    its own, C is of long mode and all else of real mode; what can be no guest is then refused
    with what it is.
    Raises :class:`GuestError`, and :class:`ConfigurationError` for a mode that there is not.
    """
    if mode is not None and mode not in LAYOUTS:
        raise ConfigurationError(f"mode {mode!r}", "there is no such mode", "use real or long")
    file = read_guest(name)
    kind = file.kind() if mode is None else None
    chosen = mode or (kind.mode if kind is not None else "") or REAL.mode
    check_kind(file, chosen, is_asked=mode is not None)
    return image_of(file, LAYOUTS[chosen], parameters, is_asked=mode is not None)


def assemble(
    source: str, parameters: Mapping[str, int] | None = None, mode: str = REAL.mode
) -> Image:
    """An image from assembly text in GNU as syntax; for real mode begin it with ``.code16``."""
    if not isinstance(source, str):
        raise WrongTypeError("source", f"{type(source).__name__} is no str of assembly")
    if mode not in LAYOUTS:
        raise ConfigurationError(f"mode {mode!r}", "there is no such mode", "use real or long")
    image = _assemble(Path("guest"), "-", source, parameters, LAYOUTS[mode])
    if mode == REAL.mode:
        _check_width(Path("guest"), source, parameters, image)
    return image


def _check_width(
    path: Path, source: str, parameters: Mapping[str, int] | None, image: Image
) -> None:
    """Refuse code that nobody said to be of 16 bits, and that is other code with 16 bits."""
    if may_say_its_width(source):
        return
    try:
        as_meant = _assemble(path, "-", f".code16\n{source}", parameters, REAL).segments
    except GuestError:
        as_meant = ()
    if as_meant != image.segments:
        cause = "it has no .code16, so as makes 32-bit code of it, which is other code in real mode"
        raise GuestError(str(path), cause, "begin it with .code16")


def _assemble(
    path: Path,
    argument: str,
    source: str,
    parameters: Mapping[str, int] | None,
    layout: Layout,
) -> Image:
    """Assemble and link ``source`` as ``layout`` says; as reads it from ``argument`` ("-": input).

    The error's cause is what as or ld say, with the name that the user gave to the file.
    """
    wanted = _checked(parameters)
    symbols = [f"--defsym={symbol}={value}" for symbol, value in wanted.items()]
    width, emulation, bits = _TOOLS[layout.mode]
    if bits > 16:
        symbols.append(f"--defsym=PYVMM_BITS={bits}")  # pyvmm.inc asks for it
    # One line, whatever the file is called.
    name = printable(str(path))
    macros = guests_dir() / "include" / "pyvmm.inc"
    # Memory files: whatever ends this process, no temporary file stays behind.
    with Memfd("guest.o", 0) as unlinked, Memfd("guest.elf", 0) as linked:
        include = ["-I", str(path.parent), "-I", str(macros.parent)]
        given, text = argument, source if argument == "-" else ""
        if path.suffix == _PREPROCESSED or preprocessor.is_for_it(source):
            macro = [
                f"-D{each}={value}"
                for each, value in wanted.items()
                if preprocessor.mentions(source, each)
            ]
            given, text = "-", _preprocess(path, argument, source, [f"-m{bits}", *include, *macro])
        assembler = ["as", "-g", width, *include, *symbols, "-o", path_of(unlinked), given]
        said = call(path, assembler, text, unlinked)
        if said:
            from pyvmm.guest.rejected import why_not_assembled

            raise why_not_assembled(name, named(said, argument, name), source, macros)
        if said := link(path, emulation, layout, unlinked, linked):
            from pyvmm.guest.rejected import why_not_linked

            raise why_not_linked(name, named(said, argument, name), source, macros)
        size = os.fstat(linked.fileno()).st_size
        elf = os.pread(linked.fileno(), size, 0)
        return replace(elf_image(path.name, elf, layout.mode), elf=elf)


def _preprocess(path: Path, argument: str, source: str, options: list[str]) -> str:
    """What the C preprocessor makes of assembly, with the lines that each part came from."""
    # Names that a guest may have for something else.
    undefined = ["-Ulinux", "-Uunix", "-Ui386"]
    with Memfd("guest.s", 0) as output:
        language = ["-E", "-x", "assembler-with-cpp", "-fmax-errors=100"]
        command = ["gcc", *language, *undefined, *options, "-o", path_of(output), argument]
        said = call(path, command, source if argument == "-" else "", output)
        if said:
            from pyvmm.guest.rejected import why_not_preprocessed

            name = printable(str(path))
            raise why_not_preprocessed(name, named(said, argument, name))
        size = os.fstat(output.fileno()).st_size
        return os.pread(output.fileno(), size, 0).decode(errors="replace")


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
