"""What a long call does to other threads: none may keep them from the CPU for as long as it takes.

A kernel without preemption gives a CPU away only where it says so; a loop over all pages that
does not say so holds up everybody else, and the system's watchdog at last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pyvmm.validate.kit import routines
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, MIB, case
from pyvmm.validate.kit.check import CheckFailed, Missing, expect
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.waiting import Beside, beside

GPA = 4 * GIB
# A call this long is long enough; ranges of attributes grow until one is, or to the largest.
_LONG_S, _LARGEST = 0.4, 32 * GIB
# How much a guest has mapped; a change of attributes is quick with each page.
_MAPPED, _MAPPED_FOR_ATTRIBUTES = 192 * MIB, 384 * MIB
_ATTEMPTS = 8
# What takes less than that says nothing; others may wait for such a part of what takes longer.
_SHORT_S, _SHARE = 0.05, 0.3


class LongCall(NamedTuple):
    prepare: Callable[[], object]
    call: Callable[[], object]


def attributes(tools: Toolbox) -> LongCall:
    """A range without a slot, so large that changing it takes long."""
    vm = tools.private_vm()
    size = GIB
    while size < _LARGEST:
        began = time.monotonic()
        vm.vm.set_memory_attributes(GPA, size, ATTRIBUTE)
        took = time.monotonic() - began
        vm.vm.set_memory_attributes(GPA, size, 0)
        if took > _LONG_S:
            break
        size *= 2
    return LongCall(
        lambda: vm.vm.set_memory_attributes(GPA, size, 0),
        lambda: vm.vm.set_memory_attributes(GPA, size, ATTRIBUTE),
    )


def mapped(tools: Toolbox, what: str) -> LongCall:
    """What a guest has mapped, by single pages: that costs most."""
    size = _MAPPED_FOR_ATTRIBUTES if what in ("to private", "to shared") else _MAPPED
    vm = tools.private_vm()
    memory = tools.memory(vm, GPA, size)
    vm.cpu.prepare(routines.HALT)

    def make_private() -> None:
        memory.set_private(0, size)
        expect(pre_fault(vm.cpu, GPA, size), (0, 0), "bytes left and errno of pre-faulting")

    def make_shared() -> None:
        memory.set_shared(0, size)
        expect(pre_fault(vm.cpu, GPA, size), (0, 0), "bytes left and errno of pre-faulting")

    def make_again() -> None:
        memory.create()
        make_private()

    if what == "to shared":
        return LongCall(make_private, lambda: memory.set_shared(0, size))
    if what == "to private":
        return LongCall(make_shared, lambda: memory.set_private(0, size))
    if what == "punch":
        return LongCall(make_private, lambda: memory.punch(0, size))
    if what == "allocate":
        return LongCall(lambda: memory.punch(0, size), lambda: memory.allocate(0, size))
    if what == "delete":
        memory.delete()
        return LongCall(make_again, memory.delete)

    def unmapped() -> None:
        memory.set_shared(0, size)
        memory.set_private(0, size)
        memory.punch(0, size)

    return LongCall(unmapped, lambda: pre_fault(vm.cpu, GPA, size))


@case(
    "OT1",
    "a long call lets others run meanwhile, on its own CPU and on the other",
    needs=("private_memory", "two_cpus", "pre_fault"),
    backend="guest_memfd",
    vary={
        "call": (
            "attributes",
            "to private",
            "to shared",
            "punch",
            "allocate",
            "pre-fault",
            "delete",
        )
    },
    alone=True,
)
def others_run(tools: Toolbox, call: str) -> None:
    long_call = attributes(tools) if call == "attributes" else mapped(tools, call)
    seen: list[Beside] = []
    for _ in range(_ATTEMPTS):
        long_call.prepare()
        seen.append(beside(long_call.call))
        if seen[-1].took_s < _SHORT_S or all(min(each) < _SHARE for each in shares(seen).values()):
            break
    tools.provoked(len(seen), "long calls had two threads beside them that wait for a CPU")
    took_s = min(each.took_s for each in seen)
    if took_s < _SHORT_S:
        raise Missing(f"a call that takes long ({call}): here it took {took_s * 1e3:.0f} ms")
    for where, held_up in shares(seen).items():
        if min(held_up) < _SHARE:
            continue
        # Other programs may hold up a thread too: then also beside one that keeps nobody.
        usual = shares([beside(partial(compute, took_s)) for _ in seen])[where]
        if min(usual) > min(held_up) / 2:
            raise Missing(f"a machine with less to do: threads {where} wait {min(usual):.0%}")
        raise CheckFailed(
            f"a long call ({call}) keeps the threads {where} from running (cond_resched missing?)",
            f"took, longest wait on its CPU, on another (s): {seen}",
        )


def compute(seconds: float) -> None:
    """Use a CPU, which the kernel may give to others at any time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def shares(seen: list[Beside]) -> dict[str, list[float]]:
    """The longest waits as shares of the calls beside them, by where the thread was."""
    return {
        "of its CPU": [each.on_its_cpu_s / each.took_s for each in seen],
        "of another CPU": [each.on_another_s / each.took_s for each in seen],
    }
