"""A whole run: cases in, a report out, and an observer that is told what happens on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from pyvmm.validate.kit.case import Case
from pyvmm.validate.results import report
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult
from pyvmm.validate.run.calibration import races_here
from pyvmm.validate.run.observer import Observer
from pyvmm.validate.run.runner import Runner

WORKERS = 2


class Session:
    """One run. :meth:`run` can be called once, and :meth:`report` when it has ended.

    ``workers`` processes run cases beside each other. ``seed`` is for what is random, None for
    any; with ``shuffle`` the order is random too. An exception that a signal handler or the
    observer raises ends all processes and leaves :meth:`run`; the report then has what ended
    before.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        observer: Observer,
        *,
        workers: int = WORKERS,
        seed: int | None = None,
        shuffle: bool = False,
    ) -> None:
        self.cases = list(cases)
        self.seed = random.randrange(1 << 32) if seed is None else seed
        self._observer = observer
        self._runner = Runner(
            self.cases,
            workers=workers,
            seed=self.seed,
            shuffle=shuffle,
            started=observer.started,
        )
        self._machine = report.machine_facts()
        self._results: list[CaseResult] = []
        self._start = time.monotonic()
        self._observer.begins(self.cases, self.seed)

    def run(self) -> None:
        self._start = time.monotonic()
        try:
            self._machine["races"] = races_here(self.cases, self.seed)
            self._observer.knows(self._machine)
            for result in self._runner:
                self._results.append(result)
                self._observer.ended(len(self._results), result)
        finally:
            self._runner.close()

    def report(self) -> Report:
        """What came out, in the order of the cases."""
        place = {each.name: at for at, each in enumerate(self.cases)}
        results = sorted(self._results, key=lambda result: place[result.name])
        return Report(
            self._machine,
            self.seed,
            time.monotonic() - self._start,
            tuple(results),
            not_run=tuple(each.name for each in self._runner.not_run),
            left_behind=self._runner.left_behind,
        )


def run(
    cases: Sequence[Case],
    observer: Observer | None = None,
    *,
    workers: int = WORKERS,
    seed: int | None = None,
    shuffle: bool = False,
) -> Report:
    """Run cases as ``pyvmm validate`` does; :class:`Session` says what the arguments are."""
    session = Session(cases, observer or Observer(), workers=workers, seed=seed, shuffle=shuffle)
    session.run()
    return session.report()
