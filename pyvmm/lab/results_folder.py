"""The folder of the host that is writable in a lab, and how much it may grow."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pyvmm.lab.errors import NAME_A_FOLDER, LabUsageError

#: How often the folder is measured, in seconds.
_MEASURE_SECONDS = 0.2


def results_folder(given: Path | str | None) -> Path | None:
    """The folder, made if need be. A LabUsageError for one that cannot be it."""
    if given is None:
        return None
    folder = Path(given).resolve()
    if "\n" in str(folder) or folder == Path("/"):
        raise LabUsageError(f"results folder {str(folder)!r}", "want a folder of its own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabUsageError(
            f"results folder {folder}", str(error.strerror), NAME_A_FOLDER
        ) from None
    if not os.access(folder, os.W_OK):
        raise LabUsageError(f"results folder {folder}", "not writable", NAME_A_FOLDER)
    return folder


class Room:
    """Watches how much a folder grows, at most a tenth of the time."""

    def __init__(self, folder: Path | None, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._next_look = 0.0
        self._before = _size(folder) if folder is not None else 0

    def seconds_to_next_look(self) -> float:
        if self._folder is None:
            return float("inf")
        return max(0.0, self._next_look - time.monotonic())

    def used_up(self) -> bool:
        started = time.monotonic()
        if self._folder is None or started < self._next_look:
            return False
        used = _size(self._folder) - self._before
        ended = time.monotonic()
        self._next_look = ended + max(_MEASURE_SECONDS, 9 * (ended - started))
        return used > self._limit


def _size(folder: Path) -> int:
    """Bytes on disk of everything in a folder."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:  # removed meanwhile
                continue
    return total
