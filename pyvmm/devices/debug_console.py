"""The debug console of Bochs, at port 0xE9: what is written there is printed."""

from __future__ import annotations

from collections.abc import Callable

DEBUG_CONSOLE = 0xE9


class DebugConsole:
    """``show(data)`` is called with each byte that is written; reads give 0xE9, as Bochs does."""

    def __init__(self, show: Callable[[bytes], object]) -> None:
        self._show = show

    def read(self, port: int, size: int) -> int:
        return DEBUG_CONSOLE | (1 << 8 * size) - (1 << 8)

    def write(self, port: int, size: int, value: int) -> None:
        self._show((value & 0xFF).to_bytes(1))
