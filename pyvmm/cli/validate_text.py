"""What ``pyvmm validate`` prints, while cases run and at the end: one class for each format."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyvmm.cli.run_text import has_colour
from pyvmm.printable import counted, printable
from pyvmm.validate.kit.case import Case
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results import baseline, ktap, lines, report
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.observer import Observer

_COLOURS = {
    State.KNOWN: "33",
    State.PASS: "32",
    State.SKIP: "33",
    State.FAIL: "31",
    State.HANG: "31",
    State.CRASH: "31",
}
_MOST_FACTS = 4


@dataclass(frozen=True, slots=True)
class Compared:
    """A run beside the baseline in ``file``; ``machine_differs`` tells the machines apart."""

    file: str
    machine_differs: tuple[str, ...]
    comparison: baseline.Comparison

    def summary(self) -> list[str]:
        return [*_machine_lines(self.machine_differs), *baseline.summary(self.comparison)]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "machine_differs": list(self.machine_differs),
            "changes": {
                change.value: [each.now.name for each in self.comparison.of(change)]
                for change in baseline.Change
                if change is not baseline.Change.SAME
            },
            "only_before": list(self.comparison.only_before),
            "only_now": list(self.comparison.only_now),
        }


class Output(Observer):
    """A format. On a terminal, the case that began last stands on stderr until the next comes."""

    def __init__(self) -> None:
        # A line that is written over again is only for people who look on.
        self._live = sys.stderr.isatty()
        self._count = self._done = 0

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        self._count = len(cases)

    def started(self, each: Case) -> None:
        if self._live:
            line = f"{self._done}/{self._count} {each.name}"[:79]
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def ended(self, number: int, result: CaseResult) -> None:
        self._done = number

    def clear(self) -> None:
        """Take the line on stderr away."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self, now: Report, compared: Compared | None) -> None:
        """The run is over."""
        raise NotImplementedError


class Json(Output):
    """One object at the end."""

    def end(self, now: Report, compared: Compared | None) -> None:
        data = report.to_json(now)
        if compared is not None:
            data["baseline"] = compared.to_json()
        print(json.dumps(data))


class JsonLines(Output):
    """An object per line, as it happens."""

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        super().begins(cases, seed)
        self._names = [each.name for each in cases]
        self._seed = seed

    def knows(self, machine: dict[str, Any]) -> None:
        print(lines.first(machine, self._seed, self._names), flush=True)

    def started(self, each: Case) -> None:
        print(lines.started(each.name), flush=True)
        super().started(each)

    def ended(self, number: int, result: CaseResult) -> None:
        super().ended(number, result)
        print(lines.ended(result), flush=True)

    def end(self, now: Report, compared: Compared | None) -> None:
        print(lines.last(now.duration_s))


class Ktap(Output):
    """KTAP, line by line; what KTAP has no place for is a comment."""

    def __init__(self) -> None:
        super().__init__()
        self._live = False

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        super().begins(cases, seed)
        print("\n".join(ktap.heading(len(cases))), flush=True)
        print(f"# seed {seed}", flush=True)

    def knows(self, machine: dict[str, Any]) -> None:
        if machine["races"]:
            print(f"# races: {printable(machine['races'])}", flush=True)

    def ended(self, number: int, result: CaseResult) -> None:
        super().ended(number, result)
        print("\n".join(ktap.lines(number, result)), flush=True)

    def end(self, now: Report, compared: Compared | None) -> None:
        summary = compared.summary() if compared else []
        told = [_totals(now), *(printable(line) for line in summary)]
        print("\n".join(f"# {line}" for line in told))


class Text(Output):
    """For people: a line for each case that is bad, as it comes, and a table at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._colour = sys.stdout.isatty() and has_colour()

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        super().begins(cases, seed)
        print(f"{counted(len(cases), 'case')}, seed {seed}", flush=True)

    def knows(self, machine: dict[str, Any]) -> None:
        if machine["races"]:
            print(f"races: {printable(machine['races'])}", flush=True)

    def ended(self, number: int, result: CaseResult) -> None:
        super().ended(number, result)
        if result.state.bad:
            self.clear()
            print(_line(result, self._colour), flush=True)

    def end(self, now: Report, compared: Compared | None) -> None:
        _show_known(now, self._colour)
        _show_subjects(now, self._colour)
        _show_skips(now)
        print(_totals(now))
        for line in compared.summary() if compared else ():
            print(printable(line))


def _machine_lines(differing: Sequence[str]) -> list[str]:
    if not differing:
        return []
    told = list(differing[:_MOST_FACTS])
    if len(differing) > len(told):
        told.append(f"and {len(differing) - len(told)} more")
    return [f"the baseline is from another machine or kernel: {'; '.join(told)}"]


def _show_known(now: Report, colour: bool) -> None:
    """Each bug that upstream has fixed, and the cases that saw it."""
    bugs: dict[KnownBug, list[CaseResult]] = {}
    for result in now.results:
        if result.bug is not None:
            bugs.setdefault(result.bug, []).append(result)
    for bug, results in bugs.items():
        print(f"known bug of this kernel, {bug}:")
        for result in results:
            print(f"  {_line(result, colour)}")


def _show_subjects(now: Report, colour: bool) -> None:
    """A line per subject."""
    subjects: dict[str, list[CaseResult]] = {}
    for result in now.results:
        subjects.setdefault(result.subject, []).append(result)
    print(f"{'subject':<24}{'known':>6}{'pass':>6}{'fail':>6}{'skip':>6}{'seconds':>10}")
    for subject, results in subjects.items():
        known, passed, skipped = (
            sum(result.state is state for result in results)
            for state in (State.KNOWN, State.PASS, State.SKIP)
        )
        failed = sum(result.state.bad for result in results)
        seconds = sum(result.duration_s for result in results)
        line = f"{subject:<24}{known:>6}{passed:>6}{failed:>6}{skipped:>6}{seconds:>10.1f}"
        print(f"\x1b[31m{line}\x1b[0m" if colour and failed else line)


def _show_skips(now: Report) -> None:
    """Why cases were skipped, and how many."""
    reasons: dict[str, int] = {}
    for result in now.results:
        if result.state is State.SKIP:
            reasons[result.message] = reasons.get(result.message, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"{count} skipped: {printable(reason)}")


def _totals(now: Report) -> str:
    counted = ", ".join(f"{count} {state}" for state, count in now.counts().items() if count)
    return f"{counted or 'nothing ran'} in {now.duration_s:.1f} s, seed {now.seed}"


def _line(result: CaseResult, colour: bool) -> str:
    state = f"{result.state:<6}"
    if colour:
        state = f"\x1b[{_COLOURS[result.state]}m{state}\x1b[0m"
    detail = f" ({result.detail})" if result.detail else ""
    return f"{state}{result.name}: {printable(result.message + detail)}"
