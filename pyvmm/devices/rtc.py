"""The real-time clock and its CMOS memory: Motorola's MC146818 at ports 0x70 and 0x71.

The clock is the host's, in UTC, plus what the guest has set it off by. There are no interrupts
and no alarm; status register C tells a guest that polls it of seconds and periods gone by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from pyvmm.devices.byte_wide import ByteWide

RTC_PORT = 0x70

_CELLS = 128
# Cells: time and date, then the four status registers.
_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_A, _B, _C, _D = range(10, 14)
_CENTURY = 0x32
_OF_TIME = frozenset((_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY))
_READ_ONLY = frozenset((_C, _D))
# What the BIOS of a PC leaves there: KiB of memory below 640 KiB and above 1 MiB, and its
# 64 KiB above 16 MiB and above 4 GiB.
_BASE_KIB, _EXTENDED_KIB, _EXTENDED_KIB_AGAIN, _ABOVE_16M, _ABOVE_4G = 0x15, 0x17, 0x30, 0x34, 0x5B

_A_UPDATING, _A_USUAL = 0x80, 0x26  # a 32,768 Hz crystal, 1,024 periods a second
_B_SET, _B_BINARY, _B_24_HOURS = 0x80, 0x04, 0x02
_C_PERIOD, _C_UPDATED = 0x40, 0x10
_D_VALID = 0x80
_PM = 0x80
# Seconds before and after a second's turn in which the time must not be read.
_BEFORE, _AFTER = 244e-6, 1984e-6
_MIB, _GIB = 1 << 20, 1 << 30


class Rtc(ByteWide):
    """A real-time clock at ``base`` (index) and the next port (data).

    ``clock()`` gives seconds since 1970. ``memory`` is the bytes of RAM from 0, and
    ``memory_above_4g`` those from 4 GiB, for the cells that tell guests.
    """

    def __init__(
        self,
        base: int = RTC_PORT,
        *,
        memory: int = 0,
        memory_above_4g: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(range(base, base + 2))
        self._clock = clock
        self._offset = 0.0
        self._index = 0
        self._polled = clock()  # when status register C was read last
        self._cells = bytearray(_CELLS)
        self._cells[_A], self._cells[_B] = _A_USUAL, _B_24_HOURS
        self._put(_BASE_KIB, 2, min(memory >> 10, 640))
        for cell in (_EXTENDED_KIB, _EXTENDED_KIB_AGAIN):
            self._put(cell, 2, min(max(memory - _MIB, 0) >> 10, 0xFFFF))
        self._put(_ABOVE_16M, 2, min(max(memory - 16 * _MIB, 0) >> 16, 0xFFFF))
        self._put(_ABOVE_4G, 3, min(memory_above_4g >> 16, 0xFFFFFF))

    def _put(self, cell: int, size: int, value: int) -> None:
        self._cells[cell : cell + size] = value.to_bytes(size, "little")

    def read_byte(self, offset: int) -> int:
        if offset == 0:
            return 0xFF  # the index can only be written
        cell = self._index
        if cell in _OF_TIME and not self._cells[_B] & _B_SET:
            return self._time()[cell]
        if cell == _A:
            return self._cells[_A] & ~_A_UPDATING | (_A_UPDATING if self._is_updating() else 0)
        if cell == _C:
            return self._events()
        if cell == _D:
            return _D_VALID
        return self._cells[cell]

    def write_byte(self, offset: int, value: int) -> None:
        if offset == 0:
            self._index = value & _CELLS - 1  # bit 7 masks NMI
            return
        cell = self._index
        if cell in _READ_ONLY:
            return
        was_set = self._cells[_B] & _B_SET
        if cell == _B and value & _B_SET and not was_set:
            self._freeze()  # the guest is about to set the time
        if cell in _OF_TIME and not was_set:
            self._freeze()
        self._cells[cell] = value
        if (cell == _B and was_set and not value & _B_SET) or (cell in _OF_TIME and not was_set):
            self._go_on()

    # ---- time ----

    def _now(self) -> float:
        return self._clock() + self._offset

    def _is_updating(self) -> bool:
        if self._cells[_B] & _B_SET:
            return False
        fraction = self._now() % 1
        return fraction >= 1 - _BEFORE or fraction < _AFTER

    def _events(self) -> int:
        """What has come since this was asked last."""
        before, now = self._polled, self._now()
        self._polled = now
        value = _C_UPDATED if int(now) != int(before) else 0
        rate = self._cells[_A] & 0x0F
        if rate:
            hertz = 32768 >> (rate + 7 if rate < 3 else rate) - 1
            value |= _C_PERIOD if int(now * hertz) != int(before * hertz) else 0
        return value

    def _time(self) -> dict[int, int]:
        """The cells of time and date now."""
        at = time.gmtime(self._now())
        hour, pm = at.tm_hour, 0
        if not self._cells[_B] & _B_24_HOURS:
            hour, pm = (hour + 11) % 12 + 1, _PM if hour >= 12 else 0
        values = {
            _SECONDS: at.tm_sec,
            _MINUTES: at.tm_min,
            _HOURS: hour,
            _WEEKDAY: (at.tm_wday + 1) % 7 + 1,  # 1 is Sunday
            _DAY: at.tm_mday,
            _MONTH: at.tm_mon,
            _YEAR: at.tm_year % 100,
            _CENTURY: at.tm_year // 100 % 100,
        }
        if not self._cells[_B] & _B_BINARY:
            values = {cell: value // 10 << 4 | value % 10 for cell, value in values.items()}
        values[_HOURS] |= pm
        return values

    def _freeze(self) -> None:
        for cell, value in self._time().items():
            self._cells[cell] = value

    def _go_on(self) -> None:
        """Run on from what the cells say; where that is no time, as if nothing had been set."""
        values = {cell: self._number(self._cells[cell]) for cell in _OF_TIME - {_HOURS}}
        hour = self._cells[_HOURS]
        pm = hour & _PM if not self._cells[_B] & _B_24_HOURS else 0
        hours = self._number(hour ^ pm)
        if not self._cells[_B] & _B_24_HOURS:
            hours = hours % 12 + (12 if pm else 0)
        year = values[_CENTURY] * 100 + values[_YEAR]
        try:
            date = (year, values[_MONTH], values[_DAY])
            set_to = datetime(*date, hours, values[_MINUTES], values[_SECONDS], tzinfo=UTC)
        except ValueError:
            return
        self._offset = int(set_to.timestamp()) + self._now() % 1 - self._clock()

    def _number(self, cell: int) -> int:
        if self._cells[_B] & _B_BINARY:
            return cell
        return (cell >> 4) * 10 + (cell & 0x0F)
