"""Nothing is left behind, in whatever order things are done and closed.

Each case plays all possible orders of up to four steps that begin with one of them, many between
two looks at what the kernel counts. If something is left, the shortest order that leaves it is
looked for, so that a failure names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby

from pyvmm.validate.kit.accounts import Line, left_behind, lines
from pyvmm.validate.kit.case import case
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.orders import Order, Step, first_steps, orders
from pyvmm.validate.kit.stage import STAGES, Stage
from pyvmm.validate.kit.toolbox import Toolbox

LONGEST = 4
# A VM costs more than all else: orders that do not close it share one, one after the other, and
# those that close it in the same step do so together.
_ONE_AFTER_THE_OTHER, _TOGETHER = 128, 16
_FIRST = {"first": [str(step) for step in first_steps()]}
_MAPPED = {"first": [str(step) for step in first_steps(STAGES["mappable"].steps)]}
_DEADLINE_S = 400.0
# The first fills caches of the kernel's.
_ATTEMPTS = 4
# So many orders are played at once to find the one that leaks.
_MANY = 512
_SEARCH_S = 60.0


@case(
    "AC11",
    "guest_memfd: nothing is left, in whatever order pages, slot, file and VM come and go",
    needs=("private_memory",),
    backend="guest_memfd",
    vary=_FIRST,
    alone=True,
    deadline_s=_DEADLINE_S,
)
def guest_memfd_orders(tools: Toolbox, first: str) -> None:
    nothing_left(tools, "guest_memfd", first)


@case(
    "AC12",
    "the RFC's private file: nothing is left, in whatever order pages, slots, file and VM go",
    needs=("memory_error",),
    backend="memory_error",
    vary=_FIRST,
    alone=True,
    deadline_s=_DEADLINE_S,
)
def memory_error_orders(tools: Toolbox, first: str) -> None:
    nothing_left(tools, "memory_error", first)


@case(
    "AC13",
    "plain memslots: nothing is left, in whatever order pages, slot, file and VM come and go",
    needs=("guests",),
    vary={"backing": ("memfd", "anonymous"), **_FIRST},
    alone=True,
    deadline_s=_DEADLINE_S,
)
def memslot_orders(tools: Toolbox, backing: str, first: str) -> None:
    nothing_left(tools, backing, first)


@case(
    "AC14",
    "a guest_memfd that the host maps: nothing is left, in whatever order all of it comes and goes",
    needs=("mappable_guest_memfd",),
    vary=_MAPPED,
    alone=True,
    deadline_s=_DEADLINE_S,
)
def mappable_orders(tools: Toolbox, first: str) -> None:
    nothing_left(tools, "mappable", first)


@case(
    "AC15",
    "memory that converts in place: nothing is left, in whatever order all of it comes and goes",
    needs=("in_place",),
    backend="in_place",
    vary=_FIRST,
    alone=True,
    deadline_s=_DEADLINE_S,
)
def in_place_orders(tools: Toolbox, first: str) -> None:
    nothing_left(tools, "in_place", first)


def nothing_left(tools: Toolbox, kind: str, first: str) -> None:
    stage = STAGES[kind]
    every = list(orders(LONGEST, Step(first), stage.world, stage.steps))
    tools.say(f"{len(every)} orders")

    def play(chosen: Sequence[Order]) -> None:
        _play(tools, stage, chosen)

    leaks = left_behind(lambda: play(every), lines(), lambda line: line.noise, _ATTEMPTS)
    for line, grown in leaks.items():
        until = time.monotonic() + _SEARCH_S
        order = _shortest(play, every, line, until)
        # A leak is the same each time, what others use is not.
        is_leak = max(grown[1:]) < 1.5 * min(grown[1:])
        if order or (is_leak and time.monotonic() > until):
            raise CheckFailed(
                f"something is left ({line.name}), after: {', '.join(order or ['one of them'])}",
                f"{len(every)} orders leave {grown}; {', '.join(each.name for each in leaks)}",
            )
        tools.say(f"{len(every)} orders; others used more and more of {line.name}")


def _shortest(
    play: Callable[[Sequence[Order]], None], every: list[Order], line: Line, until: float
) -> Order:
    """The first of the shortest orders that leaves more in ``line``; () if none does so alone, or
    if it was not found in time."""

    def leaks(chosen: Sequence[Order], attempts: int = 1) -> bool:
        # So often that one unit of one of them stands out, where that does not take for ever: twice
        # the noise, as a leak fills up first what is free in the kernel's caches.
        times = max(1, min(2 * line.noise // line.unit + 2, _MANY // len(chosen)))
        work = partial(play, [*chosen] * times)
        return bool(left_behind(work, (line,), lambda line: line.noise, attempts, suspected=True))

    for length in range(1, LONGEST + 1):
        chosen: Sequence[Order] = tuple(each for each in every if len(each) == length)
        if not chosen or not leaks(chosen):
            continue
        while len(chosen) > 1:
            if time.monotonic() > until:
                return ()
            half = len(chosen) // 2
            chosen = chosen[:half] if leaks(chosen[:half]) else chosen[half:]
        return chosen[0] if leaks(chosen, 2) else ()
    return ()


def _play(tools: Toolbox, kind: type[Stage], chosen: Iterable[Order]) -> None:
    for closing, same in groupby(sorted(chosen, key=_vm_closed_at), key=_vm_closed_at):
        for some in _pieces(list(same), _TOGETHER if closing else _ONE_AFTER_THE_OTHER):
            vm = GuestVm(tools.kvm, kind.vm_type, 1)
            try:
                if closing:
                    _close_under(vm, kind, some, closing)
                else:
                    for index, order in enumerate(some):
                        stage = kind(vm, index)
                        _steps(stage, order)
                        stage.end()
            finally:
                vm.close()
            tools.beat()


def _close_under(vm: GuestVm, kind: type[Stage], some: Sequence[Order], closing: int) -> None:
    """Orders that close the VM in their step number ``closing``, beside each other."""
    stages = [kind(vm, index) for index in range(len(some))]
    for stage, order in zip(stages, some, strict=True):
        _steps(stage, order[: closing - 1])
    for stage, order in zip(stages, some, strict=True):
        _steps(stage, order[closing - 1 :])
        stage.end()


def _steps(stage: Stage, order: Order) -> None:
    for step in order:
        stage.do(step)


def _vm_closed_at(order: Order) -> int:
    """The number of the step that closes the VM, 0 for none."""
    return order.index(Step.CLOSE_VM) + 1 if Step.CLOSE_VM in order else 0


def _pieces(every: Sequence[Order], size: int) -> Iterator[Sequence[Order]]:
    for start in range(0, len(every), size):
        yield every[start : start + size]
