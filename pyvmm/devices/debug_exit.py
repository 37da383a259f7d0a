"""The debug exit port: by one OUT a guest ends the machine and says how it went."""

from __future__ import annotations

from pyvmm.devices.end_of_run import EndOfRun

DEBUG_EXIT = 0xF4


def status_of(code: int) -> int:
    """The exit status that QEMU makes of a code: (code << 1) | 1, of which a process has 8 bits."""
    return (code << 1 | 1) & 0xFF


class DebugExit:
    """What is written ends the run: 0 passes, any other code fails. Reads give 0."""

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        raise EndOfRun(value == 0, value, f"wrote exit code {value} ({value:#x})")
