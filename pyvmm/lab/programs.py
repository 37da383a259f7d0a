"""The programs that the lab calls, each with the package of Debian and Ubuntu that has it."""

from __future__ import annotations

import shutil

from pyvmm.lab.errors import LabError

QEMU = "qemu-system-x86_64"

_PACKAGES = {
    QEMU: "qemu-system-x86",
    "busybox": "busybox-static",
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "tar": "tar",
    "xz": "xz-utils",
    "bzip2": "bzip2",
    "zstd": "zstd",
    "lz4": "lz4",
    "patch": "patch",
    "rsync": "rsync",
    "git": "git",
    "gcov": "gcc",
}
#: What make calls has headers of its own to compile with.
_HEADERS = ("libc6-dev", "libelf-dev")

PACKAGES = (*_PACKAGES.values(), *_HEADERS)
#: For a kernel; its selftests take their headers by `make headers_install`, which wants rsync.
OF_A_BUILD = ("make", "gcc", "ld", "flex", "bison", "bc", "perl", "tar", "xz", "lz4", "patch")
OF_SELFTESTS = (*OF_A_BUILD, "rsync")


def require(*names: str) -> None:
    """A LabError that names the programs which are not here, and their packages."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise LabError(", ".join(missing), "not found", remedy(*missing))


def remedy(*names: str) -> str:
    """How to come by these programs."""
    return f"run 'pyvmm lab setup' or install {' '.join(_PACKAGES[name] for name in names)}"
