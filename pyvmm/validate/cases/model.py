"""Random steps against a model of page states and contents (see :mod:`pyvmm.validate.model`).

A failure is shrunk to a short script, in a file that ``pyvmm validate --replay`` plays again.
"""

from __future__ import annotations

import json

from pyvmm.validate.kit.case import GIB, KIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model import files
from pyvmm.validate.model.explore import explore
from pyvmm.validate.model.script import Layout

# Memory below 1 MiB; several slots on one file, none of them at an end of it; blocks of huge
# pages, with a slot that ends inside one.
LAYOUTS = {
    "low": Layout(512 * KIB, 16, file_pages=24),
    "slots": Layout(4 * GIB + 5 * PAGE, 24, slots=3, file_pages=40, file_offset=7, backing="shmem"),
    "huge": Layout(4 * GIB, 1100, slots=2, file_pages=1200, file_offset=9, backing="thp"),
}
_DEADLINE_S = 180.0
_EXPLORING, _SHRINKING = 0.4, 0.4  # of the deadline, at most
_EXAMPLES, _RUNNING_EXAMPLES = 16, 10
_SHOWN = 12  # steps; the file has all


def run(tools: Toolbox, abi: str, layout: Layout) -> None:
    each = tools.case
    assert each is not None
    races: list[int] = []
    found = explore(
        abi,
        layout,
        seed=tools.random.getrandbits(32),
        examples=each.examples,
        running=files.running(each.name),
        seconds=_EXPLORING * each.deadline_s,
        shrink_seconds=_SHRINKING * each.deadline_s,
        watch=each.alone,
        raced=races.append,
    )
    tools.scripts = len(races) - 1  # the first has no steps
    if found is None:
        tools.say(f"{tools.scripts} scripts")
        if each.alone:
            tools.provoked(sum(races), "of their steps found the vCPU at work")
        return
    script, failure = found
    path = files.save(each.name, script)
    shown = "; ".join(json.dumps(step) for step in script.steps[:_SHOWN])
    more = f"; and {len(script.steps) - _SHOWN} more" if len(script.steps) > _SHOWN else ""
    raise CheckFailed(str(failure), f"{failure.detail}; --replay {path} has {shown}{more}")


# The shared view is one GiB above.
VIEWS_LAYOUTS = {
    "low": Layout(512 * KIB, 16, file_pages=24),
    "slots": Layout(4 * GIB + 5 * PAGE, 24, slots=3, file_pages=40, file_offset=7, backing="shmem"),
    "huge": Layout(4 * GIB, 1100, slots=2, file_pages=1200, file_offset=9, backing="thp"),
}
# One kind of memory, whatever the page's size: more slots, and a file of many pages.
IN_PLACE_LAYOUTS = {
    "low": Layout(512 * KIB, 16, file_pages=24),
    "slots": Layout(4 * GIB + 5 * PAGE, 24, slots=3, file_pages=40, file_offset=7),
    "large": Layout(4 * GIB, 300, slots=2, file_pages=400, file_offset=61),
}
# Where a vCPU stays inside the guest.
RUNNING_LAYOUT = Layout(4 * GIB + 3 * PAGE, 12, slots=2, file_pages=24, file_offset=5)
RUNNING_NEEDS = ("two_cpus", "native_guests")
# On any KVM: a memfd, where huge pages are not for the asking, or a guest_memfd that is mapped.
SHARED_LAYOUTS = {
    "low": Layout(512 * KIB, 16, file_pages=24, backing="shmem"),
    "slots": Layout(4 * GIB + 5 * PAGE, 24, slots=5, file_pages=40, file_offset=7, backing="shmem"),
    "mapped": Layout(4 * GIB, 24, slots=3, file_pages=40, file_offset=9, backing="guest_memfd"),
}


@case(
    "MODEL2",
    "random steps on the RFC's private memory: every access gives what the model says",
    needs=("memory_error",),
    backend="memory_error",
    vary={"layout": ("low", "slots", "huge")},
    deadline_s=_DEADLINE_S,
    examples=_EXAMPLES,
)
def memory_error(tools: Toolbox, layout: str) -> None:
    run(tools, "memory_error", VIEWS_LAYOUTS[layout])


@case(
    "MODEL3",
    "random steps on memslots without private memory: every access gives what the model says",
    needs=("guests",),
    vary={"layout": ("low", "slots", "mapped")},
    deadline_s=_DEADLINE_S,
    examples=_EXAMPLES,
)
def memslots(tools: Toolbox, layout: str) -> None:
    run(tools, "memslots", SHARED_LAYOUTS[layout])


@case(
    "MODEL1",
    "random steps on private memory: every access gives what the model says",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"layout": ("low", "slots", "huge")},
    deadline_s=_DEADLINE_S,
    examples=_EXAMPLES,
)
def guest_memfd(tools: Toolbox, layout: str) -> None:
    run(tools, "guest_memfd", LAYOUTS[layout])


@case(
    "MODEL4",
    "the same while a vCPU reads a page and stays inside the guest",
    needs=("private_memory", *RUNNING_NEEDS),
    backend="guest_memfd",
    alone=True,
    deadline_s=_DEADLINE_S,
    examples=_RUNNING_EXAMPLES,
)
def guest_memfd_running(tools: Toolbox) -> None:
    run(tools, "guest_memfd", RUNNING_LAYOUT)


@case(
    "MODEL5",
    "the same with the RFC's private memory while a vCPU reads a page and stays inside the guest",
    needs=("memory_error", *RUNNING_NEEDS),
    backend="memory_error",
    alone=True,
    deadline_s=_DEADLINE_S,
    examples=_RUNNING_EXAMPLES,
)
def memory_error_running(tools: Toolbox) -> None:
    run(tools, "memory_error", RUNNING_LAYOUT)


@case(
    "MODEL6",
    "random steps on memory that converts in place: every access gives what the model says",
    needs=("in_place",),
    backend="in_place",
    vary={"layout": tuple(IN_PLACE_LAYOUTS)},
    deadline_s=_DEADLINE_S,
    examples=_EXAMPLES,
)
def in_place(tools: Toolbox, layout: str) -> None:
    run(tools, "in_place", IN_PLACE_LAYOUTS[layout])


@case(
    "MODEL7",
    "the same with in-place conversion while a vCPU reads a page and stays inside the guest",
    needs=("in_place", *RUNNING_NEEDS),
    backend="in_place",
    alone=True,
    deadline_s=_DEADLINE_S,
    examples=_RUNNING_EXAMPLES,
)
def in_place_running(tools: Toolbox) -> None:
    run(tools, "in_place", RUNNING_LAYOUT)
