"""The guests that come with pyvmm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Folders of the guests that come with pyvmm, by how a user names the file's folder.
_SHIPPED_AS = {".": (".", "long"), "guests": (".",), "guests/long": ("long",)}


def guests_dir() -> Path:
    """Where the guests that come with pyvmm are: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "guests"
    return inside if inside.is_dir() else package.parent / "guests"


def find_guest(name: str) -> Path:
    """The file called ``name``, or the guest of that name that comes with pyvmm."""
    path = Path(name)
    if not os.path.exists(path):
        for folder in _SHIPPED_AS.get(str(path.parent), ()):
            if os.path.exists(shipped := guests_dir() / folder / path.name):
                return shipped
    return path


def built_guest(path: Path) -> Path | None:
    """What was assembled with the installed package, for a machine without binutils."""
    built = guests_dir() / "built" / f"{path.stem}.elf"
    shipped = path.parent == guests_dir() and built.is_file()
    return built if shipped and shutil.which("as") is None else None
