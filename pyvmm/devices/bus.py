"""The bus: which device in Python has which ports and which guest addresses."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any, Protocol

from pyvmm.devices.end_of_run import EndOfRun
from pyvmm.errors import ClosedError, ConfigurationError
from pyvmm.kvm.arguments import c_structure
from pyvmm.kvm.exits import io_data
from pyvmm.native import ffi, lib
from pyvmm.printable import printable

PORTS = 1 << 16
_A_RANGE = "give one such as range(0x60, 0x61)"
_LONGEST_VALUE = 40  # characters of a wrong answer that an error shows

ClaimFunction = Callable[[str, int, int], object]


class Device(Protocol):
    """Something behind ports or addresses. It is called by the vCPU's own thread.

    Where a machine has several vCPUs it is called by several threads at once: it locks what it
    keeps. An :class:`EndOfRun` that it raises is the run's verdict; anything else that it raises
    ends the run as an error, with a note that names the device and the access.
    """

    def read(self, address: int, size: int) -> int:
        """The value of ``size`` bytes at a port or GPA, from 0 to what they can hold."""

    def write(self, address: int, size: int, value: int) -> None:
        """Take ``size`` bytes at a port or GPA."""


class Bus:
    """Devices of one machine. ``protocol`` is the machine's ``struct protocol *``.

    ``claim(name, gpa, size)`` takes guest addresses, or raises :class:`ConfigurationError`
    because something else is there. ``address_bits()`` says how many bits guest addresses have; it
    is asked when a device needs it.
    Once the machine is closed no device can be added: :class:`ClosedError`.
    """

    def __init__(
        self, protocol: Any, claim: ClaimFunction, address_bits: Callable[[], int]
    ) -> None:
        self._protocol = c_structure("struct protocol *", protocol)
        self._claim = claim
        self._address_bits = address_bits
        self.devices: list[Device] = []
        self._ports: dict[int, Device] = {}
        self._owners: list[tuple[str, tuple[range, ...]]] = []  # of ports
        self._windows: list[tuple[range, Device]] = []

    @property
    def raw(self) -> Any:
        """The ``struct protocol *``. Raises :class:`ClosedError` after :meth:`close`."""
        if self._protocol is None:
            raise ClosedError("bus")
        return self._protocol

    def close(self) -> None:
        self._protocol = None

    def reserve_ports(self, owner: str, *ports: range) -> None:
        """Ports that no device can have, because C or the kernel answers them."""
        self._owners.append((owner, ports))

    def _owner(self, port: int) -> str:
        """Who has a port, by name; "" for nobody."""
        taken = (owner for owner, ranges in self._owners for ports in ranges if port in ports)
        return next(taken, "")

    def add_ports(self, ports: range, device: Device) -> None:
        """Give ports to a device.

        Raises :class:`ConfigurationError` for ports that the guest protocol, an interrupt
        controller in the kernel or another device has, and for what is no device.
        """
        protocol = self.raw
        _check_device(device)
        name = _name_of(device)
        if not isinstance(ports, range) or not ports:
            raise ConfigurationError(
                f"{name} at ports {ports!r:.80}", "that is no range with a port in it", _A_RANGE
            )
        for port in ports:
            if not 0 <= port < PORTS:
                raise ConfigurationError(
                    f"{name} at port {port:#x}", f"ports are 0 to {PORTS - 1:#x}"
                )
            if owner := self._owner(port):
                raise ConfigurationError(
                    f"{name} at port {port:#x}", f"{owner} has it", "use another port"
                )
        self.devices.append(device)
        self._owners.append((name, (ports,)))
        for port in ports:
            self._ports[port] = device
            protocol.python_ports[port // 8] |= 1 << port % 8

    def add_mmio(self, addresses: range, device: Device) -> None:
        """Give guest addresses to a device.

        Raises :class:`ConfigurationError` where RAM, a view of a region, an interrupt
        controller in the kernel or another device is, and for what is no device.
        """
        protocol = self.raw
        _check_device(device)
        name = _name_of(device)
        if not isinstance(addresses, range) or addresses.step != 1 or not addresses:
            raise ConfigurationError(
                f"{name} at GPAs {addresses!r:.80}",
                "that is no range of addresses in a row with one in it",
                _A_RANGE,
            )
        size = addresses.stop - addresses.start
        where = f"{name} at GPA {addresses.start:#x}, {size:#x} bytes"
        bits = self._address_bits()
        if addresses.start < 0 or addresses.stop > 1 << bits:
            raise ConfigurationError(where, f"guest addresses have {bits} bits here", "move it")
        count = protocol.python_window_count
        if count == lib.PYTHON_WINDOWS:
            raise ConfigurationError(
                where, f"there are {count} windows already", "let one device have several"
            )
        self._claim(name, addresses.start, size)
        window = protocol.python_windows[count]
        window.gpa, window.size = addresses.start, size
        protocol.python_window_count = count + 1
        self._windows.append((addresses, device))
        self.devices.append(device)

    def answer(self, run: Any) -> bool:
        """Answer a KVM_EXIT_IO or KVM_EXIT_MMIO in place; False if no device has it.

        Raises what the device raises, with a note, and :class:`ConfigurationError` for a
        value that does not fit the access.
        """
        if run.exit_reason == lib.KVM_EXIT_IO:
            io = run.io
            address, size, is_write = io.port, io.size, io.direction == lib.KVM_EXIT_IO_OUT
            device = self._ports.get(address)
            if device is None:
                return False
            data = io_data(run)
        elif run.exit_reason == lib.KVM_EXIT_MMIO:
            mmio = run.mmio
            address, size, is_write = mmio.phys_addr, mmio.len, mmio.is_write
            device = self._device_at(address)
            if device is None:
                return False
            data = ffi.buffer(mmio.data, size)
        else:
            return False
        # A string instruction has several elements for the port.
        for at in range(0, len(data), size):
            try:
                if is_write:
                    device.write(address, size, int.from_bytes(data[at : at + size], "little"))
                    continue
                value = device.read(address, size)
            except EndOfRun:
                raise
            except Exception as error:
                error.add_note(_describe(device, run, "write" if is_write else "read"))
                raise
            if type(value) is not int or value >> 8 * size:
                value = _checked(value, device, run)
            data[at : at + size] = value.to_bytes(size, "little")
        return True

    def _device_at(self, gpa: int) -> Device | None:
        for addresses, device in self._windows:
            if gpa in addresses:
                return device
        return None


def _checked(value: object, device: Device, run: Any) -> int:
    """What a device answered, if it is a number that fits after all: another type of integer."""
    size = run.io.size if run.exit_reason == lib.KVM_EXIT_IO else run.mmio.len
    try:
        number = index(value)  # type: ignore[arg-type]
        if not number >> 8 * size:
            return number
    except TypeError:
        pass
    # Python refuses to write very long numbers in decimal.
    shown = f"{value:#x}" if isinstance(value, int) else printable(repr(value))
    raise ConfigurationError(
        _describe(device, run, "read"),
        f"it answered {shown[:_LONGEST_VALUE]}",
        f"give a number from 0 to {(1 << 8 * size) - 1:#x}",
    )


def _describe(device: Device, run: Any, direction: str) -> str:
    """Which access of which device."""
    if run.exit_reason == lib.KVM_EXIT_IO:
        where, size = f"port {run.io.port:#x}", run.io.size
    else:
        where, size = f"GPA {run.mmio.phys_addr:#x}", run.mmio.len
    unit = "byte" if size == 1 else "bytes"
    return f"{_name_of(device)} at {where}, {direction} of {size} {unit}"


def _name_of(device: object) -> str:
    return f"device {type(device).__name__}"


def _check_device(device: object) -> None:
    """Raise :class:`ConfigurationError` for what is no device."""
    if isinstance(device, type):
        name = device.__name__
        raise ConfigurationError(f"device {name}", "it is a class", f"give an object: {name}()")
    for method in ("read(address, size)", "write(address, size, value)"):
        if not callable(getattr(device, method.partition("(")[0], None)):
            raise ConfigurationError(_name_of(device), f"it has no {method}", "give it one")
