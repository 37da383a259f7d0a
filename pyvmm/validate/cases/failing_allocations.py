"""No memory for the kernel itself: each allocation of a call fails once, and nothing comes of it.

The first allocation of the call fails, the second in another VM, and so on until the call makes no
more of them; then all fail from some byte on, later and later. A call that failed has changed
nothing, works when it is made again, and leaves nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial

from pyvmm.errors import KvmError
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.accounts import left_behind, lines, open_vms
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, check, errno_name, expect
from pyvmm.validate.kit.failing_allocations import Attempt, FailingAllocations
from pyvmm.validate.kit.in_place import MAPPED, Answer, InPlace
from pyvmm.validate.kit.memory import STRIDE, Memory
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

GPA, SIZE = 4 * GIB, 16 * PAGE
_ATTEMPTS = 4
_DEADLINE_S = 240.0

#: What is done to a VM: it yields the call that is tried, and is told whether that failed.
Life = Generator[Callable[[], object], bool, None]
#: Makes a call, of whose allocations some fail.
Failing = Callable[[Callable[[], object]], Attempt]


def _create_vm(tools: Toolbox) -> Life:
    def create() -> None:
        tools.keep(tools.kvm.create_vm(lib.KVM_X86_SW_PROTECTED_VM))

    if (yield create):
        create()


def _create_vcpu(tools: Toolbox) -> Life:
    vm = tools.keep(tools.kvm.create_vm(lib.KVM_X86_SW_PROTECTED_VM))

    def create() -> None:  # without its mapping, which is no business of KVM's
        fd = vm.ioctl("KVM_CREATE_VCPU", 1)
        tools.on_close(lambda: os.close(fd))

    if (yield create):
        create()


def _create_file(tools: Toolbox, flags: int = 0) -> Life:
    vm = tools.private_vm()

    def create() -> None:
        tools.keep(vm.vm.create_guest_memfd(SIZE, flags))

    if (yield create):
        create()


def _create_slot(tools: Toolbox) -> Life:
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    memory.delete()
    if (yield memory.create):
        memory.create()  # EEXIST if the first try had left its part of the file bound
    _use(memory)


def _delete_slot(tools: Toolbox) -> Life:
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    _use(memory)
    if (yield memory.delete):
        memory.expect_guest(0, SIZE, PRIVATE, "a slot that could not be deleted")
        memory.delete()
    memory.set_shared(0, SIZE)
    memory.vm.cpu.expect_mmio(GPA, "a slot that was deleted")


def _move_slot(tools: Toolbox) -> Life:
    vm = tools.private_vm()
    shared, slot, there = tools.shared_side(GPA, SIZE), vm.new_slot(), GPA + GIB
    shared.fill(GPA, 0, SIZE, SHARED)
    region = partial(vm.vm.set_user_memory_region, slot)
    region(GPA, SIZE, shared.address)
    if (yield lambda: region(there, SIZE, shared.address)):
        vm.cpu.expect_filled(GPA, SIZE, SHARED, "a slot that could not be moved", STRIDE)
        region(there, SIZE, shared.address)
    word = vm.cpu.read(there, what="a slot that was moved")
    expect(word, SHARED + GPA, "what the guest reads in a slot that was moved")
    vm.cpu.expect_mmio(GPA, "where a slot was that was moved")


def _set_attributes(tools: Toolbox) -> Life:
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    memory.fill(0, SIZE, SHARED)
    if (yield lambda: memory.set_private(0, SIZE)):
        memory.expect_guest(0, SIZE, SHARED, "pages that could not be made private")
        memory.set_private(0, SIZE)
    memory.expect_guest_zero(0, SIZE, "pages that became private")


def _allocate(tools: Toolbox) -> Life:
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    memory.set_private(0, SIZE)
    if (yield lambda: memory.allocate(0, SIZE)):
        memory.allocate(0, SIZE)
    memory.expect_guest_zero(0, SIZE, "pages that were allocated")


def _pre_fault(tools: Toolbox) -> Life:
    tools.need("pre_fault")
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    memory.set_private(0, SIZE)
    vcpu = memory.vm.cpu.vcpu
    memory.vm.cpu.prepare(routines.HALT)

    def pre_fault() -> None:
        left = vcpu.pre_fault_memory(GPA, SIZE)
        while left:  # it does a part, and says so, where it cannot do all
            left = vcpu.pre_fault_memory(GPA + SIZE - left, left)

    if (yield pre_fault):
        pre_fault()
    memory.expect_guest_zero(0, SIZE, "pages that were faulted in")


def _run(tools: Toolbox) -> Life:
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    memory.set_private(0, SIZE)
    yield from _run_in(memory)


def _run_in(memory: Memory | InPlace) -> Life:
    cpu = memory.vm.cpu
    cpu.read(0, what="before an allocation fails")
    cpu.prepare(
        routines.FILL, rdi=GPA, rax=PRIVATE, rsi=STRIDE, rcx=SIZE // STRIDE, r8=(1 << 64) - 1
    )

    def enter() -> None:
        outcome = cpu.enter()
        if outcome.error:
            raise OSError(outcome.error, "KVM_RUN")

    if (yield enter):
        cpu.finish("a guest that goes on when an allocation had failed")
    memory.expect_guest(0, SIZE, PRIVATE, "what a guest wrote while an allocation failed")


def _convert_in_place(tools: Toolbox) -> Life:
    tools.need("in_place")
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)

    def convert() -> None:
        answer = memory.ask(PAGE, 3 * PAGE, True)
        if answer.error:
            where = "error_offset of a conversion for which there is no memory"
            expect(answer, Answer(errno.ENOMEM, PAGE), where)
            raise OSError(answer.error, "KVM_SET_MEMORY_ATTRIBUTES2")

    if (yield convert):
        memory.expect_states_of(0, SIZE, False, "a conversion that failed")
        convert()
    memory.expect_states_of(PAGE, 3 * PAGE, True, "a conversion")
    memory.expect_guest(0, SIZE, PRIVATE, "contents after a conversion")


def _create_slot_in_place(tools: Toolbox) -> Life:
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE)
    memory.delete()
    if (yield memory.create):
        memory.create()
    memory.guest_fill(0, SIZE, PRIVATE)


def _run_in_place(tools: Toolbox) -> Life:
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE)
    memory.to_private(0, SIZE // 2)
    yield from _run_in(memory)


def _use(memory: Memory) -> None:
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.expect_guest(0, SIZE, PRIVATE, "what a guest wrote")


LIVES: dict[str, Callable[[Toolbox], Life]] = {
    "KVM_CREATE_VM": _create_vm,
    "KVM_CREATE_VCPU": _create_vcpu,
    "KVM_CREATE_GUEST_MEMFD": _create_file,
    "making a slot": _create_slot,
    "deleting a slot": _delete_slot,
    "moving a slot": _move_slot,
    "KVM_SET_MEMORY_ATTRIBUTES": _set_attributes,
    "allocating": _allocate,
    "KVM_PRE_FAULT_MEMORY": _pre_fault,
    "KVM_RUN": _run,
}
IN_PLACE: dict[str, Callable[[Toolbox], Life]] = {
    "KVM_SET_MEMORY_ATTRIBUTES2": _convert_in_place,
    "KVM_CREATE_GUEST_MEMFD": partial(_create_file, flags=MAPPED),
    "making a slot": _create_slot_in_place,
    "KVM_RUN": _run_in_place,
}


@case(
    "FA1",
    "whichever allocation of a call fails: the call did nothing, works again, and nothing is left",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"of": tuple(LIVES)},
    alone=True,
    deadline_s=_DEADLINE_S,
)
def each_allocation(tools: Toolbox, of: str) -> None:
    _each_allocation(tools, of, LIVES[of])


@case(
    "FA2",
    "whichever allocation of a call in place fails: no state has changed, nothing is left",
    needs=("in_place",),
    backend="in_place",
    vary={"of": tuple(IN_PLACE)},
    alone=True,
    deadline_s=_DEADLINE_S,
)
def each_allocation_in_place(tools: Toolbox, of: str) -> None:
    _each_allocation(tools, of, IN_PLACE[of])


def _each_allocation(tools: Toolbox, of: str, life: Callable[[Toolbox], Life]) -> None:
    failing = tools.keep(FailingAllocations())
    live = partial(_live, of, life)
    live(partial(failing.attempt, 1 << 30), "")  # what a kernel does once in its life is done
    counts = []

    def sweep() -> None:
        each = (
            (f"allocation {number}", partial(failing.attempt, number))
            for number in itertools.count(1)
        )
        behind = (
            (f"all slabs behind {size} bytes", partial(failing.attempt_within, size))
            for size in _sizes()
        )
        failures = [_until_none_fails(tools, live, ways) for ways in (each, behind)]
        counts.append((*map(len, failures), sum(map(sum, failures))))

    grown = left_behind(sweep, lines(), lambda line: line.noise, _ATTEMPTS)
    single, behind, failures = counts[-1]
    tools.say(
        f"{single} allocations failed, and {behind} times all from some byte on; the call failed "
        f"{failures} times"
    )
    if grown:
        line, seen = next(iter(grown.items()))
        raise CheckFailed(
            f"{of} with an allocation that fails leaves something ({line.name})", f"{seen}"
        )


def _until_none_fails(
    tools: Toolbox, live: Callable[[Failing, str], Attempt], ways: Iterable[tuple[str, Failing]]
) -> list[bool]:
    """A life for each way, until no allocation fails; whether the call did."""
    failures = []
    for detail, failing in ways:
        attempt = live(failing, detail)
        tools.beat()
        if not attempt.is_reached:
            break
        failures.append(attempt.error != 0)
    return failures


def _sizes() -> Iterator[int]:
    """Bytes of slabs: in steps smaller than what is allocated at once, or than what there is."""
    size = 0
    while True:
        yield size
        size += max(64, size // 16)


def _live(of: str, of_a_vm: Callable[[Toolbox], Life], failing: Failing, detail: str) -> Attempt:
    """One life, whose call is made by ``failing``, so that allocations fail."""
    before = open_vms()
    with Toolbox("") as own:
        life = of_a_vm(own)
        attempt = failing(next(life))
        seen = errno_name(attempt.error)
        check(
            attempt.error in (0, errno.ENOMEM),
            f"{of} with an allocation that fails: {seen}, expected ENOMEM",
            detail,
        )
        check(attempt.is_reached or not attempt.error, f"{of}: {seen}, expected success", detail)
        try:
            with suppress(StopIteration):
                life.send(bool(attempt.error))
        except CheckFailed as failure:
            raise CheckFailed(str(failure), detail) from None
        except (KvmError, OSError) as failure:
            seen = errno_name(failure.errno or 0)
            raise CheckFailed(
                f"{of} again, when an allocation had failed: {seen}, expected success", detail
            ) from None
    expect(open_vms(), before, f"VMs that are left when an allocation of {of} failed")
    return attempt
