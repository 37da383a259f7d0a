"""Coalesced MMIO: writes that wait in a ring, which userspace can write to as it likes."""

from __future__ import annotations

import errno
from typing import Any

from pyvmm.kvm.coalesced import CoalescedRing, CoalescedWrite
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import expect, expect_errno
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.toolbox import Toolbox

GPA = 5 * GIB
PORT = 0x510
TAG = 0x5A << 48
# What the page has room for, and of which one entry always stays free.
ENTRIES = (PAGE_SIZE - ffi.sizeof("struct kvm_coalesced_mmio_ring")) // ffi.sizeof(
    "struct kvm_coalesced_mmio"
)


def a_ring(tools: Toolbox) -> tuple[GuestVm, Any]:
    """A VM with a zone of one page, and its ring as the kernel sees it."""
    vm = tools.vm()
    vm.vm.register_coalesced_mmio(GPA, PAGE)
    start = ffi.cast("char *", vm.cpu.vcpu.kvm_run)
    page = start + lib.KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE_SIZE
    return vm, ffi.cast("struct kvm_coalesced_mmio_ring *", page)


def write_words(vm: GuestVm, gpa: int, count: int) -> int:
    """The guest writes so many words one after the other: how many had to exit."""
    cpu, exits = vm.cpu, 0
    cpu.prepare(routines.FILL, rdi=gpa, rax=TAG, rsi=8, rcx=count, r8=(1 << 64) - 1)
    outcome = cpu.enter()
    while outcome.reason == lib.KVM_EXIT_MMIO:
        exits += 1
        outcome = cpu.enter()
    expect(outcome.reason, lib.KVM_EXIT_HLT, "exit reason after writes to a zone")
    return exits


def words(gpa: int, count: int) -> list[CoalescedWrite]:
    return [
        CoalescedWrite(at, (TAG + at).to_bytes(8, "little"), False)
        for at in range(gpa, gpa + 8 * count, 8)
    ]


@case(
    "CO1",
    "a ring takes as many writes as it has room for, wherever in it the first one is",
    needs=("guests",),
    vary={"first": (0, 1, 42, 84, 85, 86, 127, 168, 169)},
)
def fills(tools: Toolbox, first: int) -> None:
    vm, ring = a_ring(tools)
    room = ENTRIES - 1
    ring.first = ring.last = first
    for count in (1, room - 1, room):
        exits = write_words(vm, GPA, count)
        expect(exits, 0, f"exits for {count} writes to an empty ring of {ENTRIES} entries")
        seen = CoalescedRing(vm.cpu.vcpu).drain()
        expect(seen == words(GPA, count), True, f"whether the ring has the {count} writes in order")
    expect(write_words(vm, GPA, room + 3), 3, "exits for three writes more than there is room for")
    expect(CoalescedRing(vm.cpu.vcpu).drain() == words(GPA, room), True, "the writes before them")


@case("CO2", "a ring whose indices are wrong takes nothing, and hurts nobody", needs=("guests",))
def wrong_indices(tools: Toolbox) -> None:
    vm, ring = a_ring(tools)
    for last in (ENTRIES, ENTRIES + 1, 1 << 16, 1 << 31, (1 << 32) - 1):
        ring.first, ring.last = 0, last
        expect(write_words(vm, GPA, 2), 2, f"exits for two writes with `last` at {last:#x}")
        expect(int(ring.last), last, "`last` after writes that the ring did not take")
    for first in (ENTRIES, 1 << 31, (1 << 32) - 1):
        ring.first, ring.last = first, 5
        expect(write_words(vm, GPA, 2), 0, f"exits for two writes with `first` at {first:#x}")
        expect(int(ring.last), 7, "`last` after two writes")
    ring.first = ring.last = 0
    expect(write_words(vm, GPA, 2), 0, "exits for two writes after all of this")


@case("CO3", "zones: what is in one does not exit, what is beside it does", needs=("guests",))
def zones(tools: Toolbox) -> None:
    vm, _ = a_ring(tools)
    ring = CoalescedRing(vm.cpu.vcpu)
    cpu = vm.cpu
    for gpa, size, exits in (
        (GPA, 8, 0),
        (GPA + PAGE - 8, 8, 0),
        (GPA + PAGE - 1, 1, 0),
        (GPA - 8, 8, 1),
        (GPA + PAGE, 8, 1),
        (GPA + PAGE, 1, 1),
    ):
        cpu.prepare(routines.WRITE[size], rdi=gpa, rax=0x77)
        reason = lib.KVM_EXIT_MMIO if exits else lib.KVM_EXIT_HLT
        expect(cpu.enter().reason, reason, f"exit reason of {size} bytes at {gpa:#x}")
        if exits:
            cpu.finish("after an MMIO exit")
        seen = [(write.address, len(write.data)) for write in ring.drain()]
        expect(seen, [] if exits else [(gpa, size)], f"ring after {size} bytes at {gpa:#x}")
    if vm.vm.check_extension(lib.KVM_CAP_COALESCED_PIO):
        vm.vm.register_coalesced_mmio(PORT, 4, is_port=True)
        cpu.prepare(routines.OUTL, rdx=PORT, rax=0x1234)
        expect(cpu.enter().reason, lib.KVM_EXIT_HLT, "exit reason of a port in a zone")
        port = CoalescedWrite(PORT, (0x1234).to_bytes(4, "little"), True)
        expect(ring.drain() == [port], True, "whether the ring has the write to the port")
    request = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": GPA, "size": PAGE, "pio": 2})
    for call in ("KVM_REGISTER_COALESCED_MMIO", "KVM_UNREGISTER_COALESCED_MMIO"):
        expect_errno(lambda call=call: vm.vm.ioctl(call, request), errno.EINVAL, f"{call}, pio 2")  # type: ignore[misc]
    vm.vm.unregister_coalesced_mmio(GPA, PAGE)
    expect(write_words(vm, GPA, 1), 1, "exits for a write to a zone that was taken away")
