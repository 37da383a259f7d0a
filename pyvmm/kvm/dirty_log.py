"""What KVM_GET_DIRTY_LOG returns: which pages of a memslot were written.

Documentation/virt/kvm/api.rst, 4.8 and 4.117.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """One bit for each of ``pages`` pages of a slot, from ``first_page`` on.

    Iterating gives the numbers of the dirty pages, counted from the slot's start.
    """

    first_page: int
    pages: int
    bits: bytes

    def __iter__(self) -> Iterator[int]:
        for at, byte in enumerate(self.bits):
            for bit in range(8):
                page = at * 8 + bit
                if byte >> bit & 1 and page < self.pages:
                    yield self.first_page + page


def bitmap_size(pages: int) -> int:
    """How many bytes the kernel copies for so many pages: whole 64-bit words."""
    return (pages + 63) // 64 * 8
