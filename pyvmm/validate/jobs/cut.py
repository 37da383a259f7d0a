"""Cuts cases into jobs that take about the same time, and puts what came of them together."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pyvmm.validate.jobs.durations import weight_of
from pyvmm.validate.jobs.job import Job
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.kit.case import Case
from pyvmm.validate.run.catalogue import all_cases

#: A boot costs some seconds, and what is lost with a job is no more than this.
JOB_S = 60.0


def cut(
    cases: Sequence[Case], durations: Mapping[str, float], job_s: float = JOB_S, least: int = 1
) -> list[tuple[str, ...]]:
    """The names of the cases in parts of about ``job_s``, at least so many, the longest first.

    The longest cases are given out first, each to the part that has least so far.
    """
    weights = {each.name: weight_of(each, durations) for each in cases}
    count = max(1, min(len(cases), max(least, round(sum(weights.values()) / job_s))))
    parts: list[list[str]] = [[] for _ in range(count)]
    heap = [(0.0, number) for number in range(count)]
    for name in sorted(weights, key=lambda name: -weights[name]):
        weight, number = heapq.heappop(heap)
        parts[number].append(name)
        heapq.heappush(heap, (weight + weights[name], number))
    place = {name: at for at, name in enumerate(weights)}
    order = [number for _, number in sorted(heap, reverse=True)]
    return [tuple(sorted(parts[number], key=place.__getitem__)) for number in order]


def cut_job(whole: Job, durations: Mapping[str, float], job_s: float, least: int = 1) -> list[Job]:
    """A job in parts."""
    parts = cut(whole.chosen, durations, job_s, least)
    return [replace(whole, cases=part) for part in parts]


def put_together(runs: Sequence[LabRun]) -> LabRun:
    """One run of what came of the parts, in the catalogue's order.

    It took as long as all of them one after the other. Where one part is out of time and the kernel
    died in another, the kernel's death is what is said.
    """
    place = {each.name: at for at, each in enumerate(all_cases())}
    races = next((run.machine["races"] for run in runs if run.machine.get("races")), "")
    machine = next((run.machine for run in runs if run.machine), {})
    broken = sorted((run for run in runs if run.problem), key=lambda run: run.out_of_time)
    return LabRun(
        tuple(sorted((name for run in runs for name in run.planned), key=place.__getitem__)),
        tuple(
            sorted(
                (result for run in runs for result in run.results),
                key=lambda result: place[result.name],
            )
        ),
        runs[0].seed,
        sum(run.duration_s for run in runs),
        {**machine, "races": races} if machine else {},
        tuple(trouble for run in runs for trouble in run.trouble),
        broken[0].problem if broken else "",
        bool(broken) and broken[0].out_of_time,
        tuple(line for run in runs for line in run.kernel_log),
    )
