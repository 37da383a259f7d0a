"""Where a GSI leads, for KVM_SET_GSI_ROUTING (Documentation/virt/kvm/api.rst, 4.52)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pyvmm.kvm.arguments import MOST_U32, listed, need, number
from pyvmm.native import ffi, lib


class IrqchipRoute(NamedTuple):
    """To a pin of an interrupt controller in the kernel: ``lib.KVM_IRQCHIP_*``."""

    gsi: int
    irqchip: int
    pin: int


class MsiRoute(NamedTuple):
    """To an MSI: a 64-bit ``address`` and ``data``."""

    gsi: int
    address: int
    data: int


def routing_table(routes: Sequence[IrqchipRoute | MsiRoute]) -> Any:
    """A ``struct kvm_irq_routing *``."""
    routes = listed("routes", routes)
    table = ffi.new("struct kvm_irq_routing *", {"entries": len(routes)})
    table.nr = len(routes)
    for at, route in enumerate(routes):
        need("route", route, IrqchipRoute, MsiRoute)
        entry = table.entries[at]
        entry.gsi = number("GSI", route.gsi, 0, MOST_U32)
        if isinstance(route, IrqchipRoute):
            entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
            entry.u.irqchip.irqchip = number("irqchip", route.irqchip, 0, MOST_U32)
            entry.u.irqchip.pin = number("pin", route.pin, 0, MOST_U32)
        else:
            entry.type = lib.KVM_IRQ_ROUTING_MSI
            address = number("address", route.address)
            entry.u.msi.address_lo, entry.u.msi.address_hi = address & MOST_U32, address >> 32
            entry.u.msi.data = number("data", route.data, 0, MOST_U32)
    return table
