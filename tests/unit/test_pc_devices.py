"""Clock, keyboard controller and power registers of a PC; what anybody may do to each."""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from pyvmm.devices.bus import Device
from pyvmm.devices.debug_console import DebugConsole
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.devices.end_of_run import EndOfRun
from pyvmm.devices.fw_cfg import FirmwareConfiguration
from pyvmm.devices.hpet import WINDOW as HPET_WINDOW
from pyvmm.devices.hpet import Hpet
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.port_a import SystemControlPortA
from pyvmm.devices.power import PowerManagement, ResetRegister
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.serial import Serial16550
from pyvmm.devices.test_device import TestDevice

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = 0, 2, 4, *range(6, 14)
CENTURY = 0x32
BINARY, TWENTY_FOUR, SET = 0x04, 0x02, 0x80


class Clock:
    def __init__(self, *date: int) -> None:
        self.now = datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]

    def __call__(self) -> float:
        return self.now


def get(rtc: Rtc, cell: int) -> int:
    rtc.write(0x70, 1, cell)
    return rtc.read(0x71, 1)


def put(rtc: Rtc, cell: int, value: int) -> None:
    rtc.write(0x70, 1, cell)
    rtc.write(0x71, 1, value)


def cells(rtc: Rtc) -> list[int]:
    return [get(rtc, cell) for cell in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS)]


# ---- the clock ----


@pytest.mark.parametrize(
    ("mode", "hours"),
    [(TWENTY_FOUR, 0x23), (0, 0x91), (BINARY | TWENTY_FOUR, 23), (BINARY, 0x80 | 11)],
)
def test_time_in_every_format(mode: int, hours: int) -> None:
    rtc = Rtc(clock=Clock(2031, 12, 28, 23, 59, 58))
    put(rtc, B, mode)
    bcd = [0x20, 0x31, 0x12, 0x28, hours, 0x59, 0x58]
    assert cells(rtc) == ([20, 31, 12, 28, hours, 59, 58] if mode & BINARY else bcd)
    assert get(rtc, WEEKDAY) == 1  # a Sunday


@pytest.mark.parametrize(("hour", "cell"), [(0, 0x12), (1, 0x01), (12, 0x92), (13, 0x81)])
def test_midnight_and_noon_by_twelve_hours(hour: int, cell: int) -> None:
    rtc = Rtc(clock=Clock(2026, 1, 1, hour))
    put(rtc, B, 0)
    assert get(rtc, HOURS) == cell
    put(rtc, HOURS, cell)
    put(rtc, B, TWENTY_FOUR | BINARY)
    assert get(rtc, HOURS) == hour


def test_the_guest_sets_the_time() -> None:
    clock = Clock(2026, 11, 28, 12, 0, 0)
    rtc = Rtc(clock=clock)
    put(rtc, B, SET | TWENTY_FOUR)
    for cell, value in zip(
        (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS),
        (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59),
        strict=True,
    ):
        put(rtc, cell, value)
    clock.now += 100
    assert get(rtc, SECONDS) == 0x59  # it stands still
    put(rtc, B, TWENTY_FOUR)
    clock.now += 2
    assert cells(rtc) == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01]


def test_one_cell_alone_and_what_is_no_time() -> None:
    rtc = Rtc(clock=Clock(2026, 11, 28, 12, 34, 56))
    put(rtc, MINUTES, 0x05)
    assert cells(rtc) == [0x20, 0x26, 0x11, 0x28, 0x12, 0x05, 0x56]
    put(rtc, MONTH, 0xFF)
    assert cells(rtc) == [0x20, 0x26, 0x11, 0x28, 0x12, 0x05, 0x56]


def test_the_status_registers() -> None:
    clock = Clock(2026, 11, 28)
    rtc = Rtc(clock=clock)
    assert get(rtc, A) == 0xA6  # a second has just begun
    clock.now += 0.5
    assert get(rtc, A) == 0x26
    clock.now += 0.4999
    assert get(rtc, A) == 0xA6
    put(rtc, B, SET | TWENTY_FOUR)
    assert get(rtc, A) == 0x26
    assert get(rtc, D) == 0x80
    get(rtc, C)
    assert get(rtc, C) == 0
    clock.now += 0.001
    assert get(rtc, C) == 0x50 or get(rtc, C) == 0
    clock.now += 1
    assert get(rtc, C) == 0x50
    put(rtc, C, 0xFF)
    put(rtc, D, 0)
    assert get(rtc, C) == 0 and get(rtc, D) == 0x80


@pytest.mark.parametrize(
    ("memory", "above", "extended", "above_16m", "above_4g"),
    [
        (512 << 10, 0, 0, 0, 0),
        (16 << 20, 0, 15 << 10, 0, 0),
        (128 << 20, 0, 0xFFFF, 112 << 4, 0),
        (3 << 30, 5 << 30, 0xFFFF, (3072 - 16) << 4, 5 << 14),
    ],
)
def test_memory_sizes(
    memory: int, above: int, extended: int, above_16m: int, above_4g: int
) -> None:
    rtc = Rtc(memory=memory, memory_above_4g=above)
    cell = [get(rtc, number) for number in range(128)]
    assert cell[0x15] | cell[0x16] << 8 == min(640, memory >> 10)
    assert cell[0x17] | cell[0x18] << 8 == cell[0x30] | cell[0x31] << 8 == extended
    assert cell[0x34] | cell[0x35] << 8 == above_16m
    assert cell[0x5B] | cell[0x5C] << 8 | cell[0x5D] << 16 == above_4g


def test_cells_keep_what_is_written() -> None:
    rtc = Rtc()
    put(rtc, 0x0F, 0x0A)  # the shutdown status
    put(rtc, 0x8F, 0x0B)  # bit 7 of the index masks NMI
    assert get(rtc, 0x0F) == 0x0B
    assert rtc.read(0x70, 2) >> 8 == 0x0B


# ---- the ways out ----


class Calls(list[str]):
    def power_off(self) -> None:
        self.append("off")

    def reset(self) -> None:
        self.append("reset")


@pytest.mark.parametrize(
    "writes",
    [[(0x64, 0xFE)], [(0x64, 0xF0)], [(0x64, 0xD1), (0x60, 0xFE)], [(0x64, 0xD1), (0x60, 0x02)]],
)
def test_the_keyboard_controller_resets(writes: list[tuple[int, int]]) -> None:
    calls = Calls()
    device = I8042(calls.reset)
    for port, value in writes:
        assert calls == []
        assert not device.read(0x64, 1) & 2  # it takes input at once
        device.write(port, 1, value)
    assert calls == ["reset"]


def test_the_keyboard_controller_answers() -> None:
    calls = Calls()
    device = I8042(calls.reset)
    assert not device.read(0x64, 1) & 1
    for command, answer in ((0xAA, 0x55), (0xAB, 0), (0xA9, 0), (0xD0, 0x03)):
        device.write(0x64, 1, command)
        assert device.read(0x64, 1) & 1
        assert device.read(0x60, 1) == answer
        assert not device.read(0x64, 1) & 1
    assert device.read(0x64, 1) & 4  # the self test has passed
    device.write(0x64, 1, 0x60)
    device.write(0x60, 1, 0x03)
    device.write(0x64, 1, 0xAD)
    device.write(0x64, 1, 0x20)
    assert device.read(0x60, 1) == 0x13
    for command in (0xD1, 0xFF, 0xFD, 0xED):
        device.write(0x64, 1, command)
    device.write(0x60, 1, 0xDF)  # the A20 gate
    device.write(0x60, 1, 0xFE)  # no command waits for it: it is for the keyboard
    assert calls == []


def test_acpi_power_off() -> None:
    calls = Calls()
    device = PowerManagement(calls.power_off)
    device.write(0x604, 2, 0x0001)
    device.write(0x604, 2, 0x0400)  # the type of another state
    device.write(0x604, 2, 0x2400)
    assert calls == []
    assert device.read(0x604, 2) == 0x0401
    device.write(0x604, 2, 0x2000)
    assert calls == ["off"]
    device.write(0x604, 1, 0)
    device.write(0x605, 1, 0x20)
    assert calls == ["off", "off"]


def test_acpi_registers() -> None:
    device = PowerManagement(Calls().power_off)
    assert device.read(0x600, 2) == 0
    device.write(0x600, 2, 0xFFFF)
    device.write(0x602, 2, 0x0120)
    assert device.read(0x600, 4) == 0x0120_0000
    before = device.read(0x608, 4)
    while device.read(0x608, 4) == before:
        pass
    device.read(0x60B, 1)


def test_the_reset_register() -> None:
    calls = Calls()
    device = ResetRegister(calls.reset)
    device.write(0xCF9, 1, 0x02)
    assert calls == [] and device.read(0xCF9, 1) == 2
    device.write(0xCF9, 1, 0x06)
    assert calls == ["reset"]


# ---- anybody may do anything ----


DEVICES: dict[str, tuple[Callable[[], Device], list[int]]] = {
    "serial": (lambda: Serial16550(set_line=lambda level: None), [*range(0x3F8, 0x400)]),
    "rtc": (lambda: Rtc(memory=1 << 30), [0x70, 0x71]),
    "i8042": (lambda: I8042(end_of_run), [0x60, 0x64]),
    "power": (lambda: PowerManagement(end_of_run), [*range(0x600, 0x60C)]),
    "reset": (lambda: ResetRegister(end_of_run), [0xCF9]),
    "port_a": (lambda: SystemControlPortA(end_of_run), [0x92]),
    "debug_exit": (DebugExit, [0xF4]),
    "debug_console": (lambda: DebugConsole(lambda data: None), [0xE9]),
    "fw_cfg": (lambda: FirmwareConfiguration.of_machine(4, 8, 1 << 30), [0x510, 0x511]),
    "hpet": (Hpet, [*HPET_WINDOW]),
    "test_device": (
        lambda: TestDevice(lambda line, level: None, lambda gpa: None),
        [*(port for ports in TestDevice.PORTS for port in ports), *TestDevice.WINDOW[-16:]],
    ),
}


def end_of_run() -> None:
    raise EndOfRun(True)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("seed", range(5))
def test_random_accesses_of_every_width(name: str, seed: int) -> None:
    """Nothing raises but what ends a run, and every answer fits."""
    dice = random.Random(f"{name} {seed}")
    make, addresses = DEVICES[name]
    device, sizes = make(), (1, 2, 4, 8) if max(addresses) > 0xFFFF else (1, 2, 4)
    for _ in range(4000):
        address, size = dice.choice(addresses), dice.choice(sizes)
        if dice.random() < 0.5:
            assert 0 <= device.read(address, size) < 1 << 8 * size
            continue
        with suppress(EndOfRun):
            device.write(address, size, dice.getrandbits(8 * size))
    assert len(pickle.dumps([each for each in vars(device).values() if is_data(each)])) < 1 << 21


def is_data(value: object) -> bool:
    return isinstance(value, int | bytes | bytearray | list | dict | deque)
