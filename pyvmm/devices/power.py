"""ACPI's fixed power registers, and the reset register of PC chipsets: how a guest ends.

The registers are those of the ACPI specification, 4.8.3: PM1 events and control, and the power
management timer, where QEMU's q35 has them. Nothing ever happens that would be an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pyvmm.devices.byte_wide import ByteWide

PM_BASE = 0x600
PM1_EVENT, PM1_CONTROL, PM_TIMER = PM_BASE, PM_BASE + 4, PM_BASE + 8
RESET_PORT = 0xCF9
#: What a guest writes to RESET_PORT to be reset.
RESET_VALUE = 0x06
#: SLP_TYP of the sleeping state S5, soft off, in bits 12:10 of PM1 control.
S5 = 0

_SLEEP_ENABLE, _SLEEP_TYPE = 0x2000, 0x1C00
_ACPI_IS_ON = 0x0001  # SCI_EN
_TIMER_HERTZ = 3_579_545
_NANOSECONDS = 1_000_000_000
_RESET_CPU = 0x04


class PowerManagement(ByteWide):
    """PM1 events (4 bytes), PM1 control (2) and the timer (4) at ``base``.

    ``power_off()`` is called when the guest enters S5: SLP_EN with the type :data:`S5` at
    ``base`` + 4, which is 0x2000 at port 0x604. Other sleeping states do nothing.
    """

    def __init__(self, power_off: Callable[[], object], base: int = PM_BASE) -> None:
        super().__init__(range(base, base + 12))
        self._power_off = power_off
        self._enabled = bytearray(2)  # of PM1 events
        self._control = bytearray(_ACPI_IS_ON.to_bytes(2, "little"))

    def read(self, port: int, size: int) -> int:
        if port - self.ports.start == PM_TIMER - PM_BASE and size == 4:
            return self._ticks()
        return super().read(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        with self.lock:
            super().write(port, size, value)
            control = int.from_bytes(self._control, "little")
            if not control & _SLEEP_ENABLE:
                return
            self._control[1] &= ~(_SLEEP_ENABLE >> 8)  # it always reads 0
        if control & _SLEEP_TYPE == S5 << 10:
            self._power_off()

    def read_byte(self, offset: int) -> int:
        if 2 <= offset < 4:
            return self._enabled[offset - 2]
        if 4 <= offset < 6:
            return self._control[offset - 4]
        if offset >= 8:
            return self._ticks() >> 8 * (offset - 8) & 0xFF
        return 0

    def write_byte(self, offset: int, value: int) -> None:
        if 2 <= offset < 4:
            self._enabled[offset - 2] = value
        elif 4 <= offset < 6:
            self._control[offset - 4] = value | (_ACPI_IS_ON if offset == 4 else 0)

    @staticmethod
    def _ticks() -> int:
        """The timer's 32 bits."""
        return time.monotonic_ns() * _TIMER_HERTZ // _NANOSECONDS & 0xFFFFFFFF


class ResetRegister(ByteWide):
    """The chipset's reset register: RST_CPU, bit 2, calls ``reset()``."""

    def __init__(self, reset: Callable[[], object], port: int = RESET_PORT) -> None:
        super().__init__(range(port, port + 1))
        self._reset = reset
        self._value = 0

    def read_byte(self, offset: int) -> int:
        return self._value

    def write_byte(self, offset: int, value: int) -> None:
        self._value = value & ~_RESET_CPU
        if value & _RESET_CPU:
            self._reset()
