"""Ctrl-C and SIGTERM: each ends what is under way in good order, and once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Self

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Somebody who asks so often wants to be rid of the process at any price.
_PATIENCE = 3


class Interrupted(BaseException):
    """A signal came while nothing was running that could be stopped otherwise."""


class Interruption:
    """While this context is open the first of its signals calls what :meth:`then` was given.

    Until then() or hold() is called, it raises :class:`Interrupted`: for what may wait for
    ever and leaves nothing behind. Further signals change nothing, so that a report is
    written whole, but the third one kills the process.
    """

    def __init__(self, signals: Sequence[signal.Signals] = ENDING_SIGNALS) -> None:
        # nohup's child must not hear of the terminal's end.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._signals = [each for each in signals if not (each == signal.SIGHUP and ignored)]
        self.number: int | None = None
        self._seen = 0
        self._action: Callable[[], None] = _raise
        self._previous: dict[signal.Signals, object] = {}

    @property
    def name(self) -> str:
        """The signal's name, "" if none came."""
        return "" if self.number is None else signal.Signals(self.number).name

    def unblock(self) -> None:
        """Hear a signal that was blocked until now, and any later one."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)

    def then(self, action: Callable[[], None]) -> None:
        """From now on a signal calls ``action``; at once, if one has come already."""
        self._action = action
        if self.number is not None:
            action()

    def raises(self) -> None:
        """From now on a signal raises :class:`Interrupted`; at once, if one has come already."""
        self.then(_raise)

    def hold(self) -> None:
        """From now on a signal is only remembered."""
        self._action = _remember

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen >= _PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.number is None:
            self.number = number
            self._action()

    def __enter__(self) -> Self:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _raise() -> None:
    raise Interrupted


def _remember() -> None:
    pass
