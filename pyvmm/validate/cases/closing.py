"""The last descriptor of a guest_memfd is closed in the middle of something else.

A vCPU that pre-faults much memory keeps a deletion of another slot waiting (both want SRCU), so
that what must happen during the deletion is no matter of luck.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.beside import CallBeside
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, MIB, PAGE, case
from pyvmm.validate.kit.check import check
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.memory import ATTRIBUTE, Memory
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE
_HELD, _HELD_SIZE = 5 * GIB, 64 * MIB
_ROUNDS = 8
# So many slots that one of them comes to lie where the deleted slot was.
_SLOTS = 24


def first_in_line() -> None:
    """Let this thread run before all others of its CPU, where it may."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


class Others:
    """A VM with a file of its own, whose slots come and go."""

    def __init__(self, tools: Toolbox) -> None:
        self.vm: GuestVm = tools.private_vm()
        self.gpa, size = 4 * GIB, _SLOTS * SIZE
        self.file = tools.keep(self.vm.vm.create_guest_memfd(size))
        self.shared = tools.shared_side(self.gpa, size)
        self.vm.vm.set_memory_attributes(self.gpa, size, ATTRIBUTE)
        self.slots = [self.vm.new_slot() for _ in range(_SLOTS)]

    def make(self, size: int) -> None:
        """Make all slots; 0: delete them."""
        for at, slot in zip(range(0, _SLOTS * SIZE, SIZE), self.slots, strict=True):
            self.vm.vm.set_user_memory_region2(
                slot,
                self.gpa + at,
                size,
                self.shared.address + at,
                lib.KVM_MEM_GUEST_MEMFD,
                self.file.fileno(),
                at,
            )


@case(
    "CL1",
    "a file that is closed while its slot is deleted takes no slot along that was made since",
    needs=("private_memory", "pre_fault", "two_cpus", "statistics"),
    backend="guest_memfd",
    alone=True,
)
def during_a_deletion(tools: Toolbox) -> None:
    vm, others = tools.private_vm(), Others(tools)
    held = tools.shared_side(_HELD, _HELD_SIZE)
    vm.vm.set_user_memory_region(vm.new_slot(), _HELD, _HELD_SIZE, held.address)
    vm.cpu.prepare(routines.HALT)
    cpus = os.sched_getaffinity(0)
    cpu = min(cpus)
    for _ in range(_ROUNDS):
        held.discard(0, _HELD_SIZE)
        os.sched_setaffinity(0, {cpu})
        memory = Memory(vm, 4 * GIB, SIZE)
        os.sched_setaffinity(0, cpus)

        def delete(memory: Memory = memory) -> None:
            os.sched_setaffinity(0, {cpu})
            first_in_line()
            memory.delete()
            # Its memory is free now, and the next that a slot of this CPU takes.
            others.make(SIZE)

        def close(memory: Memory = memory) -> None:
            os.sched_setaffinity(0, {cpu})
            memory.file.close()

        before = vm.mapped_pages()
        with ExitStack() as stack:
            holder = stack.enter_context(CallBeside(lambda: pre_fault(vm.cpu, _HELD, _HELD_SIZE)))
            while vm.mapped_pages() == before and not holder.ends(0):
                pass
            deletion = stack.enter_context(CallBeside(delete))
            is_race = deletion.waits()
            if is_race:
                closing = stack.enter_context(CallBeside(close))
                is_race = closing.waits() and not deletion.ends(0)
            tools.tried(is_race, "files were closed during a deletion")
        memory.close()
        for at in range(0, _SLOTS * SIZE, SIZE):
            outcome = others.vm.cpu.run(routines.WRITE[8], rdi=others.gpa + at, rax=1)
            check(
                outcome.reason == lib.KVM_EXIT_HLT,
                "a slot that was made when another file was closed has lost its own file (use "
                "after free)",
                str(outcome),
            )
        others.make(0)
