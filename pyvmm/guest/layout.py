"""What code a guest has, and where it lies if its file does not say so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """What code a guest has, and where it is linked and loaded if its file does not say so.

    ``mode`` is real, protected or long, for code of 16, 32 and 64 bits.
    """

    mode: str
    origin: int


#: The guest protocol's, by mode.
REAL = Layout("real", 0x7C00)
PROTECTED = Layout("protected", 0x100000)
LONG = Layout("long", 0x100000)
LAYOUTS = {layout.mode: layout for layout in (REAL, PROTECTED, LONG)}
