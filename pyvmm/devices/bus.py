"""The bus: which device in Python has which ports and which guest addresses."""

from __future__ import annotations

from typing import Any, Protocol

from pyvmm.errors import ClosedError, ConfigurationError
from pyvmm.exits import io_data
from pyvmm.native import ffi, lib


class Device(Protocol):
    """Something behind ports or addresses. It is called by the vCPU's own thread."""

    def read(self, address: int, size: int) -> int:
        """The value of ``size`` bytes at a port or GPA."""

    def write(self, address: int, size: int, value: int) -> None:
        """Take ``size`` bytes at a port or GPA."""


class Bus:
    """Devices of one machine. ``protocol`` is the machine's ``struct protocol *``.

    Once the machine is closed no device can be added: :class:`ClosedError`.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._ports: dict[int, Device] = {}
        self._windows: list[tuple[range, Device]] = []

    @property
    def raw(self) -> Any:
        """The ``struct protocol *``. Raises :class:`ClosedError` after :meth:`close`."""
        if self._protocol is None:
            raise ClosedError("bus")
        return self._protocol

    def close(self) -> None:
        self._protocol = None

    def add_ports(self, ports: range, device: Device) -> None:
        """Give ports to a device; those of the guest protocol stay with C."""
        protocol = self.raw
        for port in ports:
            if not 0 <= port <= 0xFFFF or port in self._ports:
                raise ConfigurationError(f"port {port:#x}", "it is taken or not a port")
        for port in ports:
            self._ports[port] = device
            protocol.python_ports[port // 8] |= 1 << port % 8

    def add_mmio(self, addresses: range, device: Device) -> None:
        """Give guest addresses where no memory is to a device."""
        protocol = self.raw
        count = protocol.python_window_count
        if count == lib.PYTHON_WINDOWS:
            raise ConfigurationError("MMIO window", f"there are {count} already")
        if (
            addresses.step != 1
            or not 0 <= addresses.start < addresses.stop <= 1 << 64
            or addresses.stop - addresses.start == 1 << 64
        ):
            raise ConfigurationError(f"MMIO window {addresses}", "it is no range of addresses")
        for taken, _ in self._windows:
            if addresses.start < taken.stop and taken.start < addresses.stop:
                raise ConfigurationError(
                    f"MMIO window {addresses.start:#x}", f"it overlaps {taken.start:#x}"
                )
        window = protocol.python_windows[count]
        window.gpa, window.size = addresses.start, addresses.stop - addresses.start
        protocol.python_window_count = count + 1
        self._windows.append((addresses, device))

    def answer(self, run: Any) -> bool:
        """Answer a KVM_EXIT_IO or KVM_EXIT_MMIO in place; False if no device has it."""
        if run.exit_reason == lib.KVM_EXIT_IO:
            return self._answer_port(run)
        if run.exit_reason == lib.KVM_EXIT_MMIO:
            return self._answer_mmio(run)
        return False

    def _answer_port(self, run: Any) -> bool:
        io = run.io
        port, size = io.port, io.size
        device = self._ports.get(port)
        if device is None:
            return False
        data = io_data(run)
        for at in range(0, len(data), size):
            if io.direction == lib.KVM_EXIT_IO_OUT:
                device.write(port, size, int.from_bytes(data[at : at + size], "little"))
            else:
                value = device.read(port, size) & (1 << 8 * size) - 1
                data[at : at + size] = value.to_bytes(size, "little")
        return True

    def _answer_mmio(self, run: Any) -> bool:
        mmio = run.mmio
        gpa, size = mmio.phys_addr, mmio.len
        for addresses, device in self._windows:
            if gpa not in addresses:
                continue
            data = ffi.buffer(mmio.data, size)
            if mmio.is_write:
                device.write(gpa, size, int.from_bytes(data[:], "little"))
            else:
                data[:] = (device.read(gpa, size) & (1 << 8 * size) - 1).to_bytes(size, "little")
            return True
        return False
