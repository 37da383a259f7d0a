"""``pyvmm validate``: run the catalogue of cases and say what came out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pyvmm.cli import arguments, validate_files
from pyvmm.cli import main as status
from pyvmm.cli.interruption import Interrupted, Interruption
from pyvmm.cli.validate_files import ResultFiles
from pyvmm.cli.validate_text import Compared, Json, JsonLines, Ktap, Output, Text
from pyvmm.errors import ConfigurationError
from pyvmm.memory.backends import BACKENDS
from pyvmm.validate.kit.case import Case
from pyvmm.validate.results import baseline, report
from pyvmm.validate.results.result import State
from pyvmm.validate.run.observer import Observer

_WORKERS = 2


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
        type=arguments.workers,
        metavar="N",
        default=_WORKERS,
        dest="workers",
        help=f"run N cases beside each other ({_WORKERS})",
    )
    _add_ways(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--ktap", action="store_true", help="KTAP version 1, line by line")
    output.add_argument("--json", action="store_true", help="one JSON object at the end")
    output.add_argument(
        "--json-lines", action="store_true", help="a JSON object per line, as it happens"
    )
    output.add_argument("--list", action="store_true", help="show the names of the cases")
    validate_files.add_arguments(parser)
    validate_files.add_build_argument(parser)
    parser.set_defaults(func=validate, unblocks_signals=True)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    """How the cases are run, and what their results are held against."""
    parser.add_argument(
        "--shuffle",
        type=arguments.seed,
        metavar="SEED",
        nargs="?",
        const=-1,
        help="in random order; the seed is printed, and gives the same order again",
    )
    parser.add_argument(
        "--seed",
        type=arguments.seed,
        metavar="SEED",
        help="for what is random; --shuffle SEED sets it too",
    )
    parser.add_argument(
        "--model-examples",
        type=arguments.model_examples,
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
    parser.add_argument(
        "--coverage",
        type=Path,
        metavar="DIR",
        help="keep what each case executes of KVM there, where the kernel counts it; implies -j 1",
    )


def _chosen_seed(options: argparse.Namespace) -> int | None:
    asked = {seed for seed in (options.seed, options.shuffle) if seed is not None and seed >= 0}
    if len(asked) > 1:
        raise ConfigurationError(
            f"--seed {options.seed} --shuffle {options.shuffle}",
            "a run has one seed",
            "leave one of them out",
        )
    return asked.pop() if asked else None


def validate(options: argparse.Namespace) -> int:
    with Interruption() as interruption:
        try:
            # A file may be a FIFO that nobody writes.
            interruption.unblock()
            return _validate(options, interruption)
        except Interrupted:
            return 128 + (interruption.number or 2)


def _validate(options: argparse.Namespace, interruption: Interruption) -> int:
    cases = _cases(options)
    if options.list:
        for each in cases:
            print(f"{each.name}  {each.title}")
        return status.PASSED
    _check_words(options)
    earlier = None if options.baseline is None else report.load(options.baseline)
    output = _output(options)
    validate_files.check_running_kernel(options)
    with ResultFiles(options, strict=options.strict) as files:
        interruption.hold()  # from here on there is a report, whenever a signal comes
        now = _run(options, cases, output, files, interruption)
        compared = None if earlier is None else _compare(options.baseline, earlier, now)
        try:
            files.write({"": now})
        finally:
            output.end(now, compared)
    number = interruption.number
    result = 128 + number if number is not None else _status(now, compared, options.strict)
    if now.left_behind:
        # Python would wait at its end for a process that the kernel does not let go.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result)
    return result


def _check_words(options: argparse.Namespace) -> None:
    """Say what is wrong with them before a file is opened, which empties it."""
    _chosen_seed(options)
    if options.json_lines and options.baseline is not None:
        raise ConfigurationError("--json-lines --baseline", "lines are not compared", "use --json")
    if options.coverage is not None and not options.coverage.is_dir():
        cause = "there is no such folder"
        raise ConfigurationError(f"--coverage {options.coverage}", cause, "make it first")


def _output(options: argparse.Namespace) -> Output:
    if options.ktap:
        return Ktap()
    if options.json_lines:
        return JsonLines()
    return Json() if options.json else Text()


def _run(
    options: argparse.Namespace,
    cases: list[Case],
    output: Output,
    files: ResultFiles,
    interruption: Interruption,
) -> report.Report:
    from pyvmm.validate.run.session import Session

    session = Session(
        cases,
        files.watch(_observer(options, output)),
        workers=1 if options.coverage else options.workers,
        seed=_chosen_seed(options),
        shuffle=options.shuffle is not None,
    )
    try:
        interruption.raises()
        session.run()
        interruption.hold()
    except Interrupted:
        interruption.hold()
    output.clear()
    now = session.report()
    if now.not_run:
        _say_not_run(now.not_run, len(cases))
    if not interruption.name:
        return now
    ended = {each.name for each in now.results}
    left = tuple(each.name for each in cases if each.name not in ended)
    return replace(now, not_run=left, why_not_run=f"{interruption.name} ended the run")


def _observer(options: argparse.Namespace, output: Output) -> Observer:
    """Who is told of the run: the output, and what was asked for besides."""
    from pyvmm.validate.run.marks import KERNEL_LOG, Marking

    observer: Observer = output
    if folder := options.coverage:
        from pyvmm.validate.run.counters import Counting

        observer = Counting(observer, folder)
    log = os.environ.get(KERNEL_LOG)
    return Marking(observer, log) if log else observer


def _say_not_run(names: Sequence[str], count: int) -> None:
    from pyvmm.validate.run.runner import PATIENCE_S

    print(
        f"pyvmm: validate: gave up after {PATIENCE_S:g} s in cases that failed: {len(names)} of "
        f"{count} did not run, from {names[0]} on; -k NAME runs those that it names",
        file=sys.stderr,
        flush=True,
    )


def _compare(file: str, earlier: report.Report, now: report.Report) -> Compared:
    differing = report.differing_facts(earlier.machine, now.machine)
    return Compared(file, tuple(differing), baseline.compare(earlier.results, now.results))


def _status(now: report.Report, compared: Compared | None, strict: bool) -> int:
    if all(result.state is State.SKIP for result in now.results):
        return status.SKIPPED
    if strict and any(result.state is State.KNOWN for result in now.results):
        return status.FAILED
    if compared is not None:
        return status.FAILED if compared.comparison.worse else status.PASSED
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

    return select(options.expression, options.backend, options.model_examples or 0)
