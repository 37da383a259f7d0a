"""Results and comparisons of ``pyvmm bench`` as text for people, and as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from pyvmm.bench.comparison import Comparison, Verdict
from pyvmm.bench.result import PERCENTILES, BenchResult, CaseResult, doubts, reasons
from pyvmm.cli.run_text import has_colour
from pyvmm.printable import printable

_COLOURS = {Verdict.BETTER: "32", Verdict.WORSE: "31", Verdict.CANNOT_TELL: "33"}


def show(result: BenchResult) -> None:
    """The tables, where the time went, and what is not to be believed."""
    is_more = False
    for title, lines in (
        ("", _table(result.cases)),
        ("Beside the floor: the same system calls from bare C", _floors(result.cases)),
        ("Where the time goes (us)", _splits(result.cases)),
        ("Not measured here", _skipped(result)),
        ("Not to be believed", doubts(result)),
    ):
        some = list(lines)
        if some and title:
            print(f"\n{title}" if is_more else title)
        is_more = is_more or bool(some)
        for line in some:
            print(printable(line))


def _table(cases: Sequence[CaseResult]) -> Iterator[str]:
    """The columns of `perf kvm stat`, and percentiles."""
    if not cases:
        return
    samples = sum(case.samples for case in cases) or 1
    total = sum(case.samples * case.mean_ns for case in cases) or 1.0
    yield (
        f"{'VM-EXIT':<38}{'Samples':>9}{'Samples%':>10}{'Time%':>9}{'Min':>11}{'Max':>13}"
        f"{'Avg':>12}{'p50':>11}{'p90':>11}{'p99':>12}{'p99.9':>13}"
    )
    for case in cases:
        values = {name: _us(value) for name, value in case.percentiles.items()}
        yield (
            f"{case.name:<38}{case.samples:>9}{case.samples / samples:>10.2%}"
            f"{case.samples * case.mean_ns / total:>9.2%}"
            f"{values.get('min', ''):>11}{values.get('max', ''):>13}{_us(case.mean_ns):>12}"
            f"{values.get('p50', ''):>11}{values.get('p90', ''):>11}{values.get('p99', ''):>12}"
            f"{values.get('p999', ''):>13}"
        )


def _us(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:.2f}us"


def _floors(cases: Sequence[CaseResult]) -> Iterator[str]:
    if not cases:
        return
    yield (
        f"{'case':<38}{'floor ns':>12}{'ns':>12}{'more ns':>11}{'ratio':>9}"
        f"  {'99 % interval':<19}promise"
    )
    for case in cases:
        promise = f"{case.promise}: {case.verdict}" if case.promise else ""
        if case.kept is False:
            promise = promise.replace("not kept", "NOT KEPT")
        yield (
            f"{case.name:<38}{case.floor_ns:>12,.0f}{case.ns:>12,.0f}"
            f"{case.more_ns:>+11,.0f}{case.ratio:>9.4f}"
            f"  {f'{case.ci[0]:.4f} to {case.ci[1]:.4f}':<19}{promise}"
        ).rstrip()


def _splits(cases: Sequence[CaseResult]) -> Iterator[str]:
    names = list(dict.fromkeys(name for case in cases for name in case.split))
    if not names:
        return
    columns = [*names, "sum", "whole", "sum/whole"]
    yield f"{'case':<38}" + "".join(f"{name:>13}" for name in columns)
    for case in cases:
        if case.split:
            parts = [
                f"{case.split[name] / 1000:>13.2f}" if name in case.split else f"{'':>13}"
                for name in names
            ]
            total = sum(case.split.values())
            whole = f"{total / 1000:>13.2f}{case.ns / 1000:>13.2f}{total / case.ns:>13.1%}"
            yield f"{case.name:<38}" + "".join(parts) + whole


def _skipped(result: BenchResult) -> Iterator[str]:
    """A reason in one line, however many cases it stops."""
    for reason, names in reasons(result.skipped).items():
        yield f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"


def write_csv(result: BenchResult, out: TextIO) -> None:
    """A line for each case; the parts of a split as columns of their own."""
    parts = list(dict.fromkeys(name for case in result.cases for name in case.split))
    names = ["name", "floor_ns", "ns", "ratio", "ci_low", "ci_high", "samples", "mean_ns"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *PERCENTILES, *(f"split_{part}" for part in parts)])
    for case in result.cases:
        fields = [case.name, case.floor_ns, case.ns, case.ratio, *case.ci]
        writer.writerow(
            [
                *fields,
                case.samples,
                case.mean_ns,
                *(case.percentiles.get(name, "") for name in PERCENTILES),
                *(case.split.get(part, "") for part in parts),
            ]
        )


def show_comparison(comparison: Comparison) -> None:
    colour = sys.stdout.isatty() and has_colour()
    print(f"{'case':<38}{'A':>9}{'B':>9}{'change':>9}  {'99 % interval':<19}verdict")
    for change in comparison.changes:
        low, high = change.interval
        verdict = change.verdict.value
        if colour and change.verdict in _COLOURS:
            verdict = f"\x1b[{_COLOURS[change.verdict]}m{verdict}\x1b[0m"
        print(
            f"{printable(change.name):<38}{change.before:>9.4f}{change.now:>9.4f}"
            f"{change.factor - 1:>+9.2%}  {f'{low - 1:+.2%} to {high - 1:+.2%}':<19}{verdict}"
        )
    for side, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        if names:
            print(f"only in {side}: {printable(', '.join(names))}")
    for line in comparison.differing:
        print(f"the machines differ: {printable(line)}")
    counted = [
        f"{sum(change.verdict is verdict for change in comparison.changes)} {verdict.value}"
        for verdict in Verdict
    ]
    print(", ".join(counted))
