"""What a long call does to other threads: none may keep them from the CPU for as long as it takes.

A kernel without preemption gives a CPU away only where it says so; a loop over all pages that
does not say so holds up everybody else, and the system's watchdog at last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from pyvmm.validate.kit import routines
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, MIB, case
from pyvmm.validate.kit.check import Missing, check, expect
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.waiting import Waiting

GPA = 4 * GIB
# A call this long is long enough; ranges of attributes grow until one is, or to the largest.
_LONG_S, _LARGEST = 0.4, 32 * GIB
_MAPPED = 192 * MIB
_ATTEMPTS = 4
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
    vm = tools.private_vm()
    memory = tools.memory(vm, GPA, _MAPPED)
    vm.cpu.prepare(routines.HALT)

    def make_private() -> None:
        memory.set_private(0, _MAPPED)
        expect(pre_fault(vm.cpu, GPA, _MAPPED), (0, 0), "bytes left and errno of pre-faulting")

    def make_shared() -> None:
        memory.set_shared(0, _MAPPED)
        expect(pre_fault(vm.cpu, GPA, _MAPPED), (0, 0), "bytes left and errno of pre-faulting")

    def make_again() -> None:
        memory.create()
        make_private()

    if what == "to shared":
        return LongCall(make_private, lambda: memory.set_shared(0, _MAPPED))
    if what == "to private":
        return LongCall(make_shared, lambda: memory.set_private(0, _MAPPED))
    if what == "punch":
        return LongCall(make_private, lambda: memory.punch(0, _MAPPED))
    if what == "allocate":
        return LongCall(lambda: memory.punch(0, _MAPPED), lambda: memory.allocate(0, _MAPPED))
    if what == "delete":
        memory.delete()
        return LongCall(make_again, memory.delete)

    def unmapped() -> None:
        memory.set_shared(0, _MAPPED)
        memory.set_private(0, _MAPPED)
        memory.punch(0, _MAPPED)

    return LongCall(unmapped, lambda: pre_fault(vm.cpu, GPA, _MAPPED))


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
    cpus = sorted(os.sched_getaffinity(0))
    seen: list[tuple[float, float, float]] = []
    for _ in range(_ATTEMPTS):
        long_call.prepare()
        try:
            with Waiting(cpus[0]) as same, Waiting(cpus[1]) as other:
                os.sched_setaffinity(0, {cpus[0]})
                began = time.monotonic()
                long_call.call()
                took = time.monotonic() - began
        finally:
            os.sched_setaffinity(0, cpus)
        seen.append((took, same.longest_s, other.longest_s))
        if took < _SHORT_S or all(min(shares) < _SHARE for _, shares in waits(seen)):
            break
    tools.provoked(len(seen), "long calls had two threads beside them that wait for a CPU")
    took = min(took for took, _, _ in seen)
    if took < _SHORT_S:
        raise Missing(f"a call that takes long ({call}): here it took {took * 1e3:.0f} ms")
    for where, shares in waits(seen):
        # Other programs may hold up a thread too, but not each time.
        check(
            min(shares) < _SHARE,
            f"a long call ({call}) keeps the threads {where} from running (cond_resched missing?)",
            f"took, longest wait on its CPU, on another (s): {seen}",
        )


def waits(seen: list[tuple[float, float, float]]) -> list[tuple[str, list[float]]]:
    """The longest waits as shares of the calls beside them: on their CPU, and on the other."""
    return [
        ("of its CPU", [same / took for took, same, _ in seen]),
        ("of another CPU", [other / took for took, _, other in seen]),
    ]
