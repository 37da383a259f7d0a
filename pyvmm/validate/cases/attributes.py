"""KVM_SET_MEMORY_ATTRIBUTES: the attribute belongs to the GPA, whatever slots come and go."""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.native import ffi, lib
from pyvmm.validate import routines
from pyvmm.validate.case import GIB, PAGE, case
from pyvmm.validate.cases.conversions import PRIVATE, SHARED
from pyvmm.validate.check import Missing, expect, expect_errno
from pyvmm.validate.memory import PRIVATE as ATTRIBUTE
from pyvmm.validate.toolbox import Toolbox

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
        expect_errno(lambda: call(**change), 22, f"KVM_SET_MEMORY_ATTRIBUTES with {what}")

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
        for attributes in (0, ATTRIBUTE):
            expect_errno(
                lambda attributes=attributes: call(attributes),  # type: ignore[misc]
                errno.ENOTTY,
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
