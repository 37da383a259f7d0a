"""Rules of interrupt controllers, routes and eventfds."""

from __future__ import annotations

import errno
from typing import Any

from pyvmm.kvm.advice.state import IoEvent, VcpuState, VmState, file_of, kind_of
from pyvmm.native import ffi, lib

_SIZES = (0, 1, 2, 4, 8)
_CHIPS = {
    lib.KVM_IRQCHIP_PIC_MASTER: 8,
    lib.KVM_IRQCHIP_PIC_SLAVE: 8,
    lib.KVM_IRQCHIP_IOAPIC: lib.KVM_IOAPIC_NUM_PINS,
}
_NO_IRQCHIP = (
    "it needs an interrupt controller in the kernel: call create_irqchip() or split_irqchip() "
    "before the first vCPU"
)


def create_irqchip(state: VmState, request: Any, number: int) -> str:
    if number == errno.EEXIST:
        how = "by split_irqchip()" if state.controller() == "split" else ""
        return f"the VM has an interrupt controller already {how}".strip()
    if number == errno.EINVAL:
        return "it must come before the first vCPU"
    if number == errno.ENOTTY:
        return "this kernel was built without CONFIG_KVM_IOAPIC; split_irqchip() gives LAPICs"
    return ""


def create_pit2(state: VmState, request: Any, number: int) -> str:
    if number == errno.EEXIST:
        return "the VM has a PIT already"
    if number == errno.ENOENT:
        if state.controller() == "split":
            return "split_irqchip() has no PIC in the kernel for it; create_irqchip() has"
        return "it needs the PIC in the kernel: call create_irqchip() first, before the first vCPU"
    return ""


def irqchip(state: VmState, request: Any, number: int) -> str:
    if number == errno.ENXIO:
        if state.controller() == "split":
            return "split_irqchip() has no PIC and IOAPIC in the kernel; create_irqchip() has"
        return "call create_irqchip() first, before the first vCPU"
    if number == errno.EINVAL and request.chip_id not in _CHIPS:
        return f"chip {request.chip_id} is none of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC"
    return ""


def lapic(state: VcpuState, request: Any, number: int) -> str:
    if number == errno.EINVAL and state.vm and not state.vm.controller():
        return _NO_IRQCHIP
    return ""


def interrupt(state: VcpuState, request: Any, number: int) -> str:
    if number == errno.EINVAL and request.irq > 255:
        return f"vector {request.irq:#x} is not from 0 to 0xff"
    if number == errno.ENXIO:
        return "KVM has the interrupt controller here: use irq_line() or signal_msi()"
    if number == errno.EEXIST:
        return "another interrupt is queued: run the vCPU first"
    return ""


def set_gsi_routing(state: VmState, table: Any, number: int) -> str:
    if number != errno.EINVAL:
        return ""
    if not state.controller():
        return _NO_IRQCHIP
    most = state.ask(lib.KVM_CAP_IRQ_ROUTING)
    if table.nr > most > 0:
        return f"{table.nr} routes are more than {most} (KVM_CAP_IRQ_ROUTING)"
    if table.flags:
        return f"flags {table.flags:#x} must be 0"
    entries = [table.entries[at] for at in range(table.nr)]
    for at, entry in enumerate(entries):
        if entry.gsi >= most > 0:
            return f"route {at}: GSIs are below {most} (KVM_CAP_IRQ_ROUTING), not {entry.gsi}"
    return _route(state, entries)


def _route(state: VmState, entries: list[Any]) -> str:
    seen: dict[int, list[tuple[int, int]]] = {}
    for at, entry in enumerate(entries):
        is_pin = entry.type == lib.KVM_IRQ_ROUTING_IRQCHIP
        chip = entry.u.irqchip.irqchip if is_pin else -1
        for other, other_chip in seen.get(entry.gsi, []):
            if not is_pin or other_chip < 0 or other_chip == chip:
                return f"route {at}: GSI {entry.gsi} has route {other} already"
        seen.setdefault(entry.gsi, []).append((at, chip))
        if not is_pin:
            continue
        if state.controller() == "split":
            return f"route {at} leads to a pin, and split_irqchip() leaves pins to this program"
        if chip not in _CHIPS:
            return f"route {at}: there is no irqchip {chip} (KVM_IRQCHIP_*)"
        if entry.u.irqchip.pin >= _CHIPS[chip]:
            pin, pins = entry.u.irqchip.pin, _CHIPS[chip]
            return f"route {at}: irqchip {chip} has {pins} pins, and no pin {pin}"
    return ""


def signal_msi(state: VmState, request: Any, number: int) -> str:
    if number == errno.EINVAL and not state.controller():
        return _NO_IRQCHIP
    return ""


def _eventfd(fd: int, number: int) -> str:
    if number == errno.EBADF and file_of(fd) is None:
        return f"descriptor {fd} is not open"
    if number == errno.EINVAL and "[eventfd]" not in kind_of(fd):
        return f"descriptor {fd} ({kind_of(fd) or 'not open'}) is no eventfd"
    return ""


def irqfd(state: VmState, request: Any, number: int) -> str:
    fd = int(ffi.cast("int32_t", request.fd))
    resamples = request.flags & lib.KVM_IRQFD_FLAG_RESAMPLE
    if number == errno.EBUSY:
        return "that eventfd raises an interrupt already"
    if number == errno.EAGAIN:
        return _NO_IRQCHIP
    if number == errno.EINVAL and not request.flags & lib.KVM_IRQFD_FLAG_DEASSIGN:
        if unknown := request.flags & ~resamples:
            return f"flags {unknown:#x} are not known"
        if not state.controller():
            return _NO_IRQCHIP
        if resamples and state.controller() == "split":
            return "resampling needs the IOAPIC in the kernel, which split_irqchip() leaves out"
    advice = _eventfd(fd, number)
    if not advice and resamples:
        advice = _eventfd(int(ffi.cast("int32_t", request.resamplefd)), number)
    return advice


def ioeventfd(state: VmState, request: Any, number: int) -> str:
    has_value = request.flags & lib.KVM_IOEVENTFD_FLAG_DATAMATCH
    is_port = request.flags & lib.KVM_IOEVENTFD_FLAG_PIO != 0
    value = request.datamatch if has_value else None
    asked = IoEvent(is_port, request.addr, request.len, value, request.fd)
    if number == errno.EEXIST:
        for there in state.io_events:
            if _collide(there, asked):
                return f"an eventfd is signalled for {there} already"
        return "another eventfd is signalled for that already"
    if number == errno.ENOENT:
        return _not_there(state, asked)
    if number == errno.EINVAL and not request.flags & lib.KVM_IOEVENTFD_FLAG_DEASSIGN:
        if request.len not in _SIZES:
            return f"size {request.len} is none of 0 (any), 1, 2, 4, 8"
        if request.addr + request.len >= 1 << 64:
            return f"{request.len} bytes from {request.addr:#x} wrap past 64 bits"
        if not request.len and has_value:
            return "a value needs a size; size 0 is for any"
    return _eventfd(request.fd, number)


def _collide(one: IoEvent, other: IoEvent) -> bool:
    if (one.is_port, one.address) != (other.is_port, other.address):
        return False
    if not one.size or not other.size:
        return True
    return one.size == other.size and (
        one.value is None or other.value is None or one.value == other.value
    )


def _not_there(state: VmState, asked: IoEvent) -> str:
    for there in state.io_events:
        if (there.is_port, there.address) == (asked.is_port, asked.address):
            if str(there) == str(asked):
                return f"the one for {there} signals another eventfd"
            return f"there is none for {asked}, but one for {there}; all must be as it was made"
    return f"there is no ioeventfd for {asked}"
