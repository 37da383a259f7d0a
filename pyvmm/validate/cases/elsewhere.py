"""Where the other cases do not look: every word of a page, other VMs, other processes, high GPAs,
other kinds of slots beside private ones, and pages that were something else before."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from functools import partial

from pyvmm.guest.long_mode import REACH
from pyvmm.native import lib
from pyvmm.validate.kit import child, routines
from pyvmm.validate.kit.case import GIB, HUGE, PAGE, case
from pyvmm.validate.kit.check import Missing, check, errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.guest import TABLES, GuestVm
from pyvmm.validate.kit.known import MMIO_THEN_PRIVATE, Known
from pyvmm.validate.kit.memory import ATTRIBUTE, Memory
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE
GPA = 4 * GIB
NEEDS = ("private_memory",)
BACKEND = "guest_memfd"


@case(
    "EL1",
    "each word of a private page is its own, and zero when the page is recycled",
    needs=NEEDS,
    backend=BACKEND,
    vary={"recycled": ("by a punch", "from another file", "from another VM")},
)
def every_word(tools: Toolbox, recycled: str) -> None:
    size, word = 64 * PAGE, 8

    def private(vm: GuestVm) -> Memory:
        memory = tools.memory(vm, GPA, size)
        memory.set_private(0, size)
        return memory

    for _ in range(3):
        vm = tools.private_vm()
        memory = private(vm)
        vm.cpu.expect_zero(GPA, size, "new private pages, word by word", word)
        vm.cpu.fill(GPA, size, PRIVATE, word)
        vm.cpu.expect_filled(GPA, size, PRIVATE, "private pages, word by word", word)
        if recycled == "by a punch":
            memory.punch(0, size)
        else:
            memory.delete()
            memory.close()
            if recycled == "from another VM":
                vm.close()
                vm = tools.private_vm()
            private(vm)
        what = f"private pages recycled {recycled}, word by word"
        vm.cpu.expect_zero(GPA, size, what, word)
        vm.close()


@case(
    "EL2",
    "a page that the guest touched while nothing was there can become private memory",
    needs=NEEDS,
    backend=BACKEND,
    vary={"first": ("attribute", "slot"), "access": ("read", "write")},
)
def touched_before(tools: Toolbox, first: str, access: str) -> None:
    vm = tools.private_vm()
    routine = (routines.READ if access == "read" else routines.WRITE)[8]
    outcome = vm.cpu.run(routine, rdi=GPA)
    expect(outcome.reason, lib.KVM_EXIT_MMIO, "the exit of an access where nothing is")
    vm.cpu.answer(0)
    vm.cpu.finish("after an access where nothing is")
    if first == "attribute":
        vm.vm.set_memory_attributes(GPA, SIZE, ATTRIBUTE)
    memory = tools.memory(vm, GPA, SIZE)
    memory.set_private(0, SIZE)
    vm.cpu.prepare(routines.READ[8], rdi=GPA)
    for _ in range(10):
        outcome = vm.cpu.enter()
        if outcome.reason == lib.KVM_EXIT_HLT:
            break
        seen = (errno_name(outcome.error), outcome.reason, outcome.fault)
        right = ("EFAULT", lib.KVM_EXIT_MEMORY_FAULT, (0, GPA, PAGE))
        expect(seen, right, "the exit of a private page that was MMIO before")
    else:
        raise Known(
            MMIO_THEN_PRIVATE,
            "a private page that the guest touched before its slot was there gets "
            "KVM_EXIT_MEMORY_FAULT as if it was shared, again and again",
        )
    memory.expect_guest_zero(0, SIZE, "private memory where nothing was before")


def map_high(vm: GuestVm, gpa: int) -> None:
    """Let the guest see the 2 MiB at ``gpa``, above what its page tables map, at ``gpa``."""
    check(REACH <= gpa < 1 << 47, "a GPA that these page tables are for")
    pdpt, directory, present = 0x3C000, 0x3D000, 0x7
    view = vm.plain.view

    def entry(table: int, bit: int, value: int) -> None:
        at = table + (gpa >> bit & 0x1FF) * 8
        view[at : at + 8] = struct.pack("<Q", value)

    view[pdpt : directory + PAGE] = bytes(2 * PAGE)
    entry(TABLES, 39, pdpt | present)
    entry(pdpt, 30, directory | present)
    entry(directory, 21, gpa & -HUGE | present | 0x80)


@case(
    "EL3",
    "private memory at high GPAs, up to the last that the CPU has, is memory like any other",
    needs=NEEDS,
    backend=BACKEND,
    vary={"gpa": ("2^39", "2^40 - 2M", "the last 2M")},
)
def high(tools: Toolbox, gpa: str) -> None:
    vm = tools.private_vm()
    bits = _gpa_bits(tools)
    at = {"2^39": 1 << 39, "2^40 - 2M": (1 << 40) - HUGE, "the last 2M": (1 << bits) - HUGE}[gpa]
    if not 1 << 39 <= at < 1 << min(bits, 47):
        raise Missing(f"a GPA of {gpa}: the guest's CPU has {bits} bits")
    map_high(vm, at)
    # What a GPA without its upper bits would be.
    low = tools.memory(vm, 6 * GIB + at % GIB, SIZE)
    low.guest_fill(0, SIZE, SHARED)
    memory = tools.memory(vm, at + HUGE - SIZE, SIZE)
    memory.guest_fill(0, SIZE, SHARED)
    memory.set_private(PAGE, SIZE - PAGE)
    memory.expect_guest_zero(PAGE, SIZE - PAGE, "new private memory at a high GPA")
    memory.guest_fill(PAGE, SIZE - PAGE, PRIVATE)
    memory.expect_guest(0, PAGE, SHARED, "the shared page at a high GPA")
    memory.punch(SIZE - PAGE, PAGE)
    memory.expect_guest_zero(SIZE - PAGE, PAGE, "a punched page at a high GPA")
    memory.expect_guest(PAGE, SIZE - 2 * PAGE, PRIVATE, "private memory at a high GPA")
    memory.set_shared(0, SIZE)
    low.expect_guest(0, SIZE, SHARED, "memory at a low GPA")
    memory.delete()
    vm.cpu.prepare(routines.READ[8], rdi=memory.gpa)
    outcome = vm.cpu.enter()
    expect(outcome.reason, lib.KVM_EXIT_MMIO, "the exit of a high GPA whose slot was deleted")
    expect(int(vm.cpu.vcpu.kvm_run.mmio.phys_addr), memory.gpa, "the GPA of that exit")


def _gpa_bits(tools: Toolbox) -> int:
    cpuid = tools.kvm.get_supported_cpuid()
    for at in range(cpuid.nent):
        if cpuid.entries[at].function == 0x80000008:
            return int(cpuid.entries[at].eax & 0xFF)
    return 36


@case(
    "EL4",
    "another process cannot use a VM that it inherited, and can use its guest_memfd",
    needs=NEEDS,
    backend=BACKEND,
)
def forked(tools: Toolbox) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, GPA, SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "KVM_SET_MEMORY_ATTRIBUTES": (errno.EIO, lambda: memory.set_shared(0, SIZE)),
        "deleting a slot": (errno.EIO, memory.delete),
        "KVM_CREATE_GUEST_MEMFD": (errno.EIO, lambda: vm.vm.create_guest_memfd(SIZE)),
        "KVM_GET_REGS": (errno.EIO, vm.cpu.vcpu.get_regs),
        "a punch": (0, lambda: memory.punch(0, PAGE)),
        "fallocate": (0, lambda: memory.allocate(0, SIZE)),
    }
    for name, (wanted, call) in calls.items():
        seen = child.run(partial(errno_of, call))
        expect(errno_name(seen), errno_name(wanted), f"{name} in a process that inherited a VM")
    memory.expect_guest(PAGE, SIZE - PAGE, PRIVATE, "private pages after calls of another process")
    memory.expect_guest_zero(0, PAGE, "a page that another process punched")


@case(
    "EL5",
    "dirty logging and read-only slots beside private memory: each keeps to its own",
    needs=NEEDS,
    backend=BACKEND,
)
def kinds_of_slots(tools: Toolbox) -> None:
    vm = tools.private_vm()
    region = vm.vm.set_user_memory_region
    gpa, pages = GPA + SIZE, SIZE // PAGE
    memory = tools.memory(vm, GPA, SIZE)
    logged, read_only = tools.shared_side(gpa, SIZE), tools.shared_side(gpa + SIZE, SIZE)
    slot = vm.new_slot()
    region(slot, gpa, SIZE, logged.address)
    region(vm.new_slot(), gpa + SIZE, SIZE, read_only.address, lib.KVM_MEM_READONLY)
    read_only.fill(gpa + SIZE, 0, SIZE, SHARED)
    memory.guest_fill(0, SIZE, SHARED)
    vm.cpu.fill(gpa, SIZE, SHARED)
    memory.set_private(0, SIZE)
    for round_, page in enumerate((0, 7, 15)):
        memory.guest_fill(0, SIZE, PRIVATE + round_)
        region(slot, gpa, SIZE, logged.address, lib.KVM_MEM_LOG_DIRTY_PAGES)
        vm.cpu.write(gpa + page * PAGE, 1)
        memory.guest_fill(0, SIZE, PRIVATE + round_)
        expect(list(vm.vm.get_dirty_log(slot, pages)), [page], "dirty pages beside private ones")
        memory.punch(page * PAGE, PAGE)
        outcome = vm.cpu.run(routines.WRITE[8], rdi=gpa + SIZE + page * PAGE, rax=1)
        expect(outcome.reason, lib.KVM_EXIT_MMIO, "the exit of a write to a read-only slot")
        vm.cpu.finish("after a write to a read-only slot")
        expect(list(vm.vm.get_dirty_log(slot, pages)), [], "dirty pages after others were used")
        region(slot, gpa, SIZE, logged.address)
        memory.expect_guest_zero(page * PAGE, PAGE, "a punched page beside a slot that is logged")
        for other in range(pages):
            if other != page:
                what = "private pages beside a slot that is logged no more"
                memory.expect_guest(other * PAGE, PAGE, PRIVATE + round_, what)
    vm.cpu.expect_filled(gpa + SIZE, SIZE, SHARED, "a read-only slot beside private memory")


@case(
    "EL6",
    "a slot of the other address space is not the guest's, and a VM with private memory has none",
    needs=("guests",),
)
def address_space(tools: Toolbox) -> None:
    vm = tools.vm()
    spaces = max(1, vm.vm.check_extension(lib.KVM_CAP_MULTI_ADDRESS_SPACE))
    shared = tools.shared_side(GPA, SIZE)
    shared.fill(GPA, 0, SIZE, SHARED)
    for space in range(1, 4):
        wanted = 0 if space < spaces else errno.EINVAL
        expect_errno(
            lambda space=space: vm.vm.set_user_memory_region(  # type: ignore[misc]
                space << 16 | 5, GPA, SIZE, shared.address
            ),
            wanted,
            f"a slot of address space {space} of {spaces}",
        )
    outcome = vm.cpu.run(routines.READ[8], rdi=GPA)
    expect(outcome.reason, lib.KVM_EXIT_MMIO, "the exit where only another space has memory")
    vm.cpu.answer(0)
    vm.cpu.finish("after MMIO")
    vm.vm.set_user_memory_region(5, GPA, SIZE, shared.address)
    vm.cpu.expect_filled(GPA, SIZE, SHARED, "a slot beside one in another address space")
    if tools.has_private_vm:
        private = tools.private_vm()
        expect_errno(
            lambda: private.vm.set_user_memory_region(1 << 16 | 5, GPA, SIZE, shared.address),
            errno.EINVAL,
            "a slot of address space 1 of a VM with private memory",
        )
