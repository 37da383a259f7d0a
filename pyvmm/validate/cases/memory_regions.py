"""Memslots of any VM: KVM_SET_USER_MEMORY_REGION and KVM_SET_USER_MEMORY_REGION2."""

from __future__ import annotations

import errno
from contextlib import suppress

from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.calls import dirty
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import GIB, HUGE, KIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, Missing, check, expect, expect_errno
from pyvmm.validate.kit.guest import Cpu, GuestVm
from pyvmm.validate.kit.known import MMIO_WHILE_AN_EXCEPTION_IS_DELIVERED, Known
from pyvmm.validate.kit.memory import SharedSide
from pyvmm.validate.kit.race import Overlaps, again_and_again
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE
TAG = 0x5A << 48


def set_region(vm: GuestVm, ioctl: str, slot: int, gpa: int, size: int, **fields: int) -> None:
    """The ioctl with exactly these fields; both have the first five."""
    type = "struct kvm_userspace_memory_region" + ("2" if ioctl.endswith("2") else "")
    request = ffi.new(f"{type} *")
    request.slot, request.guest_phys_addr, request.memory_size = slot, gpa, size
    for name, value in fields.items():
        setattr(request, name, value)
    vm.vm.ioctl(ioctl, request)


IOCTLS = ("KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2")


@case(
    "MR1",
    "a VM without memory: KVM_RUN ends with KVM_EXIT_INTERNAL_ERROR",
    needs=("guests",),
)
def no_memory(tools: Toolbox) -> None:
    vm = tools.vm()
    vm.vm.set_user_memory_region(0, 0, 0, 0)
    vm.cpu.prepare_real_mode(routines.HALT)
    outcome = vm.cpu.enter()
    expect(outcome.error, 0, "errno of KVM_RUN")
    expect(outcome.reason, lib.KVM_EXIT_INTERNAL_ERROR, "exit reason")


@case(
    "MR2",
    "MMIO while an exception is delivered: KVM_EXIT_INTERNAL_ERROR, delivery",
    needs=("guests", "native_guests"),
)
def vectoring(tools: Toolbox) -> None:
    vm = tools.vm()
    cpu = vm.cpu
    cpu.prepare(routines.DIVIDE)
    sregs = cpu.vcpu.get_sregs()
    # The IDT is where no memory is.
    sregs.idt.base, sregs.idt.limit = 3 * GIB, 0xFFF
    cpu.vcpu.set_sregs(sregs)
    try:
        outcome = cpu.enter(deadline_s=3)
    except CheckFailed:
        if _delivers_for_ever(cpu):
            raise Known(
                MMIO_WHILE_AN_EXCEPTION_IS_DELIVERED,
                "a guest whose exception is delivered through MMIO tries to for ever, inside KVM",
            ) from None
        raise
    expect(outcome.reason, lib.KVM_EXIT_INTERNAL_ERROR, "exit reason")
    delivery = 3
    expect(cpu.vcpu.kvm_run.internal.suberror, delivery, "suberror (delivery of an event)")


def _delivers_for_ever(cpu: Cpu) -> bool:
    """Whether a vCPU stands at its division, and KVM enters it again and again."""
    division = cpu.vm.entries[routines.DIVIDE] + 2
    before = cpu.counter("exits")
    with suppress(CheckFailed):
        cpu.enter(deadline_s=0.5)
        return False
    return int(cpu.vcpu.get_regs().rip) == division and cpu.counter("exits") - before > 100


@case(
    "MR3",
    "each flag that is unknown or does not fit is EINVAL, with all else right",
    needs=("guests", "memory2"),
    combinations=(
        {"ioctl": IOCTLS[0], "with_file": False},
        {"ioctl": IOCTLS[1], "with_file": False},
        {"ioctl": IOCTLS[1], "with_file": True},
    ),
)
def flags(tools: Toolbox, ioctl: str, with_file: bool) -> None:
    vm = tools.private_vm() if tools.has_private_vm else tools.vm()
    shared = tools.shared_side(GIB, SIZE)
    fields = {"userspace_addr": shared.address}
    base, file_flag = 0, int(lib.KVM_MEM_GUEST_MEMFD)
    fitting = {int(lib.KVM_MEM_LOG_DIRTY_PAGES), int(lib.KVM_MEM_READONLY)}
    if with_file:
        if not vm.vm.has(lib.KVM_CAP_GUEST_MEMFD):
            raise Missing("guest_memfd on this VM")
        # A real one, so that what is refused is refused for its flags.
        fields["guest_memfd"] = tools.keep(vm.vm.create_guest_memfd(SIZE)).fileno()
        base = file_flag
        fitting = {file_flag}
    slot = vm.new_slot()

    def attempt(flags_: int) -> None:
        set_region(vm, ioctl, slot, GIB, SIZE, flags=flags_, **fields)
        set_region(vm, ioctl, slot, GIB, 0, **fields)

    attempt(base)
    for flag in (1 << bit for bit in range(32)):
        # The RFC's kernel has another meaning for this bit, and other errors.
        if flag == file_flag and not base and (ioctl == IOCTLS[1] or not missing("memory_error")):
            continue
        expect_errno(
            lambda flag=flag: attempt(base | flag),  # type: ignore[misc]
            0 if flag in fitting else errno.EINVAL,
            f"{ioctl} with flags {base | flag:#x}",
        )
    attempt(base)


@case("MR4", "as many slots as KVM says, and one more is EINVAL", needs=("guests",))
def slot_count(tools: Toolbox) -> None:
    vm = tools.vm()
    count = vm.vm.check_extension(lib.KVM_CAP_NR_MEMSLOTS)
    shared = tools.shared_side(GIB, SIZE)
    for slot in (1, 2, count // 2, count - 2, count - 1):
        vm.vm.set_user_memory_region(slot, GIB + slot * PAGE, PAGE, shared.address)
    for slot in (count, count + 1, 0x7FFF, 0xFFFF):
        expect_errno(
            lambda slot=slot: vm.vm.set_user_memory_region(  # type: ignore[misc]
                slot, 4 * GIB + slot * PAGE, PAGE, shared.address
            ),
            errno.EINVAL,
            f"slot {slot} of {count}",
        )
    for slot in (1, count - 1):
        vm.cpu.write(GIB + slot * PAGE, 0x77)


@case(
    "MR6",
    "GPAs that overlap another slot's are EEXIST, those beside it are not",
    needs=("guests",),
    vary={"gpa": (512 * KIB, 4 * GIB)},
)
def overlaps(tools: Toolbox, gpa: int) -> None:
    vm = tools.vm()
    shared = tools.shared_side(gpa, 4 * SIZE)
    low = gpa + SIZE
    vm.vm.set_user_memory_region(1, low, SIZE, shared.address)
    for start, size in (
        (low, SIZE),
        (low, PAGE),
        (low + SIZE - PAGE, PAGE),
        (low + SIZE - PAGE, SIZE),
        (low - PAGE, 2 * PAGE),
        (low - SIZE, SIZE + PAGE),
        (low - PAGE, SIZE + 2 * PAGE),
        (low + PAGE, PAGE),
    ):
        expect_errno(
            lambda start=start, size=size: vm.vm.set_user_memory_region(  # type: ignore[misc]
                2, start, size, shared.address
            ),
            errno.EEXIST,
            f"a slot at {start - low:+#x} of another, {size:#x} bytes",
        )
    vm.vm.set_user_memory_region(2, low - PAGE, PAGE, shared.address + 2 * SIZE)
    vm.vm.set_user_memory_region(3, low + SIZE, PAGE, shared.address + 3 * SIZE)
    vm.cpu.fill(low - PAGE, SIZE + 2 * PAGE, TAG)
    vm.cpu.expect_filled(low - PAGE, SIZE + 2 * PAGE, TAG, "three slots side by side")


@case(
    "MR7",
    "a slot that moves while a vCPU reads it: the old value, MMIO, or the new one",
    needs=("guests", "two_cpus"),
    vary={"rounds": (10,)},
)
def moved(tools: Toolbox, rounds: int) -> None:
    vm = tools.vm()
    one, other = GIB, GIB + SIZE
    shared = tools.shared_side(one, SIZE)
    shared.fill(one, 0, SIZE, TAG)
    slot = vm.new_slot()

    def move(gpa: int) -> None:
        vm.vm.set_user_memory_region(slot, gpa, SIZE, shared.address)

    move(one)
    for _ in range(rounds):
        vm.cpu.expect_read(one, TAG + one, "a slot that was moved back")
        move(other)
        vm.cpu.expect_mmio(one, "a slot's old GPA")
        vm.cpu.expect_read(other, TAG + one, "a slot at its new GPA")
        move(one)
    beside = Overlaps(tools)
    with again_and_again(lambda: beside(move, other), lambda: beside(move, one)):
        for _ in tools.enough(20 * rounds):
            gpa = tools.random.choice((one, other))
            beside(read_or_mmio, vm, gpa, TAG + one, "a slot that moves")


def read_or_mmio(vm: GuestVm, gpa: int, value: int, what: str) -> None:
    """A read gets ``value`` from memory, or as an MMIO exit where no slot is just now."""
    outcome = vm.cpu.run(routines.READ[8], rdi=gpa)
    if outcome.reason == lib.KVM_EXIT_MMIO:
        expect(int(vm.cpu.vcpu.kvm_run.mmio.phys_addr), gpa, f"{what}: GPA of the MMIO exit")
        vm.cpu.answer(value)
        vm.cpu.finish(f"{what}: after MMIO")
    elif outcome.reason != lib.KVM_EXIT_HLT:
        raise CheckFailed(f"{what}: a read got {outcome}")
    expect(int(vm.cpu.vcpu.get_regs().rax), value, what)


@case(
    "MR8",
    "a slot deleted and made again while a vCPU reads it: MMIO or the right value",
    needs=("guests", "two_cpus"),
    vary={"backing": ("anonymous", "thp")},
)
def deleted(tools: Toolbox, backing: str) -> None:
    vm = tools.vm()
    gpa = GIB
    shared = tools.shared_side(gpa, HUGE, backing)
    shared.fill(gpa, 0, HUGE, TAG)
    slot = vm.new_slot()
    vm.vm.set_user_memory_region(slot, gpa, HUGE, shared.address)

    def make(size: int) -> None:
        vm.vm.set_user_memory_region(slot, gpa, size, shared.address)

    beside = Overlaps(tools)
    with again_and_again(lambda: beside(make, 0), lambda: beside(make, HUGE)):
        for _ in tools.enough(200):
            at = gpa + tools.random.randrange(512) * PAGE
            beside(read_or_mmio, vm, at, TAG + at, "a slot that comes and goes")


@case(
    "MR9",
    "a deleted slot is MMIO, one made again has its host's memory",
    needs=("guests",),
    vary={"gpa": (512 * KIB, GIB, 4 * GIB), "times": (1, 10)},
)
def made_again(tools: Toolbox, gpa: int, times: int) -> None:
    vm = tools.vm()
    shared = tools.shared_side(gpa, SIZE)
    slot = vm.new_slot()
    vm.vm.set_user_memory_region(slot, gpa, SIZE, shared.address)
    vm.cpu.fill(gpa, SIZE, TAG)
    for _ in range(times):
        vm.vm.set_user_memory_region(slot, gpa, 0, 0)
        for page in (15, 0, 3):
            vm.cpu.expect_mmio(gpa + page * PAGE, "a deleted slot")
        vm.vm.set_user_memory_region(slot, gpa, SIZE, shared.address)
        vm.cpu.expect_filled(gpa, SIZE, TAG, "a slot made again")


@case(
    "MR10",
    "what the host writes the guest sees and the other way round, with each kind of memory",
    needs=("guests",),
    vary={
        "backing": ("anonymous", "thp", "shmem", "hugetlb"),
        "gpa": (512 * KIB, 4 * GIB),
        "slots": (1, 4),
    },
)
def both_ways(tools: Toolbox, backing: str, gpa: int, slots: int) -> None:
    vm = tools.vm()
    size = HUGE + 4 * PAGE
    shared = tools.shared_side(gpa, size, backing)
    each = size // slots // PAGE * PAGE
    for index in range(slots):
        length = each if index < slots - 1 else size - each * (slots - 1)
        vm.vm.set_user_memory_region(
            vm.new_slot(), gpa + index * each, length, shared.address + index * each
        )
    step = 4 * PAGE if tools.emulated_guests else 1024
    shared.fill(gpa, 0, size, TAG)
    vm.cpu.expect_filled(gpa, size, TAG, f"{backing} memory that the host wrote", step)
    vm.cpu.fill(gpa, size, 2 * TAG, step)
    for offset in range(0, size, step):
        seen = shared.word(offset)
        check(
            seen == 2 * TAG + gpa + offset,
            f"the host does not see what the guest wrote to {backing} memory",
            f"{seen:#x} at {offset:#x}",
        )


@case(
    "MR11",
    "a read-only slot: reads work, a write is MMIO and changes nothing",
    needs=("guests",),
)
def read_only(tools: Toolbox) -> None:
    vm = tools.vm()
    gpa = GIB
    shared = tools.shared_side(gpa, SIZE)
    shared.fill(gpa, 0, SIZE, TAG)
    vm.vm.set_user_memory_region(vm.new_slot(), gpa, SIZE, shared.address, lib.KVM_MEM_READONLY)
    vm.cpu.expect_filled(gpa, SIZE, TAG, "a read-only slot")
    outcome = vm.cpu.run(routines.WRITE[8], rdi=gpa + PAGE, rax=1)
    expect(outcome.reason, lib.KVM_EXIT_MMIO, "exit reason of a write to a read-only slot")
    vm.cpu.finish("after a write to a read-only slot")
    vm.cpu.expect_filled(gpa, SIZE, TAG, "a read-only slot after a write")


@case(
    "MR12",
    "dirty logging names the pages that the guest wrote, once",
    needs=("guests",),
    vary={"pages": ((0,), (15,), (1, 7, 8))},
)
def dirty_log(tools: Toolbox, pages: tuple[int, ...]) -> None:
    vm = tools.vm()
    gpa = GIB
    shared: SharedSide = tools.shared_side(gpa, SIZE)
    slot = vm.new_slot()
    vm.vm.set_user_memory_region(slot, gpa, SIZE, shared.address, lib.KVM_MEM_LOG_DIRTY_PAGES)
    for _ in range(2):
        for page in pages:
            vm.cpu.write(gpa + page * PAGE + 8, 1)
            vm.cpu.read(gpa + (page ^ 2) * PAGE)
        expect(dirty(vm, slot), sum(1 << page for page in pages), "the dirty bitmap")
        expect(dirty(vm, slot), 0, "the dirty bitmap, read again")


@case(
    "MR13",
    "host memory that two slots show and the host discards is gone from both",
    needs=("guests",),
    vary={"backing": ("anonymous", "thp", "shmem")},
)
def shown_twice(tools: Toolbox, backing: str) -> None:
    vm = tools.vm()
    gpas = (4 * GIB, 5 * GIB, 6 * GIB)
    shared = tools.shared_side(gpas[0], HUGE, backing)
    for gpa in gpas:
        vm.vm.set_user_memory_region(vm.new_slot(), gpa, HUGE, shared.address)
    at = 3 * PAGE
    vm.cpu.write(gpas[0] + at, TAG)
    for gpa in gpas:
        vm.cpu.expect_read(gpa + at, TAG, "host memory that several slots show")
    shared.discard(at, PAGE)
    for gpa in gpas[::-1]:
        vm.cpu.expect_read(gpa + at, 0, "host memory that several slots show, discarded")
