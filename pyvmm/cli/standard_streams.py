"""Standard streams that a command can rely on."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Give closed standard streams /dev/null, lest /dev/kvm or a log becomes fd 1."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            setattr(sys, name, open(fd, mode))  # noqa: SIM115
    # A guest may print what the terminal's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
