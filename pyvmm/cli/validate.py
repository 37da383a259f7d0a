"""``pyvmm validate``: run the catalogue of cases and say what came out."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from contextlib import suppress
from typing import Any

from pyvmm.cli import main as status
from pyvmm.cli.interruption import Interrupted, Interruption
from pyvmm.cli.run_text import has_colour
from pyvmm.errors import ConfigurationError
from pyvmm.memory.backends import BACKENDS
from pyvmm.printable import printable
from pyvmm.validate.kit.case import Case
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results import baseline, ktap, lines, report
from pyvmm.validate.results.result import CaseResult, State

_COLOURS = {
    State.KNOWN: "33",
    State.PASS: "32",
    State.SKIP: "33",
    State.FAIL: "31",
    State.HANG: "31",
    State.CRASH: "31",
}
_WORKERS = 2
_MOST_FACTS = 4


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "validate",
        help="prove a kernel's private memory right or wrong",
        description="Run the catalogue of cases on this kernel. Exit status: 0 nothing failed, "
        "1 a case failed, hung or crashed (with --baseline: something got worse; with --strict: or "
        "a known bug was seen), 2 usage, 4 nothing could run.",
    )
    parser.add_argument(
        "-k",
        metavar="EXPR",
        default="",
        dest="expression",
        help="only cases whose id is, or whose name contains, a word; with and, or, not, ()",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="", help="only cases of one ABI")
    parser.add_argument(
        "-j",
        type=_workers,
        metavar="N",
        default=_WORKERS,
        dest="workers",
        help=f"run N cases beside each other ({_WORKERS})",
    )
    parser.add_argument(
        "--shuffle",
        type=_seed,
        metavar="SEED",
        nargs="?",
        const=-1,
        help="in random order; the seed is printed, and gives the same order again",
    )
    parser.add_argument(
        "--seed", type=_seed, metavar="SEED", help="for what is random; --shuffle SEED sets it too"
    )
    parser.add_argument(
        "--model-examples",
        type=_examples,
        metavar="N",
        help="let each MODEL case play N random scripts; their deadlines grow with it",
    )
    parser.add_argument(
        "--replay", metavar="FILE", help="play the script of a failed MODEL case, and nothing else"
    )
    parser.add_argument("--baseline", metavar="FILE", help="compare with what --json wrote earlier")
    parser.add_argument(
        "--strict", action="store_true", help="fail for bugs that upstream has fixed, too"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--ktap", action="store_true", help="KTAP version 1, line by line")
    output.add_argument("--json", action="store_true", help="one JSON object at the end")
    output.add_argument(
        "--json-lines", action="store_true", help="a JSON object per line, as it happens"
    )
    output.add_argument("--list", action="store_true", help="show the names of the cases")
    parser.set_defaults(func=validate, unblocks_signals=True)


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 256")
    return int(text)


def _examples(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 1000000")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 2^64 - 1")
    return int(text)


def _chosen_seed(options: argparse.Namespace) -> int:
    asked = {seed for seed in (options.seed, options.shuffle) if seed is not None and seed >= 0}
    if len(asked) > 1:
        raise ConfigurationError(
            f"--seed {options.seed} --shuffle {options.shuffle}", "a run has one seed"
        )
    return asked.pop() if asked else random.randrange(1 << 32)


def validate(options: argparse.Namespace) -> int:
    cases = _cases(options)
    if options.list:
        for each in cases:
            print(f"{each.name}  {each.title}")
        return status.PASSED
    if options.json_lines and options.baseline:
        raise ConfigurationError("--json-lines --baseline", "lines are not compared", "use --json")
    earlier = report.load(options.baseline) if options.baseline else None
    seed = _chosen_seed(options)
    with Interruption() as interruption:
        now, left_behind = _run(options, cases, seed, interruption)
    comparison = None
    if earlier is not None:
        comparison = baseline.compare(earlier.results, now.results)
    _show_end(options, now, earlier, comparison)
    number = interruption.number
    result = 128 + number if number is not None else _status(now, comparison, options.strict)
    if left_behind:
        # Python would wait at its end for a process that the kernel does not let go.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result)
    return result


def _status(now: report.Report, comparison: baseline.Comparison | None, strict: bool) -> int:
    if all(result.state is State.SKIP for result in now.results):
        return status.SKIPPED
    if strict and any(result.state is State.KNOWN for result in now.results):
        return status.FAILED
    if comparison is not None:
        return status.FAILED if comparison.worse else status.PASSED
    failed = any(result.state.bad for result in now.results)
    return status.FAILED if failed else status.PASSED


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.replay is not None:
        from pyvmm.validate.model.replay import replay_case

        if options.expression or options.backend or options.model_examples:
            raise ConfigurationError(
                f"--replay {options.replay}", "a script is run alone", "leave other choices out"
            )
        return [replay_case(options.replay)]
    from pyvmm.validate.run.catalogue import select

    chosen = select(options.expression, options.backend, options.model_examples or 0)
    if not options.list and any(each.examples for each in chosen):
        # Here, once: every worker is forked from this process, and it takes its time.
        with suppress(ImportError):
            import hypothesis.strategies  # noqa: F401
    return chosen


def _run(
    options: argparse.Namespace, cases: list[Case], seed: int, interruption: Interruption
) -> tuple[report.Report, bool]:
    """Run the cases and show each result as it comes; is a process left that does not end?"""
    from pyvmm.validate.run.calibration import races_here
    from pyvmm.validate.run.runner import Runner

    facts = report.machine_facts()
    start = time.monotonic()
    show = _Progress(options, cases, seed)
    runner = Runner(
        cases,
        workers=options.workers,
        seed=seed,
        shuffle=options.shuffle is not None,
        started=show.started,
    )
    results: list[CaseResult] = []
    coming = iter(runner)
    try:
        interruption.unblock()
        facts["races"] = races_here(cases, seed)
        show.begin(facts)
        for result in coming:
            results.append(result)
            show.result(len(results), result)
        interruption.hold()
    except Interrupted:
        interruption.hold()
    finally:
        runner.close()
    show.clear()
    if runner.not_run:
        _say_not_run([each.name for each in runner.not_run], len(cases))
    place = {each.name: at for at, each in enumerate(cases)}
    results.sort(key=lambda result: place[result.name])
    duration = time.monotonic() - start
    return report.Report(facts, seed, duration, tuple(results)), runner.left_behind


def _say_not_run(names: list[str], count: int) -> None:
    from pyvmm.validate.run.runner import PATIENCE_S

    print(
        f"pyvmm: validate: gave up after {PATIENCE_S:g} s in cases that failed: {len(names)} of "
        f"{count} did not run, from {names[0]} on; -k NAME runs those that it names",
        file=sys.stderr,
        flush=True,
    )


class _Progress:
    """What is printed while cases run: KTAP, JSON lines, or a line for each that did not pass."""

    def __init__(self, options: argparse.Namespace, cases: list[Case], seed: int) -> None:
        self.ktap = options.ktap
        self.lines = options.json_lines
        self.quiet = options.json
        self.names = [each.name for each in cases]
        self.seed = seed
        self.count = count = len(cases)
        self.done = 0
        self.colour = sys.stdout.isatty() and has_colour()
        # A line that is written over again is only for people who look on.
        self.live = sys.stderr.isatty() and not self.ktap
        if self.ktap:
            print("\n".join(ktap.heading(count)), flush=True)
            print(f"# seed {seed}", flush=True)
        elif not self.lines and not self.quiet:
            print(f"{count} cases, seed {seed}", flush=True)

    def begin(self, machine: dict[str, Any]) -> None:
        """What is known of the machine when the first case begins."""
        races = f"races: {printable(machine['races'])}"
        if self.lines:
            print(lines.first(machine, self.seed, self.names), flush=True)
        elif self.ktap and machine["races"]:
            print(f"# {races}", flush=True)
        elif machine["races"] and not self.quiet:
            print(races, flush=True)

    def started(self, each: Case) -> None:
        if self.lines:
            print(lines.started(each.name), flush=True)
        if self.live:
            line = f"{self.done}/{self.count} {each.name}"[:79]
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def result(self, number: int, result: CaseResult) -> None:
        self.done = number
        if self.ktap:
            print("\n".join(ktap.lines(number, result)), flush=True)
        elif self.lines:
            print(lines.ended(result), flush=True)
        elif not self.quiet and result.state.bad:
            self.clear()
            print(_line(result, self.colour), flush=True)

    def clear(self) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _show_end(
    options: argparse.Namespace,
    now: report.Report,
    earlier: report.Report | None,
    comparison: baseline.Comparison | None,
) -> None:
    compared: list[str] = []
    differing: list[str] = []
    if earlier is not None and comparison is not None:
        differing = list(report.differing_facts(earlier.machine, now.machine))
        compared = [*_machine_lines(differing), *baseline.summary(comparison)]
    if options.json:
        data = report.to_json(now)
        if comparison is not None:
            data["baseline"] = _compared_json(options.baseline, differing, comparison)
        print(json.dumps(data))
    elif options.json_lines:
        print(lines.last(now.duration_s))
    elif options.ktap:
        print("\n".join([f"# {_totals(now)}", *(f"# {printable(line)}" for line in compared)]))
    else:
        _show_table(now)
        for line in compared:
            print(printable(line))


def _machine_lines(differing: list[str]) -> list[str]:
    if not differing:
        return []
    told = differing[:_MOST_FACTS]
    if len(differing) > len(told):
        told.append(f"and {len(differing) - len(told)} more")
    return [f"the baseline is from another machine or kernel: {'; '.join(told)}"]


def _compared_json(
    path: str, differing: list[str], comparison: baseline.Comparison
) -> dict[str, Any]:
    return {
        "file": path,
        "machine_differs": differing,
        "changes": {
            change.value: [each.now.name for each in comparison.of(change)]
            for change in baseline.Change
            if change is not baseline.Change.SAME
        },
        "only_before": list(comparison.only_before),
        "only_now": list(comparison.only_now),
    }


def _show_known(now: report.Report, colour: bool) -> None:
    """Each bug that upstream has fixed, and the cases that saw it."""
    bugs: dict[KnownBug, list[CaseResult]] = {}
    for result in now.results:
        if result.bug is not None:
            bugs.setdefault(result.bug, []).append(result)
    for bug, results in bugs.items():
        print(f"known bug of this kernel, {bug}:")
        for result in results:
            print(f"  {_line(result, colour)}")


def _show_table(now: report.Report) -> None:
    """Known bugs, a line per subject, why cases were skipped, and the sum."""
    colour = sys.stdout.isatty() and has_colour()
    _show_known(now, colour)
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
    reasons: dict[str, int] = {}
    for result in now.results:
        if result.state is State.SKIP:
            reasons[result.message] = reasons.get(result.message, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"{count} skipped: {printable(reason)}")
    print(_totals(now))


def _totals(now: report.Report) -> str:
    counted = ", ".join(f"{count} {state}" for state, count in now.counts().items() if count)
    return f"{counted or 'nothing ran'} in {now.duration_s:.1f} s, seed {now.seed}"


def _line(result: CaseResult, colour: bool) -> str:
    state = f"{result.state:<6}"
    if colour:
        state = f"\x1b[{_COLOURS[result.state]}m{state}\x1b[0m"
    detail = f" ({result.detail})" if result.detail else ""
    return f"{state}{result.name}: {printable(result.message + detail)}"
