"""Who is told what happens in a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.result import CaseResult


class Observer:
    """Is told what happens in a run, and does nothing with it unless a method is overridden.

    Synchronization: all calls come from the thread that runs the session.
    """

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        """These cases are to run."""

    def knows(self, machine: dict[str, Any]) -> None:
        """What the report will say of the machine; the first case begins next."""

    def started(self, each: Case) -> None:
        """A worker has begun with this case."""

    def ended(self, number: int, result: CaseResult) -> None:
        """The ``number``-th result, from 1, in the order in which they come."""


class Passing(Observer):
    """Passes everything on to another observer, but for what a subclass does besides."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        self._observer.begins(cases, seed)

    def knows(self, machine: dict[str, Any]) -> None:
        self._observer.knows(machine)

    def started(self, each: Case) -> None:
        self._observer.started(each)

    def ended(self, number: int, result: CaseResult) -> None:
        self._observer.ended(number, result)
