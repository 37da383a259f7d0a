"""Where a GSI leads, for KVM_SET_GSI_ROUTING (Documentation/virt/kvm/api.rst, 4.52)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    table = ffi.new("struct kvm_irq_routing *", {"entries": len(routes)})
    table.nr = len(routes)
    for at, route in enumerate(routes):
        entry = table.entries[at]
        entry.gsi = route.gsi
        if isinstance(route, IrqchipRoute):
            entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
            entry.u.irqchip.irqchip, entry.u.irqchip.pin = route.irqchip, route.pin
        else:
            entry.type = lib.KVM_IRQ_ROUTING_MSI
            entry.u.msi.address_lo = route.address & 0xFFFF_FFFF
            entry.u.msi.address_hi = route.address >> 32
            entry.u.msi.data = route.data
    return table
