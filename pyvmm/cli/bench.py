"""``pyvmm bench``: measure, compare, show."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyvmm.cli import arguments
from pyvmm.cli import main as status
from pyvmm.errors import ConfigurationError

if TYPE_CHECKING:
    from pyvmm.bench.comparison import Comparison
    from pyvmm.bench.result import BenchResult

_SECONDS = {"exits": 35.0, "conversions": 35.0, "lifecycle": 15.0, "all": 85.0}
_AB_SECONDS = 15.0
_THRESHOLD = 2.5
_WIDTH = 30


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="what exits and conversions cost",
        description="Measure what exits, conversions and a machine's life cost beside the same "
        "system calls from bare C, and compare results.",
    )
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    for name, text in (
        ("exits", "one exit, by who answers it"),
        ("conversions", "one conversion, and where its time goes"),
        ("lifecycle", "a machine's life, phase by phase"),
        ("all", "all of these"),
    ):
        _add_measuring(subjects.add_parser(name, help=text, description=f"Measure {text}."), name)
    _add_compare(subjects)
    _add_ab(subjects)


def _add_measuring(parser: argparse.ArgumentParser, name: str) -> None:
    _add_choosing(parser, _SECONDS[name])
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object")
    output.add_argument("--csv", action="store_true", help="a line of CSV for each case")
    output.add_argument("--list", action="store_true", help="show the names of the cases")
    parser.add_argument("--report", metavar="FILE", help="write a page with plots (HTML)")
    parser.set_defaults(func=measure)


def _add_choosing(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument("-k", metavar="WORD", default="", help="only cases with WORD in the name")
    parser.add_argument(
        "--seconds",
        type=arguments.positive,
        default=seconds,
        metavar="S",
        help=f"how long to measure ({seconds:g})",
    )
    parser.add_argument("--cpu", type=int, metavar="N", help="stay on CPU N (the last one)")


def _add_compare(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subjects.add_parser(
        "compare",
        help="compare two results",
        description="Compare two files that --json wrote. Exit status: 1 when a case got worse.",
    )
    parser.add_argument("a", metavar="A.json")
    parser.add_argument("b", metavar="B.json")
    _add_comparing(parser)
    parser.set_defaults(func=compare_files)


def _add_ab(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subjects.add_parser(
        "ab",
        help="measure two kernels or environments by turns and compare them",
        description="Measure A and B by turns and compare B with A: two kernels of the lab, or "
        "this host without and with a variable, or with one and another. Exit status: 1 when a "
        "case got worse.",
    )
    parser.add_argument("what", choices=tuple(_SECONDS), nargs="?", default="exits")
    sides = parser.add_mutually_exclusive_group(required=True)
    sides.add_argument("--kernel", action="append", metavar="NAME", help="A, and again for B")
    sides.add_argument(
        "--env", action="append", type=_variable, metavar="NAME=VALUE", help="B; or A, then B"
    )
    parser.add_argument(
        "--repeat",
        type=arguments.whole_number(1, 1000),
        default=5,
        metavar="N",
        help="runs of each side (5)",
    )
    _add_choosing(parser, _AB_SECONDS)
    _add_comparing(parser)
    parser.set_defaults(func=ab)


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _add_comparing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        type=arguments.positive,
        default=_THRESHOLD,
        metavar="PERCENT",
        help=f"smaller changes are none ({_THRESHOLD:g})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


# ---- measuring ----


def measure(options: argparse.Namespace) -> int:
    from pyvmm.bench.case import select
    from pyvmm.bench.measure import processes_for, run
    from pyvmm.bench.result import only, to_json
    from pyvmm.bench.subjects import benches
    from pyvmm.cli import bench_text

    chosen = select(benches(options.subject), options.k)
    if options.list:
        for case in (case for bench in chosen for case in bench.cases if options.k in case.name):
            print(f"{case.name:<38}{case.title}")
        return status.PASSED
    if options.report:
        _check_writable(options.report)
    with _Progress() as progress:
        result = run(
            chosen,
            options.seconds,
            cpu=options.cpu,
            processes=processes_for(options.seconds),
            progress=progress.show,
        )
    result = only(result, options.k)
    if options.json:
        print(json.dumps(to_json(result)))
    elif options.csv:
        bench_text.write_csv(result, sys.stdout)
    else:
        bench_text.show(result)
    if options.report:
        _write_report(result, options)
    if not result.cases:
        status.complain(result.skipped[0].reason)
        return status.SKIPPED
    return status.PASSED


def _check_writable(name: str) -> None:
    """Say so before anything is measured for it."""
    try:
        with open(name, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise _cannot_write(name, error) from None


def _write_report(result: BenchResult, options: argparse.Namespace) -> None:
    from pyvmm.bench.html import page

    sys.stdout.flush()  # the figures are there, whatever becomes of the page
    try:
        with open(options.report, "w", encoding="utf-8") as file:
            file.write(page(result, f"pyvmm bench {options.subject}"))
    except OSError as error:
        raise _cannot_write(options.report, error) from None


def _cannot_write(name: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"--report {name}", error.strerror or str(error), "name a file to write"
    )


class _Progress:
    """A bar with an estimate on stderr, for people who look on."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._start = time.monotonic()

    def show(self, name: str, share: float) -> None:
        if not self._live:
            return
        done = int(_WIDTH * share)
        spent = time.monotonic() - self._start
        left = f"{spent / share - spent:4.0f} s left" if share > 0.02 else ""
        bar = f"[{'#' * done}{'.' * (_WIDTH - done)}] {share:4.0%} {left} {name}"
        print(f"\r\x1b[K{bar[:79]}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# ---- comparing ----


def compare_files(options: argparse.Namespace) -> int:
    from pyvmm.bench.comparison import compare
    from pyvmm.bench.result import load

    a, b = load(options.a), load(options.b)
    comparison = compare(a, b, options.threshold / 100)
    if not comparison.changes:
        raise ConfigurationError(
            f"{options.a} and {options.b}",
            "they have no case in common",
            "measure the same subject",
        )
    return _show_comparison(comparison, options.json)


def ab(options: argparse.Namespace) -> int:
    from pyvmm.bench import ab as sides
    from pyvmm.bench.comparison import compare

    given = options.kernel or options.env
    if len(given) > 2 or (options.kernel and len(given) != 2):
        raise ConfigurationError(
            "bench ab", f"{len(given)} sides", "give --kernel twice, or --env once or twice"
        )
    # A and B are this process's own words again, so -k and --seconds mean the same there.
    words = ["--seconds", str(options.seconds), *(["-k", options.k] if options.k else [])]
    if options.cpu is not None:
        words += ["--cpu", str(options.cpu)]
    command = sides.command(options.what, words)
    with ExitStack() as stack:
        progress = stack.enter_context(_Progress())
        if options.kernel:
            labs = sides.lab_sides(options.kernel, command, options.seconds, status.complain)
            both = stack.enter_context(labs)
        else:
            environments = [dict([each]) for each in given]
            if len(environments) == 1:
                environments.insert(0, {})
            both = [sides.host_side(command, each, options.seconds) for each in environments]
        a, b = sides.alternate(both, options.repeat, progress.show)
    return _show_comparison(compare(a, b, options.threshold / 100), options.json)


def _show_comparison(comparison: Comparison, as_json: bool) -> int:
    from pyvmm.bench.comparison import to_json
    from pyvmm.cli.bench_text import show_comparison

    if as_json:
        print(json.dumps(to_json(comparison)))
    else:
        show_comparison(comparison)
    return status.FAILED if comparison.worse else status.PASSED
