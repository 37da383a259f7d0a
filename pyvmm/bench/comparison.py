"""Two results side by side: what got better, what got worse, what cannot be told.

What is compared are ratios to the floor, never times: both sides of a ratio were
measured by turns on the same machine. The change of a case is the one ratio divided by
the other. Its interval follows from both ratios' intervals, as for independent errors of
their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pyvmm.bench.result import BenchResult, CaseResult
from pyvmm.bench.statistics import Interval, bootstrap_of_median, median

SCHEMA = 1

THRESHOLD = 0.025
# Facts that change by themselves say nothing about whether two results can be compared.
_PASSING = ("load_before", "load_after", "steal_percent", "other_work_percent", "pinned_to")


class Verdict(StrEnum):
    """What became of a case."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Change:
    """One case in both results. ``factor`` is 1.05 when B's ratio is 5 % above A's."""

    name: str
    verdict: Verdict
    factor: float
    interval: Interval
    before: float
    now: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cases of both; ``only_a`` and ``only_b`` were measured on one side only."""

    changes: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    differing: tuple[str, ...]

    @property
    def worse(self) -> bool:
        return any(change.verdict is Verdict.WORSE for change in self.changes)


def compare(a: BenchResult, b: BenchResult, threshold: float = THRESHOLD) -> Comparison:
    """Compare ``b`` with ``a``.

    A case is worse or better when 1 lies outside the interval of the change and the change
    is beyond ``threshold``; the same when it is not, and the interval leaves no room for a
    change of twice the threshold. Otherwise nobody can tell.
    """
    before, now = a.by_name(), b.by_name()
    return Comparison(
        tuple(_change(case, now[name], threshold) for name, case in before.items() if name in now),
        tuple(name for name in before if name not in now),
        tuple(name for name in now if name not in before),
        tuple(_differing(a.host, b.host)),
    )


def _change(a: CaseResult, b: CaseResult, threshold: float) -> Change:
    factor = b.ratio / a.ratio
    # The two ends may lie at different distances from the ratio.
    down = math.hypot(math.log(b.ratio / b.ci[0]), math.log(a.ci[1] / a.ratio))
    up = math.hypot(math.log(b.ci[1] / b.ratio), math.log(a.ratio / a.ci[0]))
    interval = Interval(factor * math.exp(-down), factor * math.exp(up))
    return Change(a.name, _verdict(factor, interval, threshold), factor, interval, a.ratio, b.ratio)


def _verdict(factor: float, interval: Interval, threshold: float) -> Verdict:
    if interval.low > 1 and factor > 1 + threshold:
        return Verdict.WORSE
    if interval.high < 1 and factor < 1 / (1 + threshold):
        return Verdict.BETTER
    room = 1 + 2 * threshold
    if interval.low > 1 / room and interval.high < room:
        return Verdict.SAME
    return Verdict.CANNOT_TELL


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(a.keys() & b.keys() - set(_PASSING)):
        if a[name] != b[name]:
            yield f"{name}: {_short(a[name])} and {_short(b[name])}"
    for side, more in (("A", a.keys() - b.keys()), ("B", b.keys() - a.keys())):
        if more:
            yield f"only {side} tells {', '.join(sorted(more))}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def merge(results: Sequence[BenchResult]) -> BenchResult:
    """Several runs of the same thing as one: the median of their ratios, and its interval."""
    first = results[0]
    cases = []
    for name in first.by_name():
        runs = [each.by_name()[name] for each in results if name in each.by_name()]
        ratios = [run.ratio for run in runs]
        one = runs[0]
        # Few runs say little of their own spread: no narrower than a typical run's own.
        half = median([math.log(run.ci[1] / run.ci[0]) / 2 for run in runs]) / math.sqrt(len(runs))
        ratio, spread = median(ratios), bootstrap_of_median(ratios)
        cases.append(
            CaseResult(
                name=name,
                floor_ns=median([run.floor_ns for run in runs]),
                ns=median([run.ns for run in runs]),
                ratio=ratio,
                ci=(
                    min(spread.low, ratio * math.exp(-half)),
                    max(spread.high, ratio * math.exp(half)),
                ),
                percentiles=one.percentiles,
                split=one.split,
                title=one.title,
                samples=sum(run.samples for run in runs),
            )
        )
    return BenchResult(first.host, tuple(cases), first.skipped, first.warnings)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The object of ``compare --json``."""
    return {
        "schema": SCHEMA,
        "changes": [
            {**asdict(change), "verdict": change.verdict.value, "interval": list(change.interval)}
            for change in comparison.changes
        ],
        "only_a": list(comparison.only_a),
        "only_b": list(comparison.only_b),
        "host_differs": list(comparison.differing),
    }
