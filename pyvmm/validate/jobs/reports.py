"""What came of jobs, as reports: jobs that differ in their cases alone are one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from pyvmm.errors import PyvmmError
from pyvmm.lab.errors import KernelFailed
from pyvmm.validate.jobs.cut import put_together
from pyvmm.validate.jobs.job import Built, Job
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.jobs.workers import Outcome
from pyvmm.validate.kernels.lab_report import report_of
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.results.report import Report


def reports_of(outcomes: Mapping[Job, Outcome]) -> dict[str, Report]:
    """The reports by names that tell them apart, "" if there is only one.

    The cases of a job that could not run are among those that did not run.
    """
    wholes: dict[tuple[object, ...], dict[str, LabRun]] = {}
    kernels: dict[tuple[object, ...], str] = {}
    for job, outcome in outcomes.items():
        work = tuple(getattr(job, each.name) for each in fields(job) if each.name != "cases")
        run = outcome.run if isinstance(outcome, JobResult) else _nothing(job, outcome)
        wholes.setdefault(work, {})[job.name] = run
        kernels[work] = _called(job)
    reports = {}
    for number, (work, runs) in enumerate(wholes.items(), 1):
        name = f"{number}-{kernels[work]}" if len(wholes) > 1 else ""
        reports[name] = report_of([put_together(list(runs.values()))])
    return reports


def _nothing(job: Job, why: PyvmmError) -> LabRun:
    """What came of a job that could not run; only of KernelFailed is the kernel to blame."""
    is_ours = not isinstance(why, KernelFailed)
    return LabRun(job.cases, (), job.seed, 0.0, problem=str(why), out_of_time=is_ours)


def _called(job: Job) -> str:
    """What its kernel is called, for people."""
    if isinstance(job.kernel, Built):
        return "-".join((job.kernel.source, *(each.name for each in job.kernel.patches)))
    return getattr(job.kernel, "name", "") or getattr(job.kernel, "image", "")
