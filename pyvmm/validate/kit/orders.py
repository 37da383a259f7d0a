"""Which steps may follow which on a piece of guest memory, and all orders of them.

A small model of what is there says what is possible; nothing here knows KVM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache


class Step(StrEnum):
    """What is done to a slot, the file behind it and the VM. *There* is to private."""

    WRITE = "guest writes"
    ALLOCATE = "host allocates"
    ALLOCATE_OVER = "host allocates over pages in use"
    PUNCH = "host punches"
    THERE = "host converts there"
    BACK = "host converts back"
    DELETE = "slot deleted"
    CREATE = "slot made again"
    CLOSE_FILE = "file closed"
    CLOSE_VM = "VM closed"


Order = tuple[Step, ...]

_OF_THE_FILE = (Step.ALLOCATE, Step.ALLOCATE_OVER, Step.PUNCH, Step.CLOSE_FILE)
_OF_THE_VM = (Step.DELETE, Step.CREATE, Step.CLOSE_VM)
_CONVERSIONS = (Step.THERE, Step.BACK)


@dataclass(frozen=True, slots=True)
class World:
    """What is there. ``in_use``: the file may have pages. The vCPU is there to the end.

    ``converted_by_file``: a conversion is a call on the file, not one on the VM.
    """

    slot: bool = True
    file: bool = True
    vm: bool = True
    private: bool = False
    in_use: bool = False
    converted_by_file: bool = False

    # There are few worlds, and each order asks for each of its steps.
    @cache  # noqa: B019
    def after(self, step: Step) -> World | None:
        """The world after ``step``, None where it is not possible.

        A guest can always write; where nothing is that it could write to, it gets an exit.
        """
        by_file = self.converted_by_file
        if not self.file and (step in _OF_THE_FILE or (by_file and step in _CONVERSIONS)):
            return None
        if not self.vm and (step in _OF_THE_VM or (not by_file and step in _CONVERSIONS)):
            return None
        if step is Step.WRITE:
            return replace(self, in_use=self.in_use or (self.slot and self.file))
        if step is Step.ALLOCATE:
            return replace(self, in_use=True)
        if step is Step.ALLOCATE_OVER:
            return self if self.in_use else None
        if step is Step.PUNCH:
            return replace(self, in_use=False)
        if step is Step.CLOSE_FILE:
            return replace(self, file=False, in_use=False)
        if step is Step.CLOSE_VM:
            return replace(self, vm=False)
        if step is Step.DELETE:
            return replace(self, slot=False) if self.slot else None
        if step is Step.CREATE:
            return replace(self, slot=True) if self.file and not self.slot else None
        return replace(self, private=step is Step.THERE)


def orders(longest: int, first: Step, world: World, steps: Sequence[Step]) -> Iterator[Order]:
    """All possible orders of one to ``longest`` of the steps that begin with ``first``."""
    then = world.after(first)
    if then is None or longest < 1:
        return
    yield (first,)
    for step in steps:
        for rest in orders(longest - 1, step, then, steps):
            yield (first, *rest)


def first_steps(steps: Sequence[Step] = tuple(Step)) -> tuple[Step, ...]:
    """The steps that an order can begin with."""
    return tuple(step for step in steps if World().after(step) is not None)
