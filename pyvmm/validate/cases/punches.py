"""A punch takes its pages from the guest first, and frees them then.

In the other order a guest writes for a moment to memory that others have. Afterwards all looks
right, so the guest is looked at while a punch of much memory goes on, which takes some
milliseconds: it counts in the first page of it, and stands still from the punch's beginning on.
"""

from __future__ import annotations

import mmap
import os
import time

from pyvmm.validate.kit import child, routines
from pyvmm.validate.kit.case import GIB, MIB, PAGE, case
from pyvmm.validate.kit.check import check, expect
from pyvmm.validate.kit.in_place import InPlace
from pyvmm.validate.kit.memory import Memory
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.watch import Watch

GPA, SIZE = 4 * GIB, 64 * MIB
# Two CPUs are for the guest and the punch: who looks at them sleeps between two looks.
_BETWEEN_S = 0.0002
NEEDS = ("two_cpus", "native_guests")


@case(
    "PN1",
    "a guest stands still, and writes to no freed page, while private pages are punched",
    needs=(*NEEDS, "private_memory"),
    backend="guest_memfd",
    vary={"slots": (1, 2, 4)},
    alone=True,
)
def private_pages(tools: Toolbox, slots: int) -> None:
    memory = tools.memory(tools.private_vm(), GPA, SIZE, slots=slots)
    memory.set_private(0, SIZE)
    _stands_still(tools, memory)


@case(
    "PN2",
    "a guest stands still, and writes to no freed page, while pages of either state are punched",
    needs=(*NEEDS, "in_place"),
    backend="in_place",
    vary={"state": ("private", "shared")},
    alone=True,
)
def pages_in_place(tools: Toolbox, state: str) -> None:
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE)
    (memory.to_private if state == "private" else memory.to_shared)(0, SIZE)
    _stands_still(tools, memory)


def _stands_still(tools: Toolbox, memory: Memory | InPlace) -> None:
    went_on = looked = 0
    with Watch(memory.vm.cpu, GPA, routines.COUNT) as watch:
        for _ in tools.enough(24, 4.0):
            # The guest has the first page only, which is unmapped at once.
            memory.allocate(PAGE, SIZE - PAGE)
            watch.fresh()
            middle = _counts_in_the_middle(memory, watch)
            looked += len(middle) > 1
            went_on += len(set(middle)) > 1
            tools.tried(len(middle) > 1, "punches were looked at while they went on")
    tools.say(f"the guest went on in {went_on} of {looked} punches")
    # A machine that stands still can make a count seem to come in time, but not time and again.
    check(
        2 * went_on <= looked,
        "a guest goes on in a page while a punch frees it: freed before it is unmapped",
        f"in {went_on} of {looked} punches",
    )


def _counts_in_the_middle(memory: Memory | InPlace, watch: Watch) -> list[int]:
    """The guest's counts in the third quarter of a punch, which a process of its own makes: a
    thread would wait for Python before it could look at the clock."""
    with mmap.mmap(-1, 16) as times:

        def punch() -> int:
            began = time.monotonic_ns()
            memory.punch(0, SIZE)
            times[:] = b"".join(each.to_bytes(8, "little") for each in (began, time.monotonic_ns()))
            return 0

        samples: list[tuple[int, int]] = []
        pid = child.start(punch)
        while not any(times[8:16]):
            samples.append((time.monotonic_ns(), watch.rounds))
            time.sleep(_BETWEEN_S)
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        expect(child.end_of(pid), 0, "how a process ends that punches")
        began, ended = (int.from_bytes(times[at : at + 8], "little") for at in (0, 8))
    first, last = began + (ended - began) // 2, began + (ended - began) * 3 // 4
    return [rounds for at, rounds in samples if first <= at <= last]
