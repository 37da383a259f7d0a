"""TLB flushes and faults that a conversion costs: whether too little or far too much is done."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, KIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, Missing, check
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.memory import Memory
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("private_memory", "native_guests", "statistics")
SIZE = 16 * PAGE
# The system may unmap a page or flush on its own account, so more than is needed is excused; not
# most times.
_ATTEMPTS = 5


def flushes(vm: GuestVm, call: Callable[[], object]) -> int:
    before = vm.counter("remote_tlb_flush_requests")
    call()
    return vm.counter("remote_tlb_flush_requests") - before


def usual(seen: list[int]) -> int:
    """The median."""
    return sorted(seen)[len(seen) // 2]


def fill_both(memory: Memory) -> None:
    """Both sides have pages; the guest has the shared one mapped."""
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.set_shared(0, SIZE)
    memory.guest_fill(0, SIZE, SHARED)


@case(
    "FL1",
    "a change of mapped pages flushes: once for a range, and not without need",
    needs=NEEDS,
    backend="guest_memfd",
    vary={
        "what": (
            "attribute",
            "attribute of pages that are not mapped",
            "punch",
            "punch of pages that are not there",
            "discard of the stale side",
        )
    },
)
def flush_counts(tools: Toolbox, what: str) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE)
    wanted = 1 if what in ("attribute", "punch") else 0
    seen = []
    for _ in range(_ATTEMPTS):
        fill_both(memory)
        if what == "attribute":
            count = flushes(vm, lambda: memory.set_private(0, SIZE))
        elif what.startswith("attribute"):
            memory.set_private(0, SIZE)
            count = flushes(vm, lambda: memory.set_shared(0, SIZE))
        elif what == "punch":
            memory.set_private(0, SIZE)
            memory.guest_fill(0, SIZE, PRIVATE)
            count = flushes(vm, lambda: memory.punch(0, SIZE))
        elif what.startswith("punch"):
            memory.punch(0, SIZE)
            memory.set_private(0, SIZE)
            count = flushes(vm, lambda: memory.punch(0, SIZE))
        else:
            memory.set_private(0, SIZE)
            count = flushes(vm, lambda: memory.shared.discard(0, SIZE))
        check(count >= wanted, f"{what}: no TLB flush, though the guest had the pages mapped")
        seen.append(count)
    if usual(seen) > wanted:
        many = "more than one TLB flush for one range"
        none = "TLB flushes though nothing was mapped"
        raise CheckFailed(f"{what}: {many if wanted else none}", f"{seen}")


@case(
    "FL2",
    "a change reaches its range only: pages beside it stay mapped",
    needs=NEEDS,
    backend="guest_memfd",
    vary={
        "what": ("to private", "to shared", "punch"),
        "pages": ((5, 1), (4, 4), (0, 1), (15, 1)),
        "gpa": (512 * KIB, 4 * GIB),
    },
)
def neighbours_stay(tools: Toolbox, what: str, pages: tuple[int, int], gpa: int) -> None:
    first, count = pages
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, SIZE)
    call = {
        "to private": memory.set_private,
        "to shared": memory.set_shared,
        "punch": memory.punch,
    }[what]
    faults: list[int] = []
    for _ in range(_ATTEMPTS):
        memory.set_shared(0, SIZE)
        if what != "to private":
            memory.set_private(0, SIZE)
        memory.guest_fill(0, SIZE, SHARED)
        call(first * PAGE, count * PAGE)
        before = vm.cpu.counter("pf_taken")
        for start, end in ((0, first), (first + count, 16)):
            if start < end:
                memory.expect_guest(
                    start * PAGE, (end - start) * PAGE, SHARED, "pages beside those that changed"
                )
        faults.append(vm.cpu.counter("pf_taken") - before)
    check(
        usual(faults) == 0,
        f"{what}: pages beside the range were unmapped too",
        f"faults on them: {faults}",
    )


@case(
    "FL3",
    "a page is mapped by one fault, and stays mapped",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"state": ("private", "shared")},
)
def faults(tools: Toolbox, state: str) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE)
    if state == "private":
        memory.set_private(0, SIZE)
    memory.fill(0, SIZE, SHARED)
    seen = []
    for _ in range(_ATTEMPTS):
        memory.delete()
        memory.create()
        memory.guest_fill(0, SIZE, PRIVATE)
        before = vm.cpu.counter("pf_taken")
        memory.expect_guest(0, SIZE, PRIVATE, "pages that were just written")
        seen.append(vm.cpu.counter("pf_taken") - before)
    check(usual(seen) == 0, f"{state} pages fault again each time they are used", f"{seen}")


@case(
    "FL5",
    "deleting a slot whose pages are mapped flushes",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"state": ("private", "shared"), "slots": (1, 4)},
)
def deletion(tools: Toolbox, state: str, slots: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE, slots=slots)
    if state == "private":
        memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, SHARED)
    count = flushes(vm, memory.delete)
    check(count >= slots, "a deleted slot: no TLB flush, though the guest had its pages mapped")


@case(
    "FL4",
    "a change over several slots flushes also when only one of them has mapped pages",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"what": ("to private", "to shared", "punch"), "slot": (0, 1, 3)},
)
def one_slot_mapped(tools: Toolbox, what: str, slot: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE, slots=4)
    call = {
        "to private": memory.set_private,
        "to shared": memory.set_shared,
        "punch": memory.punch,
    }[what]
    (memory.set_shared if what == "to private" else memory.set_private)(0, SIZE)
    memory.guest_fill(memory.slots[slot].gpa - memory.gpa, PAGE, SHARED)
    count = flushes(vm, lambda: call(0, SIZE))
    check(count > 0, f"{what} over several slots: no TLB flush, though a page in one was mapped")


@case(
    "FL6",
    "a change flushes the TLB of each vCPU, not only of some",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"what": ("to private", "to shared", "punch")},
)
def each_vcpu(tools: Toolbox, what: str) -> None:
    vm = tools.private_vm(cpus=3)
    memory = tools.memory(vm, 4 * GIB, SIZE)
    call = {
        "to private": memory.set_private,
        "to shared": memory.set_shared,
        "punch": memory.punch,
    }[what]
    for _ in range(3):
        (memory.set_shared if what == "to private" else memory.set_private)(0, SIZE)
        for cpu in vm.cpus:
            cpu.read(memory.gpa)
        before = [cpu.counter("tlb_flush") for cpu in vm.cpus]
        requests = flushes(vm, lambda: call(0, SIZE))
        check(requests > 0, f"{what}: no TLB flush, though the guest had the pages mapped")
        for cpu in vm.cpus:
            # The flush is due before the vCPU runs again.
            cpu.run(routines.HALT)
        grown = [cpu.counter("tlb_flush") - then for cpu, then in zip(vm.cpus, before, strict=True)]
        if not any(grown):
            # Under Hyper-V, KVM asks that to flush.
            raise Missing("TLB flushes that KVM asks each vCPU for")
        # A vCPU that moves to another CPU may flush too, but none flushes less.
        check(all(grown), f"{what}: the TLB of a vCPU is not flushed, others are", f"{grown}")
