"""Linking the one object file of a guest in assembly, with GNU ld."""

from __future__ import annotations

import os
from pathlib import Path

from pyvmm.guest.layout import REAL, Layout
from pyvmm.guest.tools import call, path_of
from pyvmm.kvm.memfd import Memfd

_OPTIONS = ["-N", "--build-id=none", "-z", "noexecstack"]


def link(path: Path, emulation: str, layout: Layout, unlinked: Memfd, linked: Memfd) -> str:
    """Link at the layout's origin for the guest at ``path``; what ld said when it failed, or "".

    The entry is the first byte in real mode, as of a boot sector. In the others it is the global
    symbol _start, or the first byte of a guest that has none.
    """
    origin = f"{layout.origin:#x}"
    command = ["ld", "-m", emulation, *_OPTIONS, f"-Ttext={origin}", "-o", path_of(linked)]
    if layout.mode == REAL.mode:
        command += [f"--entry={origin}", path_of(unlinked)]
        return call(path, command, "", unlinked, linked)
    with Memfd("entry.ld", 0) as script:
        os.pwrite(script.fileno(), f"PROVIDE(_start = {origin});\n".encode(), 0)
        command += ["--entry=_start", path_of(unlinked), path_of(script)]
        return call(path, command, "", unlinked, linked, script)
