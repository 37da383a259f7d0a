"""The keyboard controller, Intel's 8042 at ports 0x60 and 0x64, with nothing plugged in.

Guests use it to reset the machine, to find out whether it is there, and to open the A20 gate,
which is always open.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.devices.byte_wide import ByteWide

DATA_PORT, COMMAND_PORT = 0x60, 0x64

_STATUS_OUTPUT, _STATUS_SELF_TESTED, _STATUS_COMMAND, _STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
_READ_CONFIGURATION, _WRITE_CONFIGURATION = 0x20, 0x60
_SELF_TEST, _PASSED = 0xAA, 0x55
_TEST_KEYBOARD, _TEST_MOUSE, _WORKS = 0xAB, 0xA9, 0x00
_DISABLE_MOUSE, _ENABLE_MOUSE, _DISABLE_KEYBOARD, _ENABLE_KEYBOARD = 0xA7, 0xA8, 0xAD, 0xAE
_READ_OUTPUT_PORT, _WRITE_OUTPUT_PORT = 0xD0, 0xD1
_PULSE = 0xF0  # to 0xFF: the output port's low four bits that are zero in it fall for a while
# The output port: bit 0 is the CPU's reset line, low active, and bit 1 the A20 gate.
_NOT_RESET, _A20 = 0x01, 0x02
# The configuration's bits that switch a device's clock off.
_KEYBOARD_OFF, _MOUSE_OFF = 0x10, 0x20


class I8042(ByteWide):
    """A keyboard controller. ``reset()`` is called when the guest resets the machine."""

    def __init__(self, reset: Callable[[], object]) -> None:
        # Ports 0x61 to 0x63 are not its own.
        super().__init__(range(DATA_PORT, COMMAND_PORT + 1, COMMAND_PORT - DATA_PORT))
        self._reset = reset
        self._status = _STATUS_UNLOCKED
        self._configuration = _KEYBOARD_OFF | _MOUSE_OFF
        self._output = 0
        self._waits_for: int | None = None  # a command's number, for its argument

    def read_byte(self, offset: int) -> int:
        if offset == COMMAND_PORT - DATA_PORT:
            return self._status
        if offset:  # of a wide access
            return 0xFF
        self._status &= ~_STATUS_OUTPUT
        return self._output

    def write_byte(self, offset: int, value: int) -> None:
        if offset == COMMAND_PORT - DATA_PORT:
            self._status |= _STATUS_COMMAND
            self._command(value)
        elif offset == 0:
            self._status &= ~_STATUS_COMMAND
            self._argument(value)

    def _answer(self, value: int) -> None:
        self._output = value
        self._status |= _STATUS_OUTPUT

    def _command(self, command: int) -> None:
        self._waits_for = None
        if command in (_WRITE_CONFIGURATION, _WRITE_OUTPUT_PORT):
            self._waits_for = command
        elif command == _READ_CONFIGURATION:
            self._answer(self._configuration)
        elif command == _SELF_TEST:
            self._status |= _STATUS_SELF_TESTED
            self._answer(_PASSED)
        elif command in (_TEST_KEYBOARD, _TEST_MOUSE):
            self._answer(_WORKS)
        elif command == _READ_OUTPUT_PORT:
            self._answer(_NOT_RESET | _A20)
        elif command in (_DISABLE_KEYBOARD, _ENABLE_KEYBOARD):
            self._switch(_KEYBOARD_OFF, command == _DISABLE_KEYBOARD)
        elif command in (_DISABLE_MOUSE, _ENABLE_MOUSE):
            self._switch(_MOUSE_OFF, command == _DISABLE_MOUSE)
        elif command >= _PULSE and not command & _NOT_RESET:
            self._reset()

    def _switch(self, bit: int, is_off: bool) -> None:
        self._configuration = self._configuration & ~bit | (bit if is_off else 0)

    def _argument(self, value: int) -> None:
        command, self._waits_for = self._waits_for, None
        if command == _WRITE_CONFIGURATION:
            self._configuration = value
        elif command == _WRITE_OUTPUT_PORT and not value & _NOT_RESET:
            self._reset()
