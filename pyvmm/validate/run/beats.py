"""How far a case has come: a number that its process shares with whoever waits for it."""

from __future__ import annotations

import mmap
import struct

_NUMBER = struct.Struct("=Q")


class Beats:
    """Made before the fork. One process counts, the other one looks; nothing waits."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, _NUMBER.size)

    def add(self) -> None:
        """The case has done another part of its work."""
        _NUMBER.pack_into(self._shared, 0, self.count() + 1)

    def count(self) -> int:
        """How many parts, ever."""
        return int(_NUMBER.unpack_from(self._shared)[0])
