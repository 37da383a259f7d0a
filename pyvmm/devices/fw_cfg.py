"""QEMU's firmware configuration at ports 0x510 and 0x511, with the few keys that guests ask for.

A guest writes a key to the first port as 16 bits and reads its value from the second, byte by
byte. A value's end, and a key that is not there, read zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

SELECTOR, DATA = 0x510, 0x511

SIGNATURE, REVISION, RAM_SIZE, VCPUS, MAX_VCPUS = 0x00, 0x01, 0x03, 0x05, 0x0F


class FirmwareConfiguration:
    """``values`` has the bytes of each key.

    Synchronization: vCPUs may share it; which key is chosen is the machine's, not a vCPU's.
    """

    PORTS = range(SELECTOR, DATA + 1)

    def __init__(self, values: Mapping[int, bytes]) -> None:
        self._values = dict(values)
        self._value = b""
        self._at = 0
        self._lock = Lock()

    @classmethod
    def of_machine(cls, vcpus: int, max_vcpus: int, ram_size: int) -> FirmwareConfiguration:
        """The keys that a machine has whatever it is to boot. ``ram_size`` is in bytes."""
        return cls(
            {
                SIGNATURE: b"QEMU",
                REVISION: (1).to_bytes(4, "little"),  # no DMA
                RAM_SIZE: ram_size.to_bytes(8, "little"),
                VCPUS: vcpus.to_bytes(2, "little"),
                MAX_VCPUS: max_vcpus.to_bytes(2, "little"),
            }
        )

    def read(self, port: int, size: int) -> int:
        if port == SELECTOR:
            return (1 << 8 * size) - 1
        with self._lock:
            data = self._value[self._at : self._at + size]
            self._at = min(self._at + size, len(self._value))
        return int.from_bytes(data, "little")

    def write(self, port: int, size: int, value: int) -> None:
        if port == SELECTOR and size == 2:
            with self._lock:
                self._value, self._at = self._values.get(value, b""), 0
