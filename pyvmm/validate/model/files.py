"""Where scripts are: the one that is being played, and those that failed."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from pyvmm.validate.model.script import Script, to_text

# Of the process that all workers were forked from.
_RUN = os.getpid()


def running(case: str) -> Path:
    """The file of the script that a case plays now. It stays when the process dies.

    In the lab's results folder it stays even when the kernel dies.
    """
    folder = os.environ.get("PYVMM_RESULTS") or tempfile.gettempdir()
    return Path(folder, f"pyvmm-running-{_RUN}-{word(case)}.json")


def left_behind(case: str) -> str:
    """What to say of a case whose process died: where the script is that it played, if any."""
    there = running(case)
    try:
        text = there.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    kept = _write(f"{word(case)}-{_RUN}", text)
    there.unlink(missing_ok=True)
    return f"the script that it played is in {kept}" if kept else ""


def forget(case: str) -> None:
    """The case was ended by us: its script is of no interest."""
    with suppress(OSError):
        running(case).unlink(missing_ok=True)


def save(case: str, script: Script) -> str:
    """Keep a script that failed; where, or "" if nowhere."""
    return _write(f"{word(case)}-{script.seed}", to_text(script))


def _write(name: str, text: str) -> str:
    """Into the lab's results folder, or the current one, or the one for temporary files."""
    for folder in (os.environ.get("PYVMM_RESULTS"), ".", tempfile.gettempdir()):
        if not folder:
            continue
        path = Path(folder, f"pyvmm-replay-{name}.json")
        with suppress(OSError):
            path.write_text(text, encoding="utf-8")
            return str(path)
    return ""


def word(case: str) -> str:
    """What stands for a case in the names of its files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", case).strip("-")
