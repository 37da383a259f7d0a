"""Which case runs when, in the kernel's own log: a splat then stands beside the case that ran."""

from __future__ import annotations

import os

from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.result import CaseResult
from pyvmm.validate.run.observer import Observer, Passing

#: Names the file that lines for the kernel's log are written to; the lab sets it.
KERNEL_LOG = "PYVMM_KERNEL_LOG"
#: The console has these lines too (KERN_INFO), and a kernel that dies has said what ran.
_LEVEL = "<6>"
_LONGEST = 800  # of a line: PRINTK_MESSAGE_MAX of the kernel has less than 1024


class Marking(Passing):
    """Passes on to ``observer``, and tells the kernel's log which case begins and ends."""

    def __init__(self, observer: Observer, log: str) -> None:
        super().__init__(observer)
        self._log: int | None = os.open(log, os.O_WRONLY | os.O_CLOEXEC)

    def started(self, each: Case) -> None:
        self._write(f"begins: {each.name}")
        super().started(each)

    def ended(self, number: int, result: CaseResult) -> None:
        super().ended(number, result)
        self._write(f"ended: {result.name}")

    def _write(self, text: str) -> None:
        if self._log is None:
            return
        try:
            os.write(self._log, f"{_LEVEL}pyvmm: {text[:_LONGEST]}\n".encode())
        except OSError:
            self._log = None  # a log that takes nothing is no reason to stop
