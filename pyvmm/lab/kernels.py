"""Kernels that can be booted: those that were built, by name, and any bzImage."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvmm.json_file import read_own
from pyvmm.lab.cache import cache_folder, make_folder, unusable_cache
from pyvmm.lab.errors import LabError, LabUsageError

_XLF_KERNEL_64 = 1 << 0  # xloadflags of asm/bootparam.h
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel. `source` and `patches` say what it was built from, if it is known;
    the patches themselves are kept beside the image. It `counts` what KVM executes, or not, and
    watches itself for what `debug` names."""

    name: str
    image: Path
    release: str
    source: str = ""
    patches: tuple[str, ...] = ()
    counts: bool = False
    debug: tuple[str, ...] = ()

    @property
    def notes(self) -> Path:
        """Where the compiler's notes are that its counters are read with, if it `counts`."""
        return self.image.parent / "gcno"


def check_name(name: str) -> str:
    """`name`, if a kernel may be called that."""
    if not _NAME.fullmatch(name):
        cause = "want letters, digits and . _ + - only, 64 at most"
        raise LabUsageError(f"kernel name {name!r:.80}", cause)
    return name


def read_image(path: Path) -> Kernel:
    """The kernel in a bzImage, by the header of Documentation/arch/x86/boot.rst.

    Of one that the lab built all is known that is known by its name.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(0x10000)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        remedy = "name a bzImage that can be read"
        raise LabUsageError(f"kernel {path}", str(error.strerror), remedy) from None
    if start[0x1FE:0x200] != b"\x55\xaa" or start[0x202:0x206] != b"HdrS":
        cause = "not a bzImage: it has no Linux boot header"
        raise LabUsageError(
            f"kernel {path}", cause, "name what make writes to arch/x86/boot/bzImage"
        )

    def number(offset: int, size: int) -> int:
        return int.from_bytes(start[offset : offset + size], "little")

    # setup_sects, at least one sector more, and syssize in units of 16 bytes
    wanted = (number(0x1F1, 1) + 1) * 512 + number(0x1F4, 4) * 16
    if wanted > size:
        raise LabUsageError(f"kernel {path}", f"cut off: {size} bytes of {wanted}")
    if number(0x206, 2) >= 0x20C and not number(0x236, 2) & _XLF_KERNEL_64:
        raise LabUsageError(f"kernel {path}", "not a 64-bit kernel")
    version = number(0x20E, 2) + 0x200
    release = start[version : version + 128].split(b"\0")[0].split(b" ")[0]
    image = path.resolve()
    built = load_built(str(path), image.parent)
    if built is not None and built.image == image:
        return built
    return Kernel(str(path), image, release.decode(errors="replace"))


def find_built(name: str) -> Kernel | None:
    """The kernel of that name, if it was built and is whole."""
    return load_built(name, cache_folder() / "names" / check_name(name))


def built_kernels() -> Iterator[Kernel]:
    """The kernels that have a name, by name."""
    try:
        names = os.listdir(cache_folder() / "names")
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable_cache(cache_folder() / "names", error) from None
    for name in sorted(names):
        if kernel := find_built(name):
            yield kernel


def give_name(name: str, folder: Path) -> Kernel:
    """Let `name` stand for the kernel in `folder`, a folder of the cache's kernels/."""
    names = make_folder(cache_folder() / "names")
    link = names / f".{check_name(name)}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("..") / "kernels" / folder.name)
    link.replace(names / name)  # at once, for whoever looks at the same time
    kernel = load_built(name, names / name)
    if kernel is None:
        raise LabError(f"kernel {name!r}", f"{folder} is damaged", "remove it")
    return kernel


def load_built(name: str, folder: Path) -> Kernel | None:
    """The kernel that was built in a folder; None for one that is damaged, or not whole yet."""

    def make(facts: dict[str, Any]) -> Kernel:
        return Kernel(
            name,
            (folder / "bzImage").resolve(),
            facts["release"],
            facts["source"],
            tuple(facts["patches"]),
            facts.get("coverage", False),
            tuple(facts.get("debug", ())),
        )

    kernel = read_own(folder / "kernel.json", make)
    return kernel if kernel and kernel.image.exists() else None


def last_log() -> Path:
    """Where the kernel log of the last lab is kept."""
    return cache_folder() / "kernel.log"


def save_last_log(console: Path) -> None:
    """Keep a copy of a console's file as the last log, as far as that is possible."""
    try:
        make_folder(cache_folder())
        copy = last_log().with_suffix(f".{os.getpid()}")
        shutil.copyfile(console, copy)
        copy.replace(last_log())
    except OSError:
        pass  # a log that cannot be kept is no reason to fail
