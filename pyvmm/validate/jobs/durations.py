"""How long cases took here: recorded as jobs end, so that later ones can be made of equal length.

``durations.json`` in the cache has seconds by the names of cases, apart for kernels that differ in
which cases they skip, or in how fast they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from pyvmm.json_file import read_own
from pyvmm.lab.build import known_names
from pyvmm.lab.cache import cache_folder, locked, make_folder, write_whole
from pyvmm.lab.errors import LabError
from pyvmm.lab.kernels import Kernel, find_built, read_image
from pyvmm.validate.jobs.job import Built, Image, Job, Named
from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.session import WORKERS

_FILE = "durations.json"
#: Of a case that never ran here, on an emulated CPU; the model's play for part of their deadline.
_UNKNOWN_S = 0.5
_UNKNOWN_MODEL = 0.2
#: No case takes longer.
_LONGEST_S = 1e6
#: What a job takes besides: the boot, and the first look at the machine.
START_S = 10.0

Seconds = Mapping[str, float]


class Durations:
    """What was recorded until now; nothing where the file is damaged."""

    def __init__(self) -> None:
        self._kinds = read_own(cache_folder() / _FILE, _by_kind) or {}
        every: dict[str, list[float]] = {}
        for seconds in self._kinds.values():
            for name, each in seconds.items():
                every.setdefault(name, []).append(each)
        self._usual = {name: fmean(found) for name, found in every.items()}

    def of(self, job: Job) -> Seconds:
        """Seconds by the names of cases on a kernel such as the job's. Of a case that never ran on
        one it is the mean of what it took on others."""
        return {**self._usual, **self._kinds.get(_kind_of(job), {})}

    def of_all(self, jobs: Sequence[Job]) -> Seconds:
        """The mean of what a case takes in each of the jobs, for one cut of all."""
        every = [self.of(job) for job in jobs]
        return {name: fmean(each[name] for each in every) for name in self._usual}


def record(job: Job, results: Iterable[CaseResult]) -> None:
    """Keep how long the job's cases took. A figure that cannot be kept is no reason to fail.

    One that failed may have waited for its deadline, and is left out.
    """
    took = {
        each.name: 0.0 if each.state is State.SKIP else round(each.duration_s, 3)
        for each in results
        if not each.state.bad
    }
    with suppress(OSError):
        folder = make_folder(cache_folder() / "jobs")
        with locked(folder, lambda line: None):
            kinds = read_own(cache_folder() / _FILE, _by_kind) or {}
            kind = _kind_of(job)
            kinds[kind] = {**kinds.get(kind, {}), **took}
            write_whole(cache_folder() / _FILE, json.dumps(kinds))


def _by_kind(data: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {str(kind): _seconds(seconds) for kind, seconds in data.items()}


def _seconds(data: dict[str, Any]) -> dict[str, float]:
    found = {str(name): float(seconds) for name, seconds in data.items()}
    if not all(0 <= each <= _LONGEST_S for each in found.values()):
        raise ValueError
    return found


def _kind_of(job: Job) -> str:
    """What a job's kernel has in common with others that skip the same cases and are as fast: the
    source, the lab's own patches to it, what it watches for, and the machine.

    A kernel that is not built yet is one of a kind.
    """
    source, patches, debug = _origin(job)
    known = set(known_names())
    own = [name for name in patches if Path(name).stem in known]
    machine = [f"{job.cpus} CPUs", f"{job.beside} beside each other"]
    return ", ".join((Path(source).name, *own, *debug, *machine, *job.parameters))


def _origin(job: Job) -> tuple[str, Sequence[str], Sequence[str]]:
    """The job's kernel's source, patches and what it watches for."""
    wanted = job.kernel
    if isinstance(wanted, Built):
        return wanted.source, [each.name for each in wanted.patches], wanted.debug
    kernel = _kernel(wanted)
    if kernel is None:
        return str(wanted), (), ()
    return kernel.source or kernel.release, kernel.patches, kernel.debug


def _kernel(wanted: Named | Image) -> Kernel | None:
    with suppress(LabError):
        if isinstance(wanted, Named):
            return find_built(wanted.name)
        return read_image(Path(wanted.image))
    return None


def weight_of(each: Case, durations: Seconds) -> float:
    """Seconds of a run that a case takes: beside others, unless it must be alone."""
    seconds = durations.get(each.name)
    if seconds is None:
        seconds = _UNKNOWN_MODEL * each.deadline_s if each.examples else _UNKNOWN_S
    return seconds if each.alone else seconds / WORKERS


def expected_s(job: Job, durations: Seconds) -> float:
    """How long a job will take, as far as that is known."""
    return START_S + sum(weight_of(each, durations) for each in job.chosen)
