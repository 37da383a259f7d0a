"""KVM_EXIT_MEMORY_FAULT: when it comes, with which flags, GPA and size, and that it repeats."""

from __future__ import annotations

from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, HUGE, KIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, expect
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.patterns import PRIVATE
from pyvmm.validate.kit.race import again_and_again
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE
EFAULT = 14


@case(
    "PE1",
    "a private access while its slot is deleted and made again, by another thread",
    needs=("private_memory", "two_cpus"),
    backend="guest_memfd",
)
def slot_being_deleted(tools: Toolbox) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    with again_and_again(memory.delete, memory.create):
        for index in tools.enough(600, 20):
            page = tools.random.randrange(16) * PAGE
            vm.cpu.prepare(routines.READ[8], rdi=memory.gpa + page)
            outcome = vm.cpu.enter()
            tools.tried(outcome.error != 0, "accesses found their slot deleted")
            while outcome.error:
                wanted = (EFAULT, (ATTRIBUTE, memory.gpa + page, PAGE))
                if (outcome.error, outcome.fault) != wanted:
                    raise CheckFailed(
                        f"a private access while its slot is deleted: the guest got {outcome}"
                    )
                outcome = vm.cpu.enter()
            value = int(vm.cpu.vcpu.get_regs().rax)
            expect(value, PRIVATE + memory.gpa + page, "a private page whose slot comes and goes")
            if tools.races > 50 and index > 100:
                break


@case(
    "PE2",
    "a private page in a slot without guest_memfd exits, each way and on each vCPU",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={
        "access": ("read", "write", "fetch"),
        "gpa": (512 * KIB, 4 * GIB, 4 * GIB + HUGE, 6 * GIB),
    },
)
def slot_without_file(tools: Toolbox, access: str, gpa: int) -> None:
    vm = tools.private_vm(cpus=2)
    shared = tools.shared_side(gpa, SIZE)
    shared.fill(gpa, 0, SIZE, PRIVATE)
    shared.view[3 * PAGE + 0x40 : 3 * PAGE + 0x41] = b"\xf4"
    vm.vm.set_user_memory_region(vm.new_slot(), gpa, SIZE, shared.address)
    vm.vm.set_memory_attributes(gpa + 3 * PAGE, PAGE, ATTRIBUTE)
    at = gpa + 3 * PAGE + 0x40
    for cpu in vm.cpus:
        if access == "read":
            cpu.prepare(routines.READ[4], rdi=at)
        elif access == "write":
            cpu.prepare(routines.WRITE[4], rdi=at, rax=1)
        else:
            cpu.prepare(at)
        rip = int(cpu.vcpu.get_regs().rip)
        for _ in range(3):
            cpu.expect_fault(at, f"a {access} of a private page without guest_memfd")
            expect(int(cpu.vcpu.get_regs().rip), rip, "RIP after the exit")
    vm.vm.set_memory_attributes(gpa + 3 * PAGE, PAGE, 0)
    for cpu in vm.cpus:
        cpu.finish(f"a {access} of the page that is shared again, entered again")


@case(
    "PE3",
    "the exit names the page: first, last, and the second of an access that crosses two",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"page": (0, 1, 15)},
)
def which_page(tools: Toolbox, page: int) -> None:
    vm = tools.private_vm()
    gpa = 4 * GIB
    shared = tools.shared_side(gpa, SIZE)
    vm.vm.set_user_memory_region(vm.new_slot(), gpa, SIZE, shared.address)
    vm.vm.set_memory_attributes(gpa + page * PAGE, PAGE, ATTRIBUTE)
    for offset in (0, 8, PAGE - 8):
        vm.cpu.prepare(routines.READ[8], rdi=gpa + page * PAGE + offset)
        vm.cpu.expect_fault(gpa + page * PAGE, "a private page without guest_memfd")
    if page:
        vm.cpu.read(gpa + page * PAGE - 8, what="the shared page before a private one")
        vm.cpu.prepare(routines.READ[8], rdi=gpa + page * PAGE - 4)
        vm.cpu.expect_fault(gpa + page * PAGE, "an access from a shared into a private page")
    if page < 15:
        vm.cpu.read(gpa + (page + 1) * PAGE, what="the shared page behind a private one")


@case(
    "PE4",
    "after its guest_memfd is closed a private page exits, a shared one works",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"touched": (True, False), "slots": (1, 4)},
)
def file_closed(tools: Toolbox, touched: bool, slots: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE, slots=slots, file_offset=slots * PAGE)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.set_private(0, 8 * PAGE)
    if touched:
        memory.guest_fill(0, 8 * PAGE, PRIVATE)
    memory.file.close()
    # Others take its place in the kernel's memory: whoever still points there sees them.
    for _ in range(64):
        tools.keep(vm.vm.create_guest_memfd(SIZE))
    for page in (7, 5, 0):
        vm.cpu.prepare(routines.READ[8], rdi=memory.gpa + page * PAGE)
        vm.cpu.expect_fault(memory.gpa + page * PAGE, "a private page whose guest_memfd was closed")
    memory.expect_guest(8 * PAGE, 8 * PAGE, PRIVATE, "shared pages beside a closed guest_memfd")
    memory.set_shared(0, 8 * PAGE)
    memory.expect_guest(0, 8 * PAGE, PRIVATE, "pages made shared after the guest_memfd was closed")
    memory.delete()


@case(
    "PE5",
    "a shared page whose host mapping is gone: EFAULT that names no private page",
    needs=("private_memory",),
    backend="guest_memfd",
)
def mapping_gone(tools: Toolbox) -> None:

    vm = tools.private_vm()
    hole = tools.keep(Mapping(SIZE, protection=PROT_NONE))
    vm.vm.set_user_memory_region(vm.new_slot(), 4 * GIB, SIZE, hole.address)
    vm.cpu.prepare(routines.READ[8], rdi=4 * GIB)
    outcome = vm.cpu.enter()
    expect(outcome.error, EFAULT, "errno of KVM_RUN for a page without a host mapping")
    if outcome.fault is not None:
        expect(
            outcome.fault.flags & lib.KVM_MEMORY_EXIT_FLAG_PRIVATE,
            0,
            "the private flag of its exit",
        )


@case(
    "PE6",
    "a private slot may have no readable address behind it",
    needs=("private_memory",),
    backend="guest_memfd",
)
def no_shared_side(tools: Toolbox) -> None:

    vm = tools.private_vm()
    hole = tools.keep(Mapping(SIZE, protection=PROT_NONE))
    file = tools.keep(vm.vm.create_guest_memfd(SIZE))
    vm.vm.set_user_memory_region2(
        vm.new_slot(), 4 * GIB, SIZE, hole.address, lib.KVM_MEM_GUEST_MEMFD, file.fileno()
    )
    vm.vm.set_memory_attributes(4 * GIB, SIZE, ATTRIBUTE)
    vm.cpu.expect_zero(4 * GIB, SIZE, "private pages over a PROT_NONE address")
    vm.cpu.fill(4 * GIB, SIZE, PRIVATE)
    vm.cpu.expect_filled(4 * GIB, SIZE, PRIVATE, "private pages over a PROT_NONE address")


@case(
    "PE7",
    "a page in use in a slot without guest_memfd exits as soon as it is private, and it alone",
    needs=("private_memory",),
    backend="guest_memfd",
    combinations=(
        {"backing": "anonymous", "page": 5},
        *({"backing": "thp", "page": page} for page in (0, 5, 511, 512)),
    ),
)
def in_use_without_file(tools: Toolbox, backing: str, page: int) -> None:
    vm = tools.private_vm()
    gpa, size, at = 4 * GIB, 2 * HUGE, page * PAGE
    shared = tools.shared_side(gpa, size, backing)
    vm.vm.set_user_memory_region(vm.new_slot(), gpa, size, shared.address)
    cpu = vm.cpu
    cpu.fill(gpa, size, PRIVATE, PAGE)
    vm.vm.set_memory_attributes(gpa + at, PAGE, ATTRIBUTE)
    # The others first: a huge page that is mapped for one of them would cover the private page.
    beside = "shared pages beside a private one without guest_memfd"
    for start, end in ((0, at), (at + PAGE, size)):
        if start < end:
            cpu.expect_filled(gpa + start, end - start, PRIVATE, beside, PAGE)
    cpu.prepare(routines.READ[8], rdi=gpa + at)
    cpu.expect_fault(gpa + at, "a page without guest_memfd that was mapped when it became private")
    vm.vm.set_memory_attributes(gpa + at, PAGE, 0)
    cpu.expect_read(gpa + at, PRIVATE + gpa + at, "the page that is shared again")


@case(
    "PE8",
    "a slot that moves over a private page does not cover it",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"page": (0, 5, 511)},
)
def moved_over(tools: Toolbox, page: int) -> None:
    vm = tools.private_vm()
    old, new, at = 4 * GIB, 5 * GIB, page * PAGE
    shared = tools.shared_side(old, HUGE, "thp")
    slot = vm.new_slot()
    vm.vm.set_user_memory_region(slot, old, HUGE, shared.address)
    vm.cpu.fill(old, HUGE, PRIVATE, PAGE)
    vm.vm.set_memory_attributes(new + at, PAGE, ATTRIBUTE)
    vm.vm.set_user_memory_region(slot, new, HUGE, shared.address)
    for start, end in ((0, at), (at + PAGE, HUGE)):
        if start < end:
            # The pattern holds the GPA that the page had when it was written.
            vm.cpu.expect_filled(
                new + start, end - start, PRIVATE + old - new, "shared pages of a moved slot", PAGE
            )
    vm.cpu.prepare(routines.READ[8], rdi=new + at)
    vm.cpu.expect_fault(new + at, "a private page that a slot without guest_memfd moved over")
