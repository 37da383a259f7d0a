"""Which lines of KVM an exploration has executed, on kernels that count them.

``executed.json`` in the folder has ``pyvmm-executed`` (1), ``rounds`` (labs that counted),
``quiet`` (how many of the last ones executed nothing new), and ``kernels``: by the SHA-256 of each
image, the numbers of the lines by file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyvmm.json_file import read_own
from pyvmm.lab.cache import write_whole
from pyvmm.lab.coverage import Coverage
from pyvmm.lab.errors import LabUsageError

FORMAT = 1
_FILE = "executed.json"


class Executed:
    """Begun in ``folder`` if there is nothing. Raises :class:`LabUsageError` for a damaged file."""

    def __init__(self, folder: Path) -> None:
        self.rounds = 0
        self.quiet = 0
        self._path = folder / _FILE
        self._kernels: dict[str, dict[str, set[int]]] = {}
        if self._path.exists() and not read_own(self._path, self._take_over):
            raise LabUsageError(
                f"corpus {self._path}", "it is damaged, or of another pyvmm", "remove it"
            )

    @property
    def lines(self) -> int:
        """How many lines were executed, on all kernels."""
        return sum(len(lines) for files in self._kernels.values() for lines in files.values())

    def take(self, kernel: str, coverage: Coverage) -> int:
        """What one more lab executed on a kernel; how many lines of it are new."""
        before = self.lines
        files = self._kernels.setdefault(kernel, {})
        for name, each in coverage.items():
            executed = {number for number, count in each.counts.items() if count > 0}
            files.setdefault(name, set()).update(executed)
        new = self.lines - before
        self.rounds += 1
        self.quiet = 0 if new else self.quiet + 1
        self._save()
        return new

    def _take_over(self, data: dict[str, Any]) -> bool:
        if data["pyvmm-executed"] != FORMAT:
            raise ValueError
        self.rounds, self.quiet = int(data["rounds"]), int(data["quiet"])
        self._kernels = {
            kernel: {name: set(map(int, numbers)) for name, numbers in files.items()}
            for kernel, files in data["kernels"].items()
        }
        return True

    def _save(self) -> None:
        data = {
            "pyvmm-executed": FORMAT,
            "rounds": self.rounds,
            "quiet": self.quiet,
            "kernels": {
                kernel: {name: sorted(numbers) for name, numbers in files.items()}
                for kernel, files in self._kernels.items()
            },
        }
        write_whole(self._path, json.dumps(data))
