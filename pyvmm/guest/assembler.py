"""Assembling guests with GNU as and ld."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pyvmm.errors import GuestError
from pyvmm.guest.boot import START
from pyvmm.guest.image import Image, elf_image, flat_image, is_elf, read_guest_file

_ASSEMBLY = (".S", ".s", ".asm")
_TIMEOUT_S = 60


def guests_dir() -> Path:
    """Where the guests that come with pyvmm are: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "guests"
    return inside if inside.is_dir() else package.parent / "guests"


def find_guest(name: str) -> Path:
    """The file called ``name``, or the guest of that name that comes with pyvmm."""
    path = Path(name)
    if not path.exists():
        shipped = guests_dir() / path.name
        if str(path.parent) in (".", "guests") and shipped.exists():
            return shipped
    return path


def load_guest(name: str, parameters: Mapping[str, int] | None = None) -> Image:
    """An image from assembly, a flat binary or an ELF file, told apart by name and content.

    ``parameters`` become symbols of an assembly file. Raises :class:`GuestError`.
    """
    path = find_guest(name)
    data = read_guest_file(path)
    if path.suffix in _ASSEMBLY:
        return assemble_file(path, parameters or {})
    if parameters:
        raise GuestError(name, "only an assembly file takes parameters", "drop --param")
    return elf_image(name, data) if is_elf(data) else flat_image(name, data)


def assemble(source: str, parameters: Mapping[str, int] | None = None) -> Image:
    """An image from assembly text (GNU as syntax, begin it with ``.code16``)."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as folder:
        path = Path(folder, "guest.S")
        path.write_text(source)
        return assemble_file(path, parameters or {})


def assemble_file(path: Path, parameters: Mapping[str, int]) -> Image:
    """Assemble and link a file at 0x7C00. The assembler's own message is the error's cause."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as folder:
        unlinked, linked = Path(folder, "guest.o"), Path(folder, "guest.elf")
        symbols = [f"--defsym={name}={value}" for name, value in parameters.items()]
        include = ["-I", str(path.parent), "-I", str(guests_dir() / "include")]
        command = ["as", "--32", *include, *symbols, "-o", str(unlinked), str(path.absolute())]
        _call(path, command, "not assembling")
        layout = ["-m", "elf_i386", "-N", f"-Ttext={START:#x}", f"--entry={START:#x}"]
        quiet = ["--build-id=none", "-z", "noexecstack"]
        _call(path, ["ld", *layout, *quiet, "-o", str(linked), str(unlinked)], "not linking")
        return elf_image(path.name, linked.read_bytes())


def _call(path: Path, command: list[str], what: str) -> None:
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise GuestError(
            str(path), f"{command[0]} is not installed", "install binutils (apt install binutils)"
        ) from None
    except subprocess.TimeoutExpired:
        raise GuestError(str(path), f"{command[0]} took more than {_TIMEOUT_S} s") from None
    if result.returncode != 0:
        raise GuestError(str(path), f"{what}: {_first_message(result.stderr)}")


def _first_message(stderr: str) -> str:
    """The first line that says what is wrong, and how many more there are."""
    lines = [line for line in stderr.splitlines() if "Error:" in line or "error:" in line.lower()]
    lines = lines or [line for line in stderr.splitlines() if line.strip()] or ["no message"]
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return lines[0].strip() + more
