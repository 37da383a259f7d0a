"""What a machine can see of races: measured for a second, before the cases begin.

A case about races that provoked none has shown nothing and is skipped. Where most would be, as
in an emulator whose CPUs take turns, this says so first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import GIB, PAGE, Case
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.watch import Watch
from pyvmm.validate.results.result import State
from pyvmm.validate.run.runner import Runner
from pyvmm.validate.run.worker import NO_RACE

# A second, or longer where that is too few tries to tell.
_SECONDS, _LEAST, _LONGEST_S = 1.0, 200, 5.0
_DEADLINE_S = 15.0


def races_here(cases: Sequence[Case], seed: int = 0) -> str:
    """In a few words; "" where no case is about races."""
    if not any("two_cpus" in each.needs for each in cases):
        return ""
    needs = ("kvm", "guests", "two_cpus")
    case = Case("RACES", "", calibrate, "races", needs, deadline_s=_DEADLINE_S)
    (result,) = Runner([case], seed=seed)
    if result.state is State.PASS:
        return result.detail
    if result.message == NO_RACE:
        return f"none ({result.detail}); cases that provoke none are skipped"
    return f"not measured ({result.message})"


def calibrate(tools: Toolbox) -> None:
    """Change a page under a vCPU that reads it, all the time; a case, to be run as one."""
    has_private = not missing("private_memory") and not missing("native_guests")
    change = flips if has_private else discards
    change(tools)


def tries() -> Iterator[None]:
    """One after the other, for as long as it is to be measured."""
    began = time.monotonic()
    for number in itertools.count(1):
        yield
        took = time.monotonic() - began
        if took > (_SECONDS if number >= _LEAST else _LONGEST_S):
            return


def flips(tools: Toolbox) -> None:
    """The page becomes private and shared again at once: faults in between lose the race."""
    memory = tools.memory(tools.private_vm(), 4 * GIB, PAGE)
    vm, count = memory.vm.vm, 0

    def flip(delay: range) -> None:
        vm.set_memory_attributes(memory.gpa, PAGE, ATTRIBUTE)
        for _ in delay:
            pass
        vm.set_memory_attributes(memory.gpa, PAGE, 0)

    with Watch(memory.vm.cpu, memory.gpa) as watch:
        for _ in tries():
            count += 1
            delay = range(tools.random.randrange(100))
            tools.tried(watch.during(flip, delay), "found the vCPU inside the guest")
            watch.fresh()
    share = 100 * watch.lost_races / count
    tools.provoked(watch.lost_races, f"lost races in {count:,} flips ({share:.1f} %)")


def discards(tools: Toolbox) -> None:
    """The host discards the page, and the guest faults in a new one: what any KVM has."""
    vm = tools.vm()
    shared = tools.shared_side(4 * GIB, PAGE)
    vm.vm.set_user_memory_region(vm.new_slot(), 4 * GIB, PAGE, shared.address)
    with Watch(vm.cpu, 4 * GIB) as watch:
        for _ in tries():
            met = watch.during(shared.discard, 0, PAGE)
            tools.tried(met, "discards found the vCPU inside the guest")
            watch.fresh()
