"""System control port A of the PS/2, at port 0x92: another way to reset, and the A20 gate."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.devices.byte_wide import ByteWide

PORT_A = 0x92

_RESET, _A20 = 0x01, 0x02


class SystemControlPortA(ByteWide):
    """``reset()`` is called when bit 0 rises. The A20 gate, bit 1, is always open."""

    def __init__(self, reset: Callable[[], object]) -> None:
        super().__init__(range(PORT_A, PORT_A + 1))
        self._reset = reset
        self._value = 0

    def read_byte(self, offset: int) -> int:
        return self._value | _A20

    def write_byte(self, offset: int, value: int) -> None:
        rises = value & ~self._value & _RESET
        self._value = value
        if rises:
            self._reset()
