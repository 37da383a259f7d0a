"""The selftests of a series in what --junit and --kcidb write: how each ended before and after it.

They are in the reports of the kernels that they ran on, beside the catalogue's cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pyvmm.lab.selftests import DOES_NOT_BUILD, NOT_THERE, SelftestResult
from pyvmm.validate.kernels.series_selftests import Pair
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult, State

_SUBJECT = "selftests"
_STATES = {
    "passed": State.PASS,
    "skipped": State.SKIP,
    NOT_THERE: State.SKIP,
    "failed": State.FAIL,
    DOES_NOT_BUILD: State.FAIL,
}


def with_selftests(
    reports: Mapping[str, Report], pairs: Sequence[Pair], first: str, last: str, seed: int
) -> dict[str, Report]:
    """The reports; those of these names, of the first and the last kernel, have selftests, too.

    Where the catalogue ran with varied parameters the selftests, which did not, have a report of
    their own: the kernel's name without any.
    """
    found = dict(reports)
    for name, results in zip((first, last), zip(*pairs, strict=True), strict=False):
        report = found.get(name) or _beside(reports, name, seed)
        seconds = sum(result.seconds for result in results)
        found[name] = replace(
            report,
            results=(*report.results, *map(_as_case, results)),
            duration_s=report.duration_s + seconds,
        )
    return found


def _beside(reports: Mapping[str, Report], name: str, seed: int) -> Report:
    """A report without results, of the same kernel as others that varied its parameters."""
    others: Iterable[Report] = (
        report for other, report in reports.items() if other.startswith(f"{name} ")
    )
    machine = next((report.machine for report in others if report.machine), {})
    known = {key: value for key, value in machine.items() if key != "parameters"}
    return Report(known, seed, 0.0, ())


def _as_case(result: SelftestResult) -> CaseResult:
    name, *words = result.command
    given = f"[{' '.join(words)}]" if words else ""
    message = result.said
    if result.outcome in (DOES_NOT_BUILD, NOT_THERE) or not message:
        message = f"{result.outcome}: {message}".removesuffix(": ")
    return CaseResult(
        f"selftest.{name}{given}",
        "selftest",
        f"the kernel's own {name} of tools/testing/selftests/kvm",
        _SUBJECT,
        _STATES[result.outcome],
        "" if result.outcome == "passed" else message,
        duration_s=result.seconds,
    )
