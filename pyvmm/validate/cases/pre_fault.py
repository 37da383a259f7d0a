"""KVM_PRE_FAULT_MEMORY: mapping memory before the guest touches it (Linux 6.11)."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial

from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.beside import CallBeside, on_one_cpu
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, HUGE, KIB, MIB, PAGE, case
from pyvmm.validate.kit.check import (
    CheckFailed,
    Missing,
    check,
    errno_name,
    errno_of,
    expect,
    expect_errno,
)
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.known import (
    PRE_FAULT_WITH_AN_OBSOLETE_ROOT,
    Known,
    pre_fault_deadlock,
)
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.race import again_and_again
from pyvmm.validate.kit.toolbox import Toolbox

GPA = 4 * GIB
SIZE = HUGE + PAGE
_ATTEMPTS = 5
# How often it may spin until one can tell why, and how long a slow call takes to end, in seconds.
_SPINS, _SLOW_S = 2, 0.5
STATES = ("shared", "private")


def a_vm(tools: Toolbox, state: str) -> GuestVm:
    if state == "shared":
        return tools.vm()
    tools.need("private_memory")
    return tools.private_vm()


def prepared(tools: Toolbox, state: str, gpa: int) -> GuestVm:
    """A VM with one slot of 2 MiB + 4 KiB in this state, and a vCPU that can pre-fault."""
    vm = a_vm(tools, state)
    if state == "private":
        memory = tools.memory(vm, gpa, SIZE)
        memory.fill(0, SIZE, SHARED)
        memory.set_private(0, SIZE)
    else:
        shared = tools.shared_side(gpa, SIZE)
        shared.fill(gpa, 0, SIZE, SHARED)
        vm.vm.set_user_memory_region(vm.new_slot(), gpa, SIZE, shared.address)
    vm.cpu.prepare(routines.HALT)
    return vm


_VARY = {"state": STATES, "gpa": (512 * KIB, 4 * GIB)}


@case(
    "PF1",
    "2 MiB leave nothing, and the guest then finds its memory",
    needs=("pre_fault",),
    vary=_VARY,
)
def whole(tools: Toolbox, state: str, gpa: int) -> None:
    vm = prepared(tools, state, gpa)
    expect(pre_fault(vm.cpu, gpa, HUGE), (0, 0), "bytes left and errno")
    if state == "private":
        vm.cpu.expect_zero(gpa, SIZE, "private memory that was pre-faulted")
    else:
        vm.cpu.expect_filled(gpa, SIZE, SHARED, "shared memory that was pre-faulted")


@case(
    "PF2",
    "a range over the slot's end leaves what is behind it: ENOENT",
    needs=("pre_fault",),
    vary=_VARY,
)
def over_the_end(tools: Toolbox, state: str, gpa: int) -> None:
    vm = prepared(tools, state, gpa)
    expect(pre_fault(vm.cpu, gpa + HUGE, 2 * PAGE), (PAGE, errno.ENOENT), "bytes left and errno")


@case("PF3", "a range where no slot is: ENOENT, nothing done", needs=("pre_fault",), vary=_VARY)
def past_the_end(tools: Toolbox, state: str, gpa: int) -> None:
    vm = prepared(tools, state, gpa)
    expect(pre_fault(vm.cpu, gpa + SIZE, PAGE), (PAGE, errno.ENOENT), "bytes left and errno")


def deletable(tools: Toolbox, state: str, size: int) -> tuple[GuestVm, Callable[[int], None]]:
    """A VM whose vCPU can pre-fault, and what makes its one slot (0: deletes it)."""
    vm = a_vm(tools, state)
    shared = tools.shared_side(GPA, size)
    file = tools.keep(vm.vm.create_guest_memfd(size)) if state == "private" else None
    flags, fd = (lib.KVM_MEM_GUEST_MEMFD, file.fileno()) if file else (0, 0)
    if file:
        vm.vm.set_memory_attributes(GPA, size, ATTRIBUTE)
    slot = vm.new_slot()
    vm.cpu.prepare(routines.HALT)
    return vm, lambda size: vm.vm.set_user_memory_region2(
        slot, GPA, size, shared.address, flags, fd
    )


def expect_whole(vm: GuestVm, size: int, what: str) -> None:
    """Pre-fault all of a slot that nothing happens to. The vCPU has not run for some time."""
    left = [(size, 0)]
    with CallBeside(lambda: left.append(pre_fault(vm.cpu, GPA, size))) as call:
        if call.spins(lambda: vm.mapped_pages()):
            check(call.interrupt(), f"{what}: KVM_PRE_FAULT_MEMORY spins, and no signal ends it")
            vm.cpu.finish(f"{what}: a guest whose memory was pre-faulted")
            vm.cpu.prepare(routines.HALT)
            what = f"{what}: after it span and the vCPU has run, bytes left and errno"
            expect(pre_fault(vm.cpu, GPA, size), (0, 0), what)
            raise Known(
                PRE_FAULT_WITH_AN_OBSOLETE_ROOT,
                "KVM_PRE_FAULT_MEMORY of a vCPU that has not run since a slot was deleted spins "
                "until a signal comes",
            )
    expect(left[-1], (0, 0), f"{what}: bytes left and errno")


# What pre-faulting may end with while its slot goes: no slot any more; EAGAIN where the kernel
# does not wait for the deletion (commit 3ccbf6f47098); no slot, of a private page.
MEANWHILE = {
    "shared": (0, errno.ENOENT, errno.EAGAIN),
    "private": (0, errno.ENOENT, errno.EAGAIN, errno.EFAULT),
}


@case(
    "PF4",
    "a slot deleted meanwhile: what is mapped is right, the error ENOENT or EAGAIN",
    needs=("pre_fault", "two_cpus", "statistics"),
    vary={"state": STATES},
    alone=True,
)
def slot_deleted(tools: Toolbox, state: str) -> None:
    vm, make = deletable(tools, state, SIZE)
    pre_fault_it = partial(vm.cpu.vcpu.pre_fault_memory, GPA, SIZE)
    calls = deletions = refused = met = 0
    stop = is_deleting = False

    def pre_fault_again_and_again() -> None:
        nonlocal calls, refused, met
        until = time.monotonic() + 4
        while time.monotonic() < until and not stop:
            is_met = is_deleting
            error = errno_of(pre_fault_it)
            if not stop and error not in MEANWHILE[state]:
                raise CheckFailed(f"pre-faulting while the slot is deleted: {errno_name(error)}")
            met += is_met or is_deleting
            refused += error == errno.EAGAIN
            calls += 1

    def delete() -> None:
        nonlocal deletions, is_deleting
        is_deleting = True
        make(0)
        is_deleting = False
        deletions += 1

    # Which of two bugs it is shows by EAGAIN: a kernel that gives it does so most of the time.
    for _ in range(_SPINS):
        slots = again_and_again(lambda: make(SIZE), delete)
        with on_one_cpu(), slots, CallBeside(pre_fault_again_and_again) as call:
            spins = call.spins(lambda: calls + deletions)
            stop = True  # what is only slow ends now
            if spins and (spins := not call.ends(_SLOW_S)):
                check(call.interrupt(), "KVM_PRE_FAULT_MEMORY spins, and no signal ends it")
        stop = False
        if not spins or refused:
            break
    tools.provoked(met, f"of {calls:,} calls met one of {deletions:,} deletions")
    if not spins:
        check(deletions > 0, "no slot was deleted in all that time")
    make(SIZE)
    expect_whole(vm, SIZE, "a slot that came and went")
    if spins:
        raise pre_fault_deadlock(was_refused=refused > 0)


@case(
    "PF12",
    "a large slot that is deleted while it is pre-faulted: neither call waits for the other",
    needs=("pre_fault", "two_cpus", "statistics"),
    vary={"state": STATES},
)
def deleted_meanwhile(tools: Toolbox, state: str) -> None:
    size = 128 * MIB
    vm, make = deletable(tools, state, size)
    left = [(size, 0)]
    for _ in range(_ATTEMPTS):
        make(size)
        before = vm.mapped_pages()
        with CallBeside(lambda: left.append(pre_fault(vm.cpu, GPA, size))) as call:
            while vm.mapped_pages() == before and not call.ends(0):
                pass
            with CallBeside(lambda: make(0)) as deletion:
                if call.spins(lambda: vm.mapped_pages()):
                    check(not deletion.ends(0), "KVM_PRE_FAULT_MEMORY spins, its slot is gone")
                    check(call.interrupt(), "KVM_PRE_FAULT_MEMORY spins, and no signal ends it")
                    check(deletion.ends(), "a deletion goes on though pre-faulting has ended")
                    raise pre_fault_deadlock(was_refused=False)
        is_race = left[-1] != (0, 0)
        tools.tried(is_race, "deletions came before pre-faulting had ended")
        if is_race:
            break
        vm.cpu.finish("a guest whose memory was pre-faulted")
        vm.cpu.prepare(routines.HALT)
    else:
        return
    bytes_left, error = left[-1]
    allowed = MEANWHILE[state][1:]
    check(error in allowed, f"pre-faulting while its slot is deleted: {errno_name(error)}")
    check(0 < bytes_left < size, "bytes left of it", f"{bytes_left:#x}")
    # The guest does not see what the slot had.
    if state == "shared":
        vm.cpu.expect_mmio(GPA, "a slot that was deleted while it was pre-faulted")
    else:
        vm.cpu.prepare(routines.READ[8], rdi=GPA)
        vm.cpu.expect_fault(GPA, "a private page whose slot was deleted while it was pre-faulted")


@case(
    "PF13",
    "a vCPU that has not run since another slot was deleted can pre-fault",
    needs=("pre_fault", "statistics"),
    vary={"state": STATES},
)
def after_a_deletion(tools: Toolbox, state: str) -> None:
    vm, make = deletable(tools, state, SIZE)
    make(SIZE)
    other, slot = tools.shared_side(5 * GIB, SIZE), vm.new_slot()
    for _ in range(3):
        expect_whole(vm, SIZE, "a slot beside one that was deleted")
        vm.vm.set_user_memory_region(slot, 5 * GIB, SIZE, other.address)
        vm.vm.set_user_memory_region(slot, 5 * GIB, 0, other.address)
    expect_whole(vm, SIZE, "a slot beside one that was deleted")


@case(
    "PF5",
    "what must be refused: size 0, unaligned, flags, a range that wraps",
    needs=("pre_fault",),
    vary={"wrong": ("size 0", "size unaligned", "gpa unaligned", "flags", "high flags", "wrap")},
)
def refused(tools: Toolbox, wrong: str) -> None:
    gpa = 4 * GIB
    vm = prepared(tools, "shared", gpa)
    expect(pre_fault(vm.cpu, gpa, PAGE), (0, 0), "bytes left and errno of the right call")
    rows: dict[str, list[tuple[int, int, int]]] = {
        "size 0": [(gpa, 0, 0)],
        "size unaligned": [(gpa, 1, 0), (gpa, PAGE - 1, 0), (gpa, PAGE + 1, 0)],
        "gpa unaligned": [(gpa + 1, PAGE, 0), (gpa + PAGE - 1, PAGE, 0)],
        "flags": [(gpa, PAGE, 1 << bit) for bit in range(32)],
        "high flags": [(gpa, PAGE, 1 << bit) for bit in range(32, 64)],
        "wrap": [((1 << 64) - PAGE, 2 * PAGE, 0), (gpa, (1 << 64) - PAGE, 0)],
    }
    for row in rows[wrong]:
        expect_errno(
            lambda row=row: vm.cpu.vcpu.pre_fault_memory(*row),  # type: ignore[misc]
            errno.EINVAL,
            f"KVM_PRE_FAULT_MEMORY with {wrong}",
        )


@case(
    "PF6",
    "a private page in a slot without guest_memfd: EFAULT",
    needs=("pre_fault", "private_memory"),
    backend="guest_memfd",
)
def without_file(tools: Toolbox) -> None:
    gpa = 4 * GIB
    vm = tools.private_vm()
    shared = tools.shared_side(gpa, SIZE)
    vm.vm.set_user_memory_region(vm.new_slot(), gpa, SIZE, shared.address)
    vm.cpu.prepare(routines.HALT)
    expect(pre_fault(vm.cpu, gpa, PAGE), (0, 0), "bytes left and errno of a shared page")
    vm.vm.set_memory_attributes(gpa + PAGE, PAGE, ATTRIBUTE)
    expect(pre_fault(vm.cpu, gpa + PAGE, PAGE), (PAGE, errno.EFAULT), "bytes left and errno")
    expect(pre_fault(vm.cpu, gpa, 3 * PAGE), (2 * PAGE, errno.EFAULT), "bytes left and errno")


@case(
    "PF7",
    "pre-faulted memory follows a conversion and a punch like any other",
    needs=("pre_fault", "private_memory"),
    backend="guest_memfd",
    vary={"gpa": (512 * KIB, 4 * GIB), "backing": ("anonymous", "thp")},
)
def converted(tools: Toolbox, gpa: int, backing: str) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, SIZE, backing=backing)
    memory.fill(0, SIZE, SHARED)
    vm.cpu.prepare(routines.HALT)
    pre_fault(vm.cpu, gpa, SIZE)
    memory.set_private(PAGE, 4 * PAGE)
    memory.expect_guest_zero(PAGE, 4 * PAGE, "pages made private after they were pre-faulted")
    memory.guest_fill(PAGE, 4 * PAGE, PRIVATE)
    pre_fault(vm.cpu, gpa, SIZE)
    memory.punch(2 * PAGE, PAGE)
    memory.expect_guest_zero(2 * PAGE, PAGE, "a page punched after it was pre-faulted")
    memory.expect_guest(PAGE, PAGE, PRIVATE, "a private page beside a punched one")
    memory.expect_guest(0, PAGE, SHARED, "a shared page beside private ones")
    memory.expect_guest(5 * PAGE, SIZE - 5 * PAGE, SHARED, "shared pages behind private ones")


@case(
    "PF9",
    "what was pre-faulted is mapped: the guest takes no fault on any page of it",
    needs=("pre_fault", "native_guests", "statistics"),
    vary={
        "state": STATES,
        "backing": ("anonymous", "thp"),
        "range": ((0, HUGE), (PAGE, HUGE), (HUGE - PAGE, 3 * PAGE), (HUGE - PAGE, HUGE)),
    },
)
def mapped(tools: Toolbox, state: str, backing: str, range: tuple[int, int]) -> None:
    # The system may move a page of the guest's on its own account; not most times.
    seen = [_faults_after_pre_fault(tools, state, backing, *range) for _ in (1, 2, 3)]
    if sorted(seen)[1]:
        raise CheckFailed(
            "the guest faults on pages that KVM_PRE_FAULT_MEMORY says it mapped", f"faults: {seen}"
        )


def _faults_after_pre_fault(
    tools: Toolbox, state: str, backing: str, offset: int, size: int
) -> int:
    """How many faults the guest takes that reads the range after it was pre-faulted."""
    gpa, whole = 4 * GIB, 3 * HUGE
    vm = a_vm(tools, state)
    if state == "private":
        memory = tools.memory(vm, gpa, whole, backing=backing)
        memory.set_private(0, whole)
    else:
        shared = tools.shared_side(gpa, whole, backing)
        shared.fill(gpa, 0, whole, SHARED)
        vm.vm.set_user_memory_region(vm.new_slot(), gpa, whole, shared.address)
    # So that the guest's own code and page tables are mapped.
    vm.cpu.read(gpa + whole - 8)
    vm.cpu.prepare(routines.HALT)
    expect(pre_fault(vm.cpu, gpa + offset, size), (0, 0), "bytes left and errno")
    before = vm.cpu.counter("pf_taken")
    if state == "private":
        vm.cpu.expect_zero(gpa + offset, size, "private memory that was pre-faulted", PAGE)
    else:
        what = "shared memory that was pre-faulted"
        vm.cpu.expect_filled(gpa + offset, size, SHARED, what, PAGE)
    return vm.cpu.counter("pf_taken") - before


@case(
    "PF8",
    "shadow paging cannot pre-fault: EOPNOTSUPP, and nothing is mapped",
    needs=("guests",),
)
def shadow_paging(tools: Toolbox) -> None:
    vm = tools.vm()
    vm.cpu.prepare(routines.HALT)
    if vm.vm.has(lib.KVM_CAP_PRE_FAULT_MEMORY):
        raise Missing("a KVM without KVM_CAP_PRE_FAULT_MEMORY")
    # EINVAL where the ioctl is not known yet, before Linux 6.11.
    expect_errno(
        lambda: vm.cpu.vcpu.pre_fault_memory(0, PAGE),
        (errno.EOPNOTSUPP, errno.EINVAL),
        "KVM_PRE_FAULT_MEMORY on a VM that says it does not have it",
    )


@case(
    "PF10",
    "a call that maps a part of its range succeeds and says what is left; the next one fails",
    needs=("pre_fault",),
    vary=_VARY,
)
def part(tools: Toolbox, state: str, gpa: int) -> None:
    vm = prepared(tools, state, gpa)
    request = ffi.new("struct kvm_pre_fault_memory *", (gpa + SIZE - PAGE, 3 * PAGE, 0))

    def call() -> int:
        return errno_of(lambda: vm.cpu.vcpu.ioctl("KVM_PRE_FAULT_MEMORY", request))

    left = (gpa + SIZE, 2 * PAGE)
    expect(errno_name(call()), "success", "a call that maps one page of three")
    expect((int(request.gpa), int(request.size)), left, "GPA and bytes left after it")
    expect(errno_name(call()), "ENOENT", "the same for what is left, where no slot is")
    expect((int(request.gpa), int(request.size)), left, "GPA and bytes left after that")


@case(
    "PF11",
    "a range with pages of both states is pre-faulted as a whole",
    needs=("pre_fault", "private_memory"),
    backend="guest_memfd",
    vary={"first": ("shared", "private"), "step": (1, 3)},
)
def both_states(tools: Toolbox, first: str, step: int) -> None:
    gpa, size = 4 * GIB, 24 * PAGE
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, size)
    memory.fill(0, size, SHARED)
    at = 0 if first == "private" else step * PAGE
    private = range(at, size, 2 * step * PAGE)
    for offset in private:
        memory.set_private(offset, step * PAGE)
    vm.cpu.prepare(routines.HALT)
    for offset in (0, 5 * PAGE):
        what = "bytes left and errno of a range with pages of both states"
        expect(pre_fault(vm.cpu, gpa + offset, size - offset), (0, 0), what)
    for offset in range(0, size, step * PAGE):
        if offset in private:
            memory.expect_guest_zero(offset, step * PAGE, "private pages among shared ones")
        else:
            memory.expect_guest(offset, step * PAGE, SHARED, "shared pages among private ones")
