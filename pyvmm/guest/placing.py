"""Where in RAM there is room beside a guest, for what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyvmm.errors import ConfigurationError
from pyvmm.guest.image import Segment

#: Where a PC's plain memory below 1 MiB ends, and where it goes on.
LOW_END, HIGH_START = 0x9FC00, 0x100000
_PAGE = 0x1000
# Vectors and what a BIOS keeps; there guests put things of their own.
_LOW_START = 0x1000


def extent(segments: Iterable[Segment]) -> list[tuple[int, int]]:
    """The first byte and the end of each."""
    return [(segment.gpa, segment.end) for segment in segments]


def place_below(what: str, size: int, taken: Sequence[tuple[int, int]]) -> int:
    """The highest page below :data:`LOW_END` for ``size`` bytes that touch nothing ``taken``.

    Raises :class:`ConfigurationError` where there is no room.
    """
    tops = {LOW_END, *(start for start, _ in taken if start < LOW_END)}
    for top in sorted(tops, reverse=True):
        start = top - size & -_PAGE
        if start < _LOW_START:
            break
        if not any(first < start + size and start < end for first, end in taken):
            return start
    raise ConfigurationError(
        what, f"{size} bytes have no room below {LOW_END:#x}", "load the guest above 1 MiB"
    )
