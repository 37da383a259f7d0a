"""Runs in labs as reports, for whoever reads those of `pyvmm validate`.

One case more is in each: the kernel itself, which fails for a splat in its log, and crashes where
it died. It did not run where nothing began on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.kernels.two_kernels import Variant
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult, State

KERNEL = "kernel"


def report_of(runs: Sequence[LabRun]) -> Report:
    """One kernel's runs, the first of which has all cases. Of what ran more than once counts what
    came more often."""
    first = runs[0]
    by_name: dict[str, list[CaseResult]] = {}
    for run in runs:
        for result in run.results:
            by_name.setdefault(result.name, []).append(result)
    kernel = _kernel(runs)
    has_run = kernel.state.bad or any(run.machine or run.results for run in runs)
    not_run = [name for name in first.planned if name not in by_name]
    return Report(
        first.machine,
        first.seed,
        sum(run.duration_s for run in runs),
        (*map(_usual, by_name.values()), *([kernel] if has_run else [])),
        tuple(not_run if has_run else [*not_run, KERNEL]),
        why_not_run=first.problem,
    )


def _usual(results: Sequence[CaseResult]) -> CaseResult:
    wrong = [each for each in results if each.state.wrong]
    right = [each for each in results if not each.state.wrong]
    return wrong[0] if len(wrong) > len(right) else right[0]


def _kernel(runs: Sequence[LabRun]) -> CaseResult:
    splats = list({each.splat.kind: each.splat for run in runs for each in run.trouble}.values())
    problem = next((run.problem for run in runs if run.problem and not run.out_of_time), "")
    state = State.CRASH if problem else State.FAIL if splats else State.PASS
    message = "; ".join(filter(None, [problem, *(each.title for each in splats)]))
    detail = "\n".join(line for each in splats for line in each.lines)
    title = "the kernel lives, and its log has no splat"
    return CaseResult(KERNEL, KERNEL, title, KERNEL, state, message, detail)


def reports_of(variants: Iterable[Variant], before: str, now: str) -> dict[str, Report]:
    """Both kernels' reports by these names, with the parameters that were varied."""
    return {
        " ".join((when, *variant.parameters)): report_of(runs)
        for variant in variants
        for when, runs in ((before, variant.before), (now, variant.now))
        if when
    }
