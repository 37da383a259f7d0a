"""From an address in a guest to the line of its source."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from pyvmm.errors import PyvmmError
from pyvmm.guest.image import Image
from pyvmm.kvm.memfd import Memfd

_TIMEOUT_S = 10
_DISCRIMINATOR = re.compile(r" \(discriminator \d+\)$")


def source_line(image: Image, address: int) -> tuple[str, int] | None:
    """The file's name and the line that put something at ``address``; None if unknown.

    Asks binutils' addr2line, so it is for diagnoses. Only images that pyvmm assembled
    have a line table.
    """
    if not image.elf:
        return None
    try:
        with Memfd("guest.elf", len(image.elf)) as file:
            os.pwrite(file.fileno(), image.elf, 0)
            answer = subprocess.run(
                ["addr2line", "-e", f"/proc/self/fd/{file.fileno()}", hex(address)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=True,
                pass_fds=[file.fileno()],
            ).stdout
    except (PyvmmError, OSError, subprocess.SubprocessError):
        return None
    # "/path/guest.S:12" or "/path/guest.S:12 (discriminator 1)"; "??:0" when unknown.
    name, _, line = _DISCRIMINATOR.sub("", answer.strip()).rpartition(":")
    return (Path(name).name, int(line)) if line.isdigit() and int(line) > 0 else None
