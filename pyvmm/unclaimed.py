"""Accesses of a guest to ports and addresses that nobody has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyvmm.native import ffi, lib

_MOST_PORTS = 16

# What guests from elsewhere look for, and what stands in for it here: on every platform that
# lacks it, and where the guest protocol is.
_HINTS = (
    (range(0x20, 0x22), "the PIC: there is one with --irqchip"),
    (range(0xA0, 0xA2), "the PIC: there is one with --irqchip"),
    (range(0x40, 0x44), "the PIT: there is one with --irqchip"),
    (range(0x70, 0x72), "the RTC: there is one on the platforms multiboot and linux"),
    (range(0x3C0, 0x3E0), "VGA: there is no screen"),
    (range(0xCF8, 0xD00), "PCI: there is none"),
)
_CONSOLE = f"the console is port {lib.PORT_CONSOLE:#x}"
_HINTS_OF_PROTOCOL = (
    (range(0x3F8, 0x400), f"COM1: there is no UART; {_CONSOLE}; --platform bare has COM1"),
    (range(0x2F8, 0x300), f"COM2: there is no UART; {_CONSOLE}"),
    (range(lib.PORT_CONSOLE, lib.PORT_CONSOLE + 1), "the console takes only bytes"),
    (range(lib.PORT_EXIT, lib.PORT_EXIT + 1), "the exit port is written, not read"),
    (
        range(lib.PORT_DOORBELL_GPA, lib.PORT_FEATURES + 1, 4),
        "the guest protocol's, in another width or direction",
    ),
)
_SCREEN = range(0xA0000, 0xC0000)


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """Accesses to one port, or to one GPA, that nobody has. The other one is None.

    ``of_protocol``: by a guest of the guest protocol, which may be meant for another platform.
    """

    port: int | None
    gpa: int | None
    count: int
    of_protocol: bool = True

    @property
    def hint(self) -> str:
        """What the guest may have meant; empty where nobody knows."""
        if self.port is None:
            return "VGA's memory: there is no screen" if self.gpa in _SCREEN else ""
        hints = (*_HINTS_OF_PROTOCOL, *_HINTS) if self.of_protocol else _HINTS
        return next((hint for ports, hint in hints if self.port in ports), "")

    def __str__(self) -> str:
        place = f"GPA {self.gpa:#x}" if self.port is None else f"port {self.port:#x}"
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"{place} {times}" + (f" ({self.hint})" if self.hint else "")


def unclaimed_accesses(protocol: Any) -> tuple[tuple[Unclaimed, ...], int, int]:
    """The ports that were missed most, the first GPAs, and the number of all such accesses.

    ``protocol`` is the machine's ``struct protocol *``. The numbers are of ports and of memory.
    """
    if not lib.protocol_has_unclaimed(protocol):  # as with most guests
        return (), 0, 0
    room = max(_MOST_PORTS, lib.UNCLAIMED_GPAS)
    found, total = ffi.new("struct unclaimed[]", room), ffi.new("uint64_t *")
    known = lib.protocol_unclaimed_ports(protocol, found, _MOST_PORTS, total)
    own = not protocol.is_foreign
    ports = tuple(Unclaimed(each.address, None, each.count, own) for each in found[0:known])
    of_ports = total[0]
    known = lib.protocol_unclaimed_gpas(protocol, found, lib.UNCLAIMED_GPAS, total)
    gpas = tuple(Unclaimed(None, each.address, each.count, own) for each in found[0:known])
    return ports + gpas, of_ports, total[0]
