"""Assembling guests with GNU as and ld."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pyvmm.errors import ConfigurationError, GuestError, KvmError, WrongTypeError
from pyvmm.guest.boot import START
from pyvmm.guest.elf import is_elf
from pyvmm.guest.identify import kind_of, refusal
from pyvmm.guest.image import Image, elf_image, flat_image, read_guest_file
from pyvmm.guest.source import check_source, may_say_its_width, read_source
from pyvmm.kvm.arguments import MOST_U32, need, number, shown
from pyvmm.kvm.memfd import Memfd
from pyvmm.printable import printable

_ASSEMBLY = (".S", ".s", ".asm")
MODES = ("real",)
_TIMEOUT_S = 60
# A line of assembly can ask for gigabytes, of memory and of the file that as writes. By the
# shell's letters: what is limited, the most that there may be, and the shell's unit of it.
# A shell sets them because Python's own code between fork and exec is not safe beside threads.
_MOST = {"v": (resource.RLIMIT_AS, 1 << 30, 1024), "f": (resource.RLIMIT_FSIZE, 32 << 20, 512)}


def guests_dir() -> Path:
    """Where the guests that come with pyvmm are: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "guests"
    return inside if inside.is_dir() else package.parent / "guests"


def find_guest(name: str) -> Path:
    """The file called ``name``, or the guest of that name that comes with pyvmm."""
    path = Path(name)
    if not os.path.exists(path):
        shipped = guests_dir() / path.name
        if str(path.parent) in (".", "guests") and os.path.exists(shipped):
            return shipped
    return path


def _built_guest(path: Path) -> Path | None:
    """What was assembled with the installed package, for a machine without binutils."""
    built = guests_dir() / "built" / f"{path.stem}.elf"
    shipped = path.parent == guests_dir() and built.is_file()
    return built if shipped and shutil.which("as") is None else None


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
        if not parameters and (built := _built_guest(path)) is not None:
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
        assembler = ["as", "-g", "--32", *include, *symbols, "-o", _path_of(unlinked), argument]
        said = _call(path, assembler, source if argument == "-" else "", unlinked)
        if said:
            from pyvmm.guest.rejected import why_not_assembled

            raise why_not_assembled(name, _named(said, argument, name), source, macros)
        layout = ["-m", "elf_i386", "-N", f"-Ttext={START:#x}", f"--entry={START:#x}"]
        quiet = ["--build-id=none", "-z", "noexecstack"]
        linker = ["ld", *layout, *quiet, "-o", _path_of(linked), _path_of(unlinked)]
        said = _call(path, linker, "", unlinked, linked)
        if said:
            from pyvmm.guest.rejected import why_not_linked

            raise why_not_linked(name, _named(said, argument, name), source, macros)
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


def _named(said: str, argument: str, name: str) -> str:
    """What as or ld said, with the user's ``name`` for the file that they were given."""
    if argument != "-":
        return said.replace(argument, name)
    return re.sub(r"[^:\n]*\{standard input\}", lambda _: name, said)


def _path_of(file: Memfd) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def _call(path: Path, command: list[str], text: str, *files: Memfd) -> str:
    """What the command said when it failed, and "" when it did not."""
    if shutil.which(command[0]) is None:
        raise GuestError(
            str(path), f"{command[0]} is not installed", "install binutils (apt install binutils)"
        )
    lowered = [letter for letter in _MOST if _lowers(letter)]
    # What is preloaded here is for this process, and a sanitizer needs more than these limits.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["LC_ALL"] = "C"  # its messages are read here
    limits = [f"ulimit -S -{each} {_MOST[each][1] // _MOST[each][2]}" for each in lowered]
    try:
        result = subprocess.run(
            ["/bin/sh", "-c", "; ".join([*limits, 'exec "$@"']), "sh", *command],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            pass_fds=[file.fileno() for file in files],
            env=environment,
        )
    except OSError as error:
        raise KvmError(command[0], error.errno or 0, f"for {path}") from None
    except subprocess.TimeoutExpired:
        raise GuestError(str(path), f"{command[0]} took more than {_TIMEOUT_S} s") from None
    if result.returncode == -signal.SIGXFSZ and "f" in lowered:
        raise GuestError(str(path), f"what {command[0]} makes of it is too large for a guest")
    if result.returncode < 0:
        number = -result.returncode
        raise GuestError(str(path), f"{command[0]} was ended by signal {number}", _limits(number))
    return (result.stderr or "no message") if result.returncode else ""


def _lowers(letter: str) -> bool:
    """Whether this process leaves as more than it gets."""
    limit, most, _ = _MOST[letter]
    soft, _ = resource.getrlimit(limit)
    return soft == resource.RLIM_INFINITY or soft > most


def _limits(number: int) -> str:
    """Which limit may be behind a signal."""
    limits: dict[int, str] = {
        signal.SIGXFSZ: "the size of files (ulimit -f)",
        signal.SIGXCPU: "CPU time",
    }
    return f"raise the limit of {limits[number]}" if number in limits else ""
