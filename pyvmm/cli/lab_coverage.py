"""`--coverage` of `pyvmm lab check` and `run`: what of KVM was executed, and what not."""

from __future__ import annotations

import shutil
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli.lab_command import build_progress, live_line, say
from pyvmm.printable import counted

if TYPE_CHECKING:
    from pyvmm.lab.build import Recipe
    from pyvmm.lab.coverage import Coverage
    from pyvmm.lab.lab import Lab
    from pyvmm.validate.kernels.changed_code import CoveredLine
    from pyvmm.validate.kernels.lab_run import LabMachine

#: So many lines of a report are about coverage, and so wide; check.txt has all.
_MOST_LINES, _WIDTH = 12, 78


#: What `lab run --coverage` leaves in its results folder.
FIGURES, TRACEFILE = "coverage.txt", "coverage.info"


def add_arguments(parser: ArgumentParser, what: str) -> None:
    group = parser.add_argument_group("what was executed of KVM")
    group.add_argument("--coverage", action="store_true", help=what)
    group.add_argument(
        "--coverage-of",
        action="append",
        default=[],
        metavar="FILE|FUNCTION",
        help="and say it of a file (guest_memfd.c) or a function as a whole",
    )


def is_wanted(options: Namespace) -> bool:
    return bool(options.coverage or options.coverage_of)


def counting_kernel(name: str) -> str:
    """The name of a kernel as ``name`` that counts, built first if it has to be."""
    from pyvmm.lab.build import build, check_known, known_recipe
    from pyvmm.lab.kernels import find_built, read_image
    from pyvmm.validate.kernels.coverage_run import check_counts

    check_known(name)
    recipe = known_recipe(name) if "/" not in name else None
    kernel = find_built(name) if "/" not in name else None
    if kernel is None and recipe is None:
        kernel = read_image(Path(name))
    if kernel is not None and kernel.counts:
        return name
    if recipe is None and kernel is not None:
        check_counts(kernel)
    assert recipe is not None
    with build_progress() as progress:
        return build(replace(recipe, coverage=True), None, say, progress).name


def reset(lab: Lab) -> None:
    from pyvmm.validate.kernels.coverage_run import reset_counters

    reset_counters(lab)


def executed(lab: Lab) -> Coverage:
    from pyvmm.validate.kernels.coverage_run import executed_in

    return executed_in(lab)


def tell(options: Namespace, total: Coverage) -> None:
    """Say what a command executed; all of it into the results folder, if there is one."""
    from pyvmm.validate.kernels.coverage_report import figures, lcov

    executed = sum(each.executed for each in total.values())
    lines = list(figures({name: each for name, each in total.items() if each.executed}))
    say(f"{executed} of {sum(len(each.counts) for each in total.values())} lines of KVM executed")
    if options.results:
        (options.results / FIGURES).write_text("\n".join([*lines, ""]), encoding="utf-8")
        (options.results / TRACEFILE).write_text(lcov(total), encoding="utf-8")
    if options.coverage_of:
        lines = [line for name in options.coverage_of for line in _of(name, total)]
    for line in lines:
        print(line, file=sys.stderr)


def measure(
    options: Namespace,
    recipe: Recipe,
    machine: LabMachine,
    folder: Path,
    seed: int | None,
) -> tuple[list[str], dict[str, Any]]:
    """Build the kernel of ``recipe`` so that it counts, and run the catalogue on it.

    Gives lines for people and an object for programs, and leaves coverage.html and coverage.info
    in ``folder``. What else is known of the patches is not lost where it cannot be measured: that
    is told, and ``is_missing``.
    """
    from pyvmm.lab.errors import LabError, LabUsageError

    try:
        return _measure(options, recipe, machine, folder, seed)
    except LabUsageError:
        raise
    except LabError as error:
        told = f"not measured: {error}"
        return [f"coverage: {told}"], {
            "cases": 0,
            "problem": told,
            "changed_lines": [],
            "files": {},
        }


def shown(told: Sequence[str]) -> list[str]:
    """The first lines of what is told, no wider than a mail."""
    lines = [
        line
        for each in told
        for line in textwrap.wrap(each, _WIDTH, subsequent_indent="      ", break_on_hyphens=False)
    ]
    if len(lines) <= _MOST_LINES:
        return lines
    left = counted(len(lines) - _MOST_LINES + 1, "line")
    return [*lines[: _MOST_LINES - 1], f"... and {left} more in check.txt"]


def is_missing(coverage: dict[str, Any] | None) -> bool:
    """Whether it was asked for and could not be measured."""
    return coverage is not None and not coverage["cases"]


def _measure(
    options: Namespace,
    recipe: Recipe,
    machine: LabMachine,
    folder: Path,
    seed: int | None,
) -> tuple[list[str], dict[str, Any]]:
    from pyvmm.lab.build import build, placed_patches
    from pyvmm.lab.diffs import added_lines
    from pyvmm.validate.kernels import coverage_report
    from pyvmm.validate.kernels.coverage_run import run_with_coverage

    with build_progress() as progress:
        kernel = build(replace(recipe, coverage=True), None, say, progress)
    wanted = added_lines(placed_patches(recipe, say))
    say(f"the catalogue on {kernel.name}, which counts, case by case")
    words = [] if seed is None else ["--seed", str(seed)]
    if options.model_examples:
        words += ["--model-examples", str(options.model_examples)]
    if options.expression:
        words += ["-k", options.expression]
    with live_line() as show:
        run = run_with_coverage(
            kernel, machine, words, folder / "coverage", say, show or (lambda line: None)
        )
    lines, total = run.lines(wanted), run.total()
    shutil.rmtree(folder / "coverage/counters")  # some 300 KB for each case, read by now
    (folder / TRACEFILE).write_text(coverage_report.lcov(total), encoding="utf-8")
    diff = [(name, at, text) for name, each in wanted.items() for at, text in each.items()]
    (folder / "coverage.html").write_text(
        coverage_report.page("What the catalogue executed", diff, lines),
        encoding="utf-8",
        errors="backslashreplace",
    )
    told = []
    if recipe.patches:
        told = coverage_report.changed_lines(lines, are_there=bool(diff))
    if run.run.problem:
        told.append(f"coverage: the run is not whole: {run.run.problem}")
    for name in options.coverage_of:
        told += _of(name, total)
    return told, {
        "cases": len(run.cases),
        "problem": run.run.problem or None,
        "changed_lines": [_object(line) for line in lines],
        "files": {
            name: {"executed": each.executed, "lines": len(each.counts)}
            for name, each in sorted(total.items())
        },
    }


def _object(line: CoveredLine) -> dict[str, Any]:
    from pyvmm.validate.kernels.changed_code import WHY_NOT_COUNTED

    return {
        "file": line.file,
        "line": line.number,
        "text": line.text,
        "count": None if line.count in WHY_NOT_COUNTED else line.count,
        "why_not_counted": WHY_NOT_COUNTED.get(line.count),
        "branches": list(line.branches),
        "cases": list(line.cases),
    }


def _of(name: str, total: Coverage) -> list[str]:
    """Figures of a file, or of a function wherever it is."""
    from pyvmm.validate.kernels.coverage_report import figures, of_functions

    files = {file: lines for file, lines in total.items() if f"/{file}".endswith(f"/{name}")}
    if files:
        told = list(figures(files))
        return [*told, *(f"  {line}" for lines in files.values() for line in of_functions(lines))]
    told = [line for lines in total.values() for line in of_functions(lines, name)]
    return told or [f"{name}: gcov knows no such file or function of KVM, or it is inlined whole"]
