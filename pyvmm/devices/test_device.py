"""The test device that kvm-unit-tests' x86 guests expect (QEMU calls its own pc-testdev).

Ports 0xE0 to 0xE3 and 0xE8 to 0xEB keep what is written to them, in any width; an access that
begins at 0xE9 is the debug console's, for guests that print there. A GPA written to
0xE4 has its page unmapped and mapped again in the host, so that KVM must look for it anew.
A byte written to 0x2000 + n sets interrupt line n. 64 KiB at 0xFF000000 keep what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

LATCH, FLUSH, LATCH_BY_BYTES = range(0xE0, 0xE4), range(0xE4, 0xE8), range(0xE8, 0xEC)
LINES = range(0x2000, 0x2018)
WINDOW = range(0xFF00_0000, 0xFF01_0000)


class TestDevice:
    """``set_line(number, level)`` sets an interrupt line, and ``flush(gpa)`` remaps a page.

    Synchronization: vCPUs may share it.
    """

    #: Not a test of pytest's, whatever its name begins with.
    __test__ = False
    #: For :meth:`Bus.add_ports`, and for :meth:`Bus.add_mmio`.
    PORTS = (LATCH, FLUSH, LATCH_BY_BYTES[:1], LATCH_BY_BYTES[2:], LINES)
    WINDOW = WINDOW

    def __init__(
        self, set_line: Callable[[int, bool], object], flush: Callable[[int], object]
    ) -> None:
        self._set_line, self._flush = set_line, flush
        self._latch = bytearray(len(LATCH))
        self._memory = bytearray(len(WINDOW))
        self._lock = Lock()

    def read(self, address: int, size: int) -> int:
        kept, at = self._kept(address)
        if kept is None:
            return (1 << 8 * size) - 1
        with self._lock:
            return int.from_bytes(kept[at : at + size].ljust(size, b"\xff"), "little")

    def write(self, address: int, size: int, value: int) -> None:
        kept, at = self._kept(address)
        if kept is not None:
            data = value.to_bytes(size, "little")
            with self._lock:
                kept[at : at + size] = data[: len(kept) - at]
        elif address in LINES:
            # One byte for each line: a wider write is for several.
            for line in range(address - LINES.start, min(address - LINES.start + size, len(LINES))):
                self._set_line(line, value & 0xFF != 0)
                value >>= 8
        elif address == FLUSH.start and size == 4:
            self._flush(value)

    def _kept(self, address: int) -> tuple[bytearray | None, int]:
        """What keeps the bytes at a port or GPA, and where in it they are."""
        if address in WINDOW:
            return self._memory, address - WINDOW.start
        if address in LATCH or address in LATCH_BY_BYTES:
            return self._latch, address % len(LATCH)
        return None, 0
