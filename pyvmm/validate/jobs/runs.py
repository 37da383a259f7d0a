"""The catalogue on several kernels, as jobs: what is done outlives an interruption.

How the cases were cut, and the seed, are kept until all is done, so that the next call for the same
kernels asks for the same jobs and finds in the cache what came of them.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pyvmm.closing import Closing
from pyvmm.errors import PyvmmError
from pyvmm.json_file import read_own
from pyvmm.lab.cache import cache_folder, made_and_locked, write_whole
from pyvmm.lab.errors import KernelFailed
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs.cut import JOB_S, cut, put_together
from pyvmm.validate.jobs.durations import Durations, Seconds
from pyvmm.validate.jobs.job import Job, to_text
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.jobs.run import for_a_job, forget_job, sha256_of
from pyvmm.validate.jobs.workers import Announce, Engine
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.kernels.two_kernels import Came, Choice, Place, as_run, keep

_PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class _Plan:
    seed: int
    parts: tuple[tuple[str, ...], ...]


class Runs(Closing):
    """The catalogue on each kernel with each choice of parameters, in jobs of about ``job_s``.

    ``template`` is a job with all that is the same in all of them. ``seed`` is that of an earlier
    call which did not come to its end, or a random one, unless it is given. A context manager: the
    same work is done by one process at a time.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        choices: Sequence[Choice],
        template: Job,
        engine: Engine,
        *,
        job_s: float = JOB_S,
        seed: int | None = None,
        announce: Announce = lambda line: None,
    ) -> None:
        self._kernels = [for_a_job(each) for each in kernels]
        self._places: list[Place] = [
            (number, choice) for choice in choices for number in range(len(kernels))
        ]
        self._template = template
        self._engine = engine
        self._announce = announce
        told = [to_text(self._job(place, template.cases, seed or 0)) for place in self._places]
        told += [sha256_of(each.image) for each in kernels]
        key = hashlib.sha256(json.dumps([*told, seed is None, job_s]).encode()).hexdigest()
        self._folder = cache_folder() / "jobs" / "plans" / key[:16]
        self._job_s = job_s
        self._given_seed = seed
        self._plan = _Plan(0, ())
        self._asked: set[Job] = set()
        self._stack = ExitStack()

    @property
    def seed(self) -> int:
        return self._plan.seed

    @property
    def count(self) -> int:
        """How many jobs the first runs are."""
        return len(self._plan.parts) * len(self._places)

    def first(self, folders: Mapping[Place, Path]) -> dict[Place, Came]:
        """All cases at all places. Each run leaves what it has in its folder.

        Raises the first :class:`PyvmmError` that is not the kernel's; all else is done before.
        """
        return self._run(folders, self._plan.parts, self._template.timeout_s, 0)

    def again(
        self,
        folders: Mapping[Place, Path],
        cases: Sequence[str],
        number: int,
        limit_s: float,
    ) -> list[LabRun]:
        """Some cases once more, for the ``number``-th time."""
        limit = min(limit_s, self._template.timeout_s)
        came = self._run(folders, [tuple(cases)], limit, number)
        return [as_run(came[place], self.seed) for place in folders]

    def forget(self) -> None:
        """All is done: the next call for the same begins anew."""
        for job in self._asked:
            forget_job(job)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(
        self,
        folders: Mapping[Place, Path],
        parts: Sequence[tuple[str, ...]],
        timeout_s: float,
        number: int,
    ) -> dict[Place, Came]:
        jobs = {
            replace(self._job(place, part, self.seed, number), timeout_s=timeout_s): place
            for part in parts
            for place in folders
        }
        self._asked |= jobs.keys()
        pending = _Pending(jobs)
        done: dict[Place, dict[Job, JobResult]] = {place: {} for place in folders}
        failed: dict[Place, KernelFailed] = {}
        errors: list[PyvmmError] = []
        with closing(self._engine(pending)) as outcomes:
            for job, outcome in outcomes:
                place = jobs[job]
                if isinstance(outcome, JobResult):
                    done[place][job] = outcome
                elif isinstance(outcome, KernelFailed):
                    failed.setdefault(place, outcome)
                    pending.dropped |= {each for each, other in jobs.items() if other == place}
                else:
                    errors.append(outcome)
        if errors:
            raise errors[0]
        # In the order of the parts, whichever came first: where a kernel dies in two of them, or
        # says two things, what is told of it is the same in every check.
        return {
            place: failed[place]
            if place in failed
            else _kept([came[job] for job in jobs if job in came], folders[place])
            for place, came in done.items()
        }

    def _job(self, place: Place, cases: tuple[str, ...], seed: int, number: int = 0) -> Job:
        at, choice = place
        # One kernel may be compared with itself.
        is_the_second = self._kernels[at] in self._kernels[:at]
        return replace(
            self._template,
            kernel=self._kernels[at],
            cases=cases,
            seed=seed,
            parameters=(*self._template.parameters, *choice),
            repeat=2 * number + is_the_second,
        )

    def _durations(self) -> Seconds:
        whole = [self._job(place, self._template.cases, 0) for place in self._places]
        return Durations().of_all(whole)

    def _load(self) -> _Plan | None:
        """The plan of a call that did not come to its end, None where there is none."""
        return read_own(self._folder / _PLAN, self._planned)

    def _planned(self, data: Any) -> _Plan:
        seed, parts = data
        plan = _Plan(int(seed), tuple(tuple(part) for part in parts))
        if sorted(name for part in plan.parts for name in part) != sorted(self._template.cases):
            raise ValueError
        return plan

    def __enter__(self) -> Self:
        another = made_and_locked(self._folder, self._announce, "another check of the same")
        self._stack.enter_context(another)
        seed = random.randrange(1 << 32) if self._given_seed is None else self._given_seed
        self._plan = self._load() or _Plan(
            seed, tuple(cut(self._template.chosen, self._durations(), self._job_s))
        )
        write_whole(self._folder / _PLAN, json.dumps([self._plan.seed, self._plan.parts]))
        return self

    def close(self) -> None:
        self._stack.close()


class _Pending(list[Job]):
    """Jobs in their order. Those that were dropped meanwhile are not begun any more."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        super().__init__(jobs)
        self.dropped: set[Job] = set()

    def __iter__(self) -> Iterator[Job]:
        return (job for job in list.__iter__(self) if job not in self.dropped)


def _kept(results: Sequence[JobResult], folder: Path) -> LabRun:
    """One run of what came of its parts, with all it has in its folder."""
    run = put_together([result.run for result in results])
    keep(run, folder)
    for result in results:
        for name, text in result.files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    return run
