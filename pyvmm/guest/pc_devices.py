"""The devices of a PC that a small guest prints and ends by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock

from pyvmm.devices.end_of_run import EndOfRun
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.port_a import SystemControlPortA
from pyvmm.devices.power import PowerManagement, ResetRegister
from pyvmm.devices.serial import COM1, COM1_IRQ, OUTPUT_SIZE, Serial16550
from pyvmm.guest.platform import Board


class Printed:
    """What a guest has printed: the first MiB, and how many bytes more. ``show`` gets them all."""

    def __init__(self, show: Callable[[bytes], object] | None) -> None:
        self._show = show
        self._kept = bytearray()
        self._lock = Lock()
        self.dropped = 0

    @property
    def output(self) -> bytes:
        with self._lock:
            return bytes(self._kept)

    def take(self, data: bytes) -> None:
        with self._lock:
            room = OUTPUT_SIZE - len(self._kept)
            self._kept += data[:room]
            self.dropped += max(0, len(data) - room)
        if self._show is not None:
            self._show(data)


def end_run() -> None:
    """A reset or a power off: the run has come to its end, and nobody said that it failed."""
    raise EndOfRun(True)


def add_pc_devices(board: Board, show: Callable[[bytes], object] | None = None) -> Serial16550:
    """COM1, which is returned, and the ways to end a PC: three resets and the power off.

    ``show(data)`` is called with what the guest sends to COM1.
    """
    line = partial(board.vm.irq_line, COM1_IRQ) if board.vm.has_irqchip else None
    serial = Serial16550(COM1, set_line=line, show=show)
    resets = (I8042(end_run), SystemControlPortA(end_run), ResetRegister(end_run))
    for device in (serial, *resets, PowerManagement(end_run)):
        board.bus.add_ports(device.ports, device)
    return serial
