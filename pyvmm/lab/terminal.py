"""The caller's terminal, handed to a command in the lab."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType

from pyvmm.lab.errors import LabUsageError


class RawTerminal:
    """Stdin as a raw terminal for the length of a `with` block: every key goes to the lab.

    Synchronization: main thread only, since it listens to SIGWINCH.
    """

    def __init__(self) -> None:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise LabUsageError(
                "'pyvmm lab shell'", "it needs a terminal", "'pyvmm lab run' needs none"
            )
        self._stdin = sys.stdin.fileno()

    def __enter__(self) -> RawTerminal:
        self.resized, self._noticed = os.pipe()
        self._settings = termios.tcgetattr(self._stdin)
        self._handler = signal.signal(signal.SIGWINCH, self._notice)
        tty.setraw(self._stdin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._settings)
        signal.signal(signal.SIGWINCH, self._handler)
        os.close(self.resized)
        os.close(self._noticed)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        os.write(self._noticed, b"\0")

    def size(self) -> list[int]:
        """Rows and columns now."""
        columns, rows = os.get_terminal_size(self._stdin)
        return [rows, columns]

    def take_note(self) -> None:
        """Make `resized` unreadable until the next change."""
        os.read(self.resized, 4096)
