"""The first runs of two kernels as jobs: many at once, and what is done outlives an interruption.

How the cases were cut, and the seed, are kept until all is done, so that the next call for the same
two kernels asks for the same jobs and finds in the cache what came of them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import PyvmmError
from pyvmm.lab.cache import cache_folder, make_folder, write_whole
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.jobs import durations
from pyvmm.validate.jobs.cut import JOB_S, cut, put_together
from pyvmm.validate.jobs.job import Image, Job, Named, to_text
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.jobs.run import sha256_of
from pyvmm.validate.jobs.workers import Outcome
from pyvmm.validate.kernels.lab_run import LabRun, Machine
from pyvmm.validate.kernels.two_kernels import keep, place_of
from pyvmm.validate.kit.case import Case

Choice = tuple[str, ...]
#: Whether a run is of the kernel before or of the one now, and with which parameters.
Place = tuple[str, Choice]
#: What runs jobs: here, or on a cluster.
Engine = Callable[[Iterable[Job]], Generator[tuple[Job, Outcome], None, None]]


@dataclass(frozen=True, slots=True)
class _Plan:
    seed: int
    parts: tuple[tuple[str, ...], ...]


class FirstRuns:
    """The catalogue on two kernels, with each choice of parameters.

    ``seed`` is that of an earlier call which did not come to its end, or a random one, unless it is
    given.
    """

    def __init__(
        self,
        before: Kernel,
        now: Kernel,
        choices: Sequence[Choice],
        machine: Machine,
        cases: Sequence[Case],
        *,
        model_examples: int = 0,
        seed: int | None = None,
    ) -> None:
        self._kernels = {"before": before, "now": now}
        self._is_the_same = before == now
        self._choices = list(choices)
        self._machine = machine
        self._model_examples = model_examples
        names = tuple(each.name for each in cases)
        kinds = [self._job(each, choice, names, seed or 0) for each, choice in self._places()]
        told = [to_text(each) for each in kinds]
        told += [sha256_of(each.image) for each in self._kernels.values()]
        key = hashlib.sha256(json.dumps([*told, seed is None]).encode()).hexdigest()
        self._file = make_folder(cache_folder() / "jobs" / "plans") / f"{key[:16]}.json"
        self._plan = _load(self._file, names) or _Plan(
            random.randrange(1 << 32) if seed is None else seed,
            tuple(cut(cases, durations.known(), JOB_S)),
        )

    @property
    def seed(self) -> int:
        return self._plan.seed

    @property
    def count(self) -> int:
        """How many jobs there are."""
        return len(self._plan.parts) * len(self._places())

    def run(
        self,
        folder: Path,
        engine: Engine,
    ) -> dict[Choice, list[LabRun]]:
        """What ``engine`` makes of both, by the choice of parameters.

        Each leaves a folder in ``folder``, as :class:`TwoKernels` has it. Raises the first
        :class:`PyvmmError` of a job.
        """
        write_whole(self._file, json.dumps([self._plan.seed, self._plan.parts]))
        jobs = {
            self._job(*each, part, self._plan.seed): each
            for part in self._plan.parts
            for each in self._places()
        }
        done: dict[Place, list[JobResult]] = {each: [] for each in self._places()}
        with closing(engine(list(jobs))) as outcomes:
            for job, outcome in outcomes:
                if isinstance(outcome, PyvmmError):
                    raise outcome
                done[jobs[job]].append(outcome)
        for (when, choice), results in done.items():
            _keep_scripts(results, place_of(folder, choice) / when)
        runs = {each: put_together([result.run for result in done[each]]) for each in done}
        for (when, choice), run_ in runs.items():
            keep(run_, place_of(folder, choice) / when)
        return {choice: [runs[when, choice] for when in self._kernels] for choice in self._choices}

    def forget(self) -> None:
        """All is done: the next call for the same begins anew."""
        self._file.unlink(missing_ok=True)

    def _places(self) -> list[Place]:
        return [(when, choice) for choice in self._choices for when in self._kernels]

    def _job(self, when: str, choice: Choice, cases: tuple[str, ...], seed: int) -> Job:
        kernel = self._kernels[when]
        named = "/" not in kernel.name
        return Job(
            Named(kernel.name) if named else Image(str(kernel.image), sha256_of(kernel.image)),
            cases,
            seed,
            self._machine.cpus,
            self._machine.memory_mib,
            (*self._machine.parameters, *choice),
            self._model_examples,
            self._machine.timeout_s,
            # One kernel may be compared with itself.
            int(when == "now" and self._is_the_same),
        )


def _keep_scripts(results: Sequence[JobResult], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        for name, text in result.files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def _load(file: Path, names: tuple[str, ...]) -> _Plan | None:
    """The plan of a call that did not come to its end, None where there is none."""
    try:
        seed, parts = json.loads(file.read_text())
        plan = _Plan(int(seed), tuple(tuple(part) for part in parts))
    except (OSError, ValueError, TypeError):
        return None
    planned = sorted(name for part in plan.parts for name in part)
    return plan if planned == sorted(names) else None
