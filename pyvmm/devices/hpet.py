"""A High Precision Event Timer that counts and interrupts nobody: IA-PC HPET specification 1.0a.

Its counter has a period of 10 ns. The registers of its three timers keep what is written.
"""

from __future__ import annotations

import time
from threading import Lock

HPET_GPA = 0xFED0_0000
#: For :meth:`Bus.add_mmio`.
WINDOW = range(HPET_GPA, HPET_GPA + 0x400)

_CAPABILITIES, _CONFIGURATION, _COUNTER = 0x000, 0x010, 0x0F0
_TICK_NS = 10
# The period in femtoseconds; Intel; 64 bits; three timers; revision 1.
_WHAT_IT_IS = _TICK_NS * 1_000_000 << 32 | 0x8086 << 16 | 1 << 13 | 2 << 8 | 1
_ENABLED = 1
_WORD = 8
_64_BITS = (1 << 64) - 1


class Hpet:
    """The registers at :data:`WINDOW`.

    Synchronization: vCPUs may share it.
    """

    def __init__(self) -> None:
        self._kept: dict[int, int] = {}
        self._counted = 0  # ticks, when the counter last stood still
        self._started_ns: int | None = None
        self._lock = Lock()

    def read(self, gpa: int, size: int) -> int:
        register, at = divmod(gpa - HPET_GPA, _WORD)
        with self._lock:
            value = self._register(register * _WORD)
        return value >> 8 * at & (1 << 8 * size) - 1

    def write(self, gpa: int, size: int, value: int) -> None:
        register, at = divmod(gpa - HPET_GPA, _WORD)
        mask = (1 << 8 * size) - 1 << 8 * at & _64_BITS
        with self._lock:
            old = self._register(register * _WORD)
            self._set(register * _WORD, old & ~mask | value << 8 * at & mask)

    def _ticks(self) -> int:
        if self._started_ns is None:
            return self._counted
        return self._counted + (time.monotonic_ns() - self._started_ns) // _TICK_NS & _64_BITS

    def _register(self, register: int) -> int:
        if register == _CAPABILITIES:
            return _WHAT_IT_IS
        return self._ticks() if register == _COUNTER else self._kept.get(register, 0)

    def _set(self, register: int, value: int) -> None:
        if register == _COUNTER:
            self._counted = value
            if self._started_ns is not None:
                self._started_ns = time.monotonic_ns()
        elif register == _CONFIGURATION:
            is_enabled = bool(value & _ENABLED)
            if is_enabled != (self._started_ns is not None):
                self._counted = self._ticks()
                self._started_ns = time.monotonic_ns() if is_enabled else None
        if register != _CAPABILITIES:
            self._kept[register] = value
