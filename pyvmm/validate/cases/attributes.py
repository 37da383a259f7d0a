"""KVM_SET_MEMORY_ATTRIBUTES: the attribute belongs to the GPA, whatever slots come and go."""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import GIB, HUGE, MIB, PAGE, case
from pyvmm.validate.kit.check import Missing, errno_of, expect, expect_errno
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE


@case(
    "AT1",
    "an attribute set where no slot is holds for the slot that comes",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"pages": ((0, 16), (0, 1), (15, 1), (5, 6))},
)
def before_the_slot(tools: Toolbox, pages: tuple[int, int]) -> None:
    first, count = pages
    vm = tools.private_vm()
    gpa = 4 * GIB
    vm.vm.set_memory_attributes(gpa + first * PAGE, count * PAGE, ATTRIBUTE)
    memory = tools.memory(vm, gpa, SIZE)
    memory.fill(0, SIZE, SHARED)
    for page in range(16):
        if first <= page < first + count:
            memory.expect_guest_zero(page * PAGE, PAGE, "a page made private before its slot")
        else:
            memory.expect_guest(page * PAGE, PAGE, SHARED, "a page beside one made private before")


@case(
    "AT2",
    "an attribute outlives its slot, and can change while there is none",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"change": ("none", "to shared", "to private")},
)
def over_deletion(tools: Toolbox, change: str) -> None:
    memory = tools.memory(tools.private_vm(), 4 * GIB, SIZE)
    memory.guest_fill(0, SIZE, SHARED)
    memory.set_private(2 * PAGE, 4 * PAGE)
    memory.guest_fill(2 * PAGE, 4 * PAGE, PRIVATE)
    memory.delete()
    if change == "to shared":
        memory.set_shared(0, SIZE)
    elif change == "to private":
        memory.set_private(0, SIZE)
    memory.create()
    if change == "to shared":
        memory.expect_guest(0, SIZE, SHARED, "pages made shared while their slot was deleted")
        return
    memory.expect_guest(2 * PAGE, 4 * PAGE, PRIVATE, "private pages over a deletion of their slot")
    if change == "to private":
        memory.expect_guest_zero(0, 2 * PAGE, "pages made private while their slot was deleted")
    else:
        memory.expect_guest(0, 2 * PAGE, SHARED, "shared pages over a deletion of their slot")


@case(
    "AT3",
    "attributes where no slot is and beyond MAXPHYADDR are accepted",
    needs=("private_memory",),
    backend="guest_memfd",
    # The memory in use with one more bit, and the highest page that a range can end with.
    vary={"gpa": (*(4 * GIB + (1 << bit) for bit in (36, 44, 51, 52, 60)), (1 << 64) - 2 * PAGE)},
)
def nowhere(tools: Toolbox, gpa: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE)
    memory.guest_fill(0, SIZE, SHARED)
    vm.vm.set_memory_attributes(gpa, PAGE, ATTRIBUTE)
    memory.expect_guest(0, SIZE, SHARED, "shared memory while attributes are set elsewhere")
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    vm.vm.set_memory_attributes(gpa, PAGE, 0)
    memory.expect_guest(0, SIZE, PRIVATE, "private memory after attributes were set elsewhere")


@case(
    "AT4",
    "what the call must refuse changes nothing",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={
        "wrong": (
            "flags",
            "high flags",
            "size 0",
            "size unaligned",
            "gpa unaligned",
            "wrap",
            "size all ones",
            "unknown attributes",
        )
    },
)
def refused(tools: Toolbox, wrong: str) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)

    def call(gpa: int = 4 * GIB, size: int = SIZE, attributes: int = 0, flags: int = 0) -> None:
        request = ffi.new("struct kvm_memory_attributes *", (gpa, size, attributes, flags))
        vm.vm.ioctl("KVM_SET_MEMORY_ATTRIBUTES", request)

    def expect_refused(what: str, **change: int) -> None:
        expect_errno(lambda: call(**change), errno.EINVAL, f"KVM_SET_MEMORY_ATTRIBUTES with {what}")

    call(attributes=ATTRIBUTE)
    if wrong == "flags":
        for bit in range(32):
            expect_refused(f"flags bit {bit}", flags=1 << bit)
    elif wrong == "high flags":
        for bit in range(32, 64):
            expect_refused(f"flags bit {bit}", flags=1 << bit)
    elif wrong == "size 0":
        expect_refused("size 0", size=0)
    elif wrong == "size unaligned":
        for size in (1, PAGE - 1, PAGE + 1, SIZE + 512):
            expect_refused(f"size {size:#x}", size=size)
    elif wrong == "gpa unaligned":
        for offset in (1, 8, PAGE - 1):
            expect_refused(f"a GPA {offset:#x} into a page", gpa=4 * GIB + offset, size=PAGE)
    elif wrong == "wrap":
        for gpa, size in ((-PAGE, 2 * PAGE), (4 * GIB, (1 << 64) - PAGE), (1 << 63, 1 << 63)):
            if (gpa + size) % (1 << 64):
                expect_refused("a range that wraps", gpa=gpa % (1 << 64), size=size)
    elif wrong == "size all ones":
        expect_refused("a size of all ones", size=(1 << 64) - 1)
    else:
        for bit in range(64):
            if 1 << bit != ATTRIBUTE:
                expect_refused(f"attribute bit {bit}", attributes=1 << bit)
                expect_refused(f"attribute bit {bit} and 3", attributes=1 << bit | ATTRIBUTE)
    memory.expect_guest(0, SIZE, PRIVATE, "private pages after a call that was refused")


@case(
    "AT5",
    "a VM says which attributes it has, and /dev/kvm is not to be believed",
    vary={"vm_type": (0, 1)},
)
def asked(tools: Toolbox, vm_type: int) -> None:

    try:
        vm = tools.keep(tools.kvm.create_vm(vm_type))
    except KvmError:
        raise Missing(f"VM type {vm_type}") from None
    said = vm.check_extension(lib.KVM_CAP_MEMORY_ATTRIBUTES)
    # /dev/kvm has them whenever they are compiled in, whatever its VMs have.
    compiled_in = bool(tools.kvm.check_extension(lib.KVM_CAP_MEMORY_ATTRIBUTES))

    def call(attributes: int) -> None:
        request = ffi.new("struct kvm_memory_attributes *", (0, PAGE, attributes, 0))
        vm.ioctl("KVM_SET_MEMORY_ATTRIBUTES", request)

    if vm_type == lib.KVM_X86_DEFAULT_VM:
        expect(said, 0, "attributes that a default VM says it has")
    if compiled_in:
        call(0)
        right = 0 if said & ATTRIBUTE else errno.EINVAL
        expect_errno(lambda: call(ATTRIBUTE), right, "PRIVATE on a VM that has it or has it not")
    else:
        # Where memory converts in place the ioctl may be there still, and takes no attribute.
        is_there = not missing("in_place") and not errno_of(lambda: call(0))
        for attributes, right in ((0, 0), (ATTRIBUTE, errno.EINVAL)):
            expect_errno(
                lambda attributes=attributes: call(attributes),  # type: ignore[misc]
                right if is_there else errno.ENOTTY,
                "KVM_SET_MEMORY_ATTRIBUTES on a kernel without it",
            )
    expect(said & ~ATTRIBUTE, 0, "attributes that no released kernel has")


@case(
    "AT8",
    "a change over a gap between slots reaches both, and holds for a slot made in the gap",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"to": ("private", "shared")},
)
def over_a_gap(tools: Toolbox, to: str) -> None:
    vm = tools.private_vm()
    low, high = (tools.memory(vm, 4 * GIB + at * SIZE, SIZE) for at in (0, 2))
    for memory in (low, high):
        memory.guest_fill(0, SIZE, SHARED)
        if to == "shared":
            memory.set_private(0, SIZE)
            memory.guest_fill(0, SIZE, PRIVATE)
    if to == "shared":
        vm.vm.set_memory_attributes(4 * GIB + SIZE, SIZE, ATTRIBUTE)
    vm.vm.set_memory_attributes(4 * GIB, 3 * SIZE, ATTRIBUTE if to == "private" else 0)
    what = f"pages made {to} together with a gap between slots"
    gap = tools.memory(vm, 4 * GIB + SIZE, SIZE)
    gap.fill(0, SIZE, SHARED)
    for memory in (high, low, gap):
        if to == "private":
            memory.expect_guest_zero(0, SIZE, what)
        else:
            memory.expect_guest(0, SIZE, SHARED, what)


@case(
    "AT6",
    "two VMs have attributes of their own",
    needs=("private_memory",),
    backend="guest_memfd",
)
def two_vms(tools: Toolbox) -> None:
    one, other = (tools.memory(tools.private_vm(), 4 * GIB, SIZE) for _ in range(2))
    one.guest_fill(0, SIZE, SHARED)
    other.guest_fill(0, SIZE, SHARED)
    one.set_private(0, SIZE)
    other.expect_guest(0, SIZE, SHARED, "another VM's shared memory")
    one.guest_fill(0, SIZE, PRIVATE)
    other.set_private(0, SIZE)
    other.expect_guest_zero(0, SIZE, "another VM's private memory")
    other.punch(0, SIZE)
    one.expect_guest(0, SIZE, PRIVATE, "private memory after another VM's was punched")


@case(
    "AT7",
    "a private page without a slot exits, and shared again it is MMIO",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": (512 * 1024, 3 * GIB, 4 * GIB, 7 * GIB)},
)
def mmio(tools: Toolbox, gpa: int) -> None:
    vm = tools.private_vm()
    vm.vm.set_memory_attributes(gpa, PAGE, ATTRIBUTE)
    vm.cpu.prepare(routines.READ[8], rdi=gpa + 0x123 * 8)
    vm.cpu.expect_fault(gpa, "a private page where no slot is")
    vm.vm.set_memory_attributes(gpa, PAGE, 0)
    outcome = vm.cpu.enter()
    expect(outcome.reason, lib.KVM_EXIT_MMIO, "the exit of a shared page where no slot is")
    expect(vm.cpu.vcpu.kvm_run.mmio.phys_addr, gpa + 0x123 * 8, "the GPA of that exit")


@case(
    "AT9",
    "a range that ends or begins at the border of a large block reaches no page behind it",
    needs=("private_memory",),
    backend="guest_memfd",
    combinations=(
        *({"border": at, "size": PAGE} for at in (4 * GIB + HUGE, 4 * GIB, 5 * GIB)),
        *({"border": at, "size": HUGE} for at in (4 * GIB + HUGE, 4 * GIB, 5 * GIB)),
        {"border": 5 * GIB, "size": 64 * MIB},
    ),
)
def at_a_border(tools: Toolbox, border: int, size: int) -> None:
    half = SIZE // 2
    for side, start in (("ends", border - size), ("begins", border)):
        vm = tools.private_vm()
        memory = tools.memory(vm, border - half, SIZE)
        memory.fill(0, SIZE, SHARED)
        # Nothing is mapped yet, so that the attribute itself shows.
        vm.vm.set_memory_attributes(start, size, ATTRIBUTE)
        for page in range(16):
            at = memory.gpa + page * PAGE
            if start <= at < start + size:
                what = f"a page in a private range that {side} at the border of a block"
                memory.expect_guest_zero(page * PAGE, PAGE, what)
            else:
                what = f"a page outside a private range that {side} at the border of a block"
                memory.expect_guest(page * PAGE, PAGE, SHARED, what)
        vm.vm.set_memory_attributes(start, size, 0)
        memory.expect_guest(0, SIZE, SHARED, f"pages shared again, of a range that {side} there")


@case(
    "AT10",
    "a range of more than 4 GiB reaches from its first page to its last",
    needs=("private_memory",),
    backend="guest_memfd",
)
def large_range(tools: Toolbox) -> None:
    vm = tools.private_vm()
    gpa, size = 3 * GIB, 4 * GIB + 2 * PAGE
    first, middle, last = (tools.memory(vm, at, 4 * PAGE) for at in (gpa, 5 * GIB, 7 * GIB))
    for memory in (first, middle, last):
        memory.fill(0, memory.size, SHARED)
    vm.vm.set_memory_attributes(gpa, size, ATTRIBUTE)
    for memory, pages in ((last, 2), (middle, 4), (first, 4)):
        memory.expect_guest_zero(0, pages * PAGE, "pages in a private range of more than 4 GiB")
    behind = "pages behind a private range of more than 4 GiB"
    last.expect_guest(2 * PAGE, 2 * PAGE, SHARED, behind)


@case(
    "AT11",
    "a change reaches all pages of a range in which some have the state already",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={
        "to": ("private", "shared"),
        "already": ((4, 11), (4,), (11,), (4, 5, 10, 11), (7,), (4, 6, 7, 9, 11)),
    },
)
def partly(tools: Toolbox, to: str, already: tuple[int, ...]) -> None:
    memory = tools.memory(tools.private_vm(), 4 * GIB, SIZE)
    change, undo = memory.set_private, memory.set_shared
    if to == "shared":
        change, undo = undo, change
    memory.guest_fill(0, SIZE, SHARED)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    undo(0, SIZE)
    before, after = (SHARED, PRIVATE) if to == "private" else (PRIVATE, SHARED)
    for page in already:
        change(page * PAGE, PAGE)
    memory.expect_guest(0, 4 * PAGE, before, f"pages before a range that becomes {to}")
    change(4 * PAGE, 8 * PAGE)
    for page in range(11, 3, -1):
        what = f"a page of a range that became {to} when some of it were so already"
        memory.expect_guest(page * PAGE, PAGE, after, what)
    memory.expect_guest(12 * PAGE, 4 * PAGE, before, f"pages behind a range that became {to}")


@case(
    "AT12",
    "a change that succeeds returns 0, whatever it did",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"to": ("private", "shared"), "slot": (True, False)},
)
def returns(tools: Toolbox, to: str, slot: bool) -> None:
    vm, gpa = tools.private_vm(), 4 * GIB
    if slot:
        tools.memory(vm, gpa, SIZE).guest_fill(0, SIZE, SHARED)
    if to == "shared":
        vm.vm.set_memory_attributes(gpa, SIZE, ATTRIBUTE)
    attributes = ATTRIBUTE if to == "private" else 0
    for pages, what in ((1, "one page"), (16, "a range"), (16, "a range that is so already")):
        request = ffi.new("struct kvm_memory_attributes *", (gpa, pages * PAGE, attributes, 0))
        expect(
            vm.vm.ioctl("KVM_SET_MEMORY_ATTRIBUTES", request), 0, f"what a change of {what} returns"
        )


# So many blocks of 2 MiB that what KVM keeps of them fills whole pages of its own: behind it
# nothing is mapped, and whoever looks there dies at once.
_BLOCKS = 1024 * HUGE


@case(
    "AT13",
    "a change at the edges of a slot looks at no block that the slot does not have",
    needs=("private_memory",),
    backend="guest_memfd",
    # Where the slot begins in its GiB; its end is as far from the next one's.
    vary={"offset": (0, HUGE, GIB // 2, GIB - HUGE)},
)
def at_the_edges_of_a_slot(tools: Toolbox, offset: int) -> None:
    vm = tools.private_vm()
    start = 4 * GIB + offset
    end = start + _BLOCKS
    shared = tools.shared_side(start, _BLOCKS, "shmem")
    vm.vm.set_user_memory_region(vm.new_slot(), start, _BLOCKS, shared.address)
    # From the border of a GiB inside the slot to its end, and from its start to such a border.
    last, first = (end - PAGE) // GIB * GIB, -(-(start + PAGE) // GIB) * GIB
    ranges = [
        (last, end - last),
        (start, first - start),
        (end - HUGE, HUGE),
        (start, HUGE),
        (end - PAGE, PAGE),
        (start, PAGE),
        (end - PAGE, HUGE),
        (end - HUGE - PAGE, HUGE),
        (start - HUGE, HUGE + PAGE),
        (start - PAGE, 2 * PAGE),
    ]
    for gpa, size in ranges:
        vm.vm.set_memory_attributes(gpa, size, ATTRIBUTE)
        what = f"in a slot with a private range at {gpa - start:#x} of it, {size:#x} bytes"
        for page in (start, end - PAGE, gpa - PAGE, gpa, gpa + size - PAGE, gpa + size):
            if not start <= page < end:
                continue
            if gpa <= page < gpa + size:
                vm.cpu.prepare(routines.READ[8], rdi=page)
                vm.cpu.expect_fault(page, f"a private page {what}")
            else:
                vm.cpu.expect_read(page, 0, f"a shared page {what}")
        vm.vm.set_memory_attributes(gpa, size, 0)
        vm.cpu.expect_read(max(gpa, start), 0, f"a page that is shared again {what}")
