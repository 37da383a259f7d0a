"""Private pages whose memory has failed: no guest reads them, and the VMM is told."""

from __future__ import annotations

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import EHWPOISON, check, expect, expect_errno
from pyvmm.validate.kit.guest import Cpu, Fault
from pyvmm.validate.kit.in_place import InPlace
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.poison import Poison
from pyvmm.validate.kit.toolbox import Toolbox

GPA, SIZE = 4 * GIB, 8 * PAGE
BAD = 3 * PAGE
_PRIVATE_EXIT: int = lib.KVM_MEMORY_EXIT_FLAG_PRIVATE


@case(
    "PP1",
    "a poisoned private page leaves the guest, ends its run with EHWPOISON, and can be punched",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"by": ("guest", "host")},
    alone=True,
)
def poisoned(tools: Toolbox, by: str) -> None:
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    cpu = memory.vm.cpu
    memory.set_private(0, SIZE)
    memory.guest_fill(0, BAD, PRIVATE)
    memory.guest_fill(BAD + PAGE, SIZE - BAD - PAGE, PRIVATE)
    poison = tools.keep(Poison(memory.file.fileno()))
    if by == "guest":
        poison.page_of(lambda: memory.guest_fill(BAD, PAGE, PRIVATE))
    else:
        poison.page_of(lambda: memory.allocate(BAD, PAGE))

    _expect_poisoned(cpu, "a poisoned page")
    memory.expect_guest(0, BAD, PRIVATE, "pages before a poisoned one")
    rest = BAD + PAGE
    memory.expect_guest(rest, SIZE - rest, PRIVATE, "pages behind a poisoned one")

    memory.set_shared(BAD, PAGE)
    memory.fill(BAD, PAGE, SHARED)
    memory.expect_guest(BAD, PAGE, SHARED, "the shared side of a poisoned page")
    memory.set_private(BAD, PAGE)
    _expect_poisoned(cpu, "a poisoned page that was shared meanwhile")

    memory.punch(BAD, PAGE)
    memory.expect_guest_zero(BAD, PAGE, "a page whose poisoned memory was punched")
    memory.guest_fill(BAD, PAGE, PRIVATE)
    memory.expect_guest(0, SIZE, PRIVATE, "a range whose poisoned page was punched")


@case(
    "PP2",
    "KVM_PRE_FAULT_MEMORY of a poisoned page fails with EHWPOISON",
    needs=("private_memory", "pre_fault"),
    backend="guest_memfd",
    alone=True,
)
def pre_faulted(tools: Toolbox) -> None:
    memory = tools.memory(tools.private_vm(), GPA, SIZE)
    cpu = memory.vm.cpu
    cpu.prepare(routines.HALT)
    memory.set_private(0, SIZE)
    poison = tools.keep(Poison(memory.file.fileno()))
    poison.page_of(lambda: memory.allocate(BAD, PAGE))
    expect_errno(
        lambda: cpu.vcpu.pre_fault_memory(GPA + BAD, PAGE),
        EHWPOISON,
        "KVM_PRE_FAULT_MEMORY of a poisoned page",
    )
    left = cpu.vcpu.pre_fault_memory(GPA, SIZE)
    expect(left, SIZE - BAD, "bytes that KVM_PRE_FAULT_MEMORY leaves, from a poisoned page on")


@case(
    "PP3",
    "a guest_memfd with a poisoned page is closed like any other",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"first": ("file", "VM")},
    alone=True,
)
def closed(tools: Toolbox, first: str) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, GPA, SIZE)
    memory.set_private(0, SIZE)
    poison = tools.keep(Poison(memory.file.fileno()))
    poison.page_of(lambda: memory.guest_fill(BAD, PAGE, PRIVATE))
    for thing in (memory, vm) if first == "file" else (vm, memory):
        thing.close()
    # The poisoned page must not come back to anybody.
    again = tools.memory(tools.private_vm(), GPA, SIZE)
    again.set_private(0, SIZE)
    again.expect_guest_zero(0, SIZE, "a new file after one with a poisoned page")
    again.guest_fill(0, SIZE, PRIVATE)
    again.expect_guest(0, SIZE, PRIVATE, "what a guest wrote to it")


@case(
    "PP4",
    "a private page that fails where pages convert in place exits as private, until it is punched",
    needs=("in_place",),
    backend="in_place",
    alone=True,
)
def poisoned_in_place(tools: Toolbox) -> None:
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE)
    memory.to_private(0, SIZE)
    memory.guest_fill(0, BAD, PRIVATE)
    memory.guest_fill(BAD + PAGE, SIZE - BAD - PAGE, PRIVATE)
    poison = tools.keep(Poison(memory.file.fileno()))
    poison.page_of(lambda: memory.guest_fill(BAD, PAGE, PRIVATE))
    _expect_poisoned(memory.vm.cpu, "a poisoned page that is private")
    memory.to_shared(0, SIZE)
    check(memory.host.read(BAD, 8) is None, "the host can read a poisoned page")
    memory.expect_host(0, BAD, PRIVATE, "shared pages before a poisoned one")
    rest = BAD + PAGE
    memory.expect_host(rest, SIZE - rest, PRIVATE, "shared pages behind a poisoned one")
    memory.punch(BAD, PAGE)
    memory.to_private(0, SIZE)
    memory.expect_guest_zero(BAD, PAGE, "a page whose poisoned memory was punched")


def _expect_poisoned(cpu: Cpu, what: str) -> None:
    for routine in (routines.READ[8], routines.WRITE[8]):
        outcome = cpu.run(routine, rdi=GPA + BAD + 8)
        expect(
            (outcome.error, outcome.reason, outcome.fault),
            (EHWPOISON, lib.KVM_EXIT_MEMORY_FAULT, Fault(_PRIVATE_EXIT, GPA + BAD, PAGE)),
            f"errno, reason and fault of a guest's access to {what}",
        )
