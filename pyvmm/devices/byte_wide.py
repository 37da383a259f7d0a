"""What devices of the PC's early years have in common: one byte behind each port."""

from __future__ import annotations

from threading import RLock


class ByteWide:
    """A device behind ``ports``; an access of several bytes is one to each port in turn.

    What an access reaches behind the last port reads all ones and ignores writes, as an ISA
    bus does. Derive from it and say what :meth:`read_byte` and :meth:`write_byte` do.
    ``bus.add_ports(device.ports, device)`` puts it on a machine's bus.

    Synchronization: one lock, held over each access, so that vCPUs may share the device. It
    is reentrant: a signal handler may call what the thread it interrupts is in.
    """

    def __init__(self, ports: range) -> None:
        self.ports = ports
        self.lock = RLock()

    def read_byte(self, offset: int) -> int:
        """The byte at the port so far behind the first one."""
        raise NotImplementedError

    def write_byte(self, offset: int, value: int) -> None:
        """Take a byte there."""
        raise NotImplementedError

    def read(self, port: int, size: int) -> int:
        offset, end = port - self.ports.start, self.ports.stop - self.ports.start
        with self.lock:
            if size == 1:
                return self.read_byte(offset)
            value = 0
            for at in range(offset, offset + size):
                byte = self.read_byte(at) if at < end else 0xFF
                value |= byte << 8 * (at - offset)
            return value

    def write(self, port: int, size: int, value: int) -> None:
        offset, end = port - self.ports.start, self.ports.stop - self.ports.start
        with self.lock:
            for at in range(offset, min(offset + size, end)):
                self.write_byte(at, value >> 8 * (at - offset) & 0xFF)
