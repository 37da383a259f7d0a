"""`pyvmm lab check --series` and `--range`: every patch of a series."""

from __future__ import annotations

import hashlib
import json
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli import lab_coverage, lab_engine
from pyvmm.cli.lab_command import build_progress, say
from pyvmm.printable import counted

if TYPE_CHECKING:
    from pyvmm.lab.series import Patch
    from pyvmm.validate.kernels.lab_run import LabMachine
    from pyvmm.validate.kernels.series import Step
    from pyvmm.validate.kernels.series_selftests import Pair
    from pyvmm.validate.kernels.series_verdict import SeriesFacts
    from pyvmm.validate.kit.case import Case
    from pyvmm.validate.results.report import Report

NOTHING_WORSE, WORSE, NOTHING_RAN, BROKEN = 0, 1, 4, 125
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def add_arguments(parser: ArgumentParser) -> None:
    """What `lab check` knows of series."""
    group = parser.add_argument_group("a series, patch by patch")
    group.add_argument(
        "--series",
        type=Path,
        metavar="FILE.mbox|DIR",
        help="patches as git format-patch, b4 and the archives of lists write them",
    )
    group.add_argument(
        "--range",
        dest="commits",
        metavar="A..B",
        help="commits of the git tree that --source names",
    )
    group.add_argument(
        "--each",
        action="store_true",
        help="run the catalogue after every patch, not at the base and the end only",
    )
    group.add_argument(
        "--build-config",
        type=_build_config,
        action="append",
        default=[],
        metavar="NAME=FRAGMENT",
        help="build every patch with this configuration, too",
    )
    group.add_argument(
        "--selftests",
        action="store_true",
        help="run the kernel's selftests that the series touches, before and after it",
    )


def _build_config(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not _NAME.fullmatch(name) or not path:
        raise ArgumentTypeError(f"{text!r} is not NAME=FRAGMENT")
    return name, Path(path)


def is_series(options: Namespace) -> bool:
    return options.series is not None or options.commits is not None


def check_words(options: Namespace) -> None:
    """Say what is wrong with the request before anything is built."""
    from pyvmm.lab.errors import LabUsageError

    if not is_series(options):
        for given, name in (
            (options.each, "--each"),
            (options.build_config, "--build-config"),
            (options.selftests, "--selftests"),
        ):
            if given:
                raise LabUsageError(name, "it is for a series", "give --series or --range")
        return
    if options.series and options.commits:
        raise LabUsageError("--series and --range", "one of them")
    if options.kernel or options.patch:
        raise LabUsageError("--series", "it stands instead of --patch and --kernel")
    if options.commits and not (options.source and options.source.is_dir()):
        raise LabUsageError("--range", "it wants a git tree", "name it with --source")
    names = [name for name, _ in options.build_config]
    if twice := {name for name in names if names.count(name) > 1}:
        raise LabUsageError(f"--build-config {twice.pop()}", "it is given twice")


def check_series(
    options: Namespace,
    cases: Sequence[Case],
    machine: LabMachine,
    folder: Path,
    debug: tuple[str, ...] = (),
) -> lab_engine.Checked:
    """Build and run it all."""
    from pyvmm.validate.kernels.series import SeriesRun, clear_results, write_patches
    from pyvmm.validate.kernels.series_verdict import SeriesFacts

    patches = _patches(options)
    _check_programs(options)
    clear_results(folder, options.series)
    paths = write_patches(patches, folder / "patches")
    say(counted(len(patches), "patch", "patches"))
    with _source(options) as source:
        steps = _built(options, source, patches, paths, debug)
        selftests = _selftests(options, patches, steps) if options.selftests else ()
        told, coverage = _coverage(options, source, patches, paths, steps, machine, folder)
    series = SeriesRun(steps, each=options.each)
    with lab_engine.runs_of(options, series.kernels, cases) as runs:
        first = runs.first(series.folders(folder, lab_engine.choices(options)))
        steps = list(series.steps(first, runs, folder, say))
        facts = SeriesFacts(
            options.commits or source.name,
            len(patches),
            runs.seed,
            options.cpus,
            options.memory,
            options.expression,
            selftests,
        )
        _keep(folder, steps, facts, told, coverage)
        runs.forget()
    show = partial(_show, options, steps, facts, told, coverage)
    status = BROKEN if lab_coverage.is_missing(coverage) else _status(steps, facts)
    return lab_engine.Checked(status, _reports(steps, runs.seed, selftests), show)


def _check_programs(options: Namespace) -> None:
    """A LabError for what would be missing after builds that take long."""
    from pyvmm.lab.initramfs import find_busybox
    from pyvmm.lab.programs import OF_A_BUILD, OF_SELFTESTS, require
    from pyvmm.lab.qemu import find_qemu

    if options.selftests or not options.dask:  # a cluster has its own
        find_qemu()
        find_busybox()
    require(*(OF_SELFTESTS if options.selftests else OF_A_BUILD))


def _reports(steps: Sequence[Step], seed: int, selftests: Sequence[Pair]) -> dict[str, Report]:
    """Those of the source, and of each patch after which the catalogue ran, or that is no kernel:
    then the kernel itself is all that is in it. Selftests are in the first and the last."""
    from pyvmm.validate.kernels.lab_report import report_of, reports_of
    from pyvmm.validate.kernels.lab_run import LabRun
    from pyvmm.validate.kernels.selftest_report import with_selftests

    ran = [step for step in steps if step.variants]
    reports = reports_of(ran[0].variants, "base", "") if ran else {}
    for step in steps:
        name = f"patch {step.number}"
        reports |= reports_of(step.variants, "", name)
        if step.problem:
            reports[name] = report_of([LabRun((), (), seed, 0.0, problem=step.problem)])
    return with_selftests(reports, selftests, "base", f"patch {steps[-1].number}", seed)


def _patches(options: Namespace) -> list[Patch]:
    from pyvmm.lab.diffs import flaw_of
    from pyvmm.lab.errors import LabUsageError
    from pyvmm.lab.series import read_range, read_series

    if options.commits:
        patches = read_range(options.source, options.commits)
    else:
        patches = read_series(options.series, say)
    for number, patch in enumerate(patches, 1):
        if flaw := flaw_of(patch.text):  # before builds that take minutes
            what = options.commits or options.series
            cause = f"patch {number}/{len(patches)} ({patch.subject}): {flaw}"
            raise LabUsageError(f"series {what}", cause, "leave it out, or mend it")
    return patches


def _coverage(
    options: Namespace,
    source: Path,
    patches: Sequence[Patch],
    paths: Sequence[Path],
    steps: Sequence[Step],
    machine: LabMachine,
    folder: Path,
) -> tuple[list[str], dict[str, Any] | None]:
    """What was executed of the whole series."""
    from pyvmm.lab.build import Recipe
    from pyvmm.lab.config import read_fragment

    if not lab_coverage.is_wanted(options):
        return [], None
    if steps[-1].kernel is None or len(steps) <= len(patches):
        return ["coverage: the end of the series is no kernel"], None
    config = read_fragment(options.config) if options.config else ""
    recipe = Recipe(source, tuple(paths), config)
    return lab_coverage.measure(options, recipe, machine, folder, options.seed)


def _show(
    options: Namespace,
    steps: Sequence[Step],
    facts: SeriesFacts,
    told: Sequence[str],
    coverage: dict[str, Any] | None,
    where: str,
) -> None:
    from pyvmm.cli.lab_series_text import summary
    from pyvmm.validate.kernels.series_verdict import to_json

    if options.json:
        print(json.dumps(to_json(steps, facts, coverage)), flush=True)
        return
    about = lab_coverage.shown(told)
    print("\n".join([*summary(steps, facts), *about, where]), flush=True)


def _status(steps: Sequence[Step], facts: SeriesFacts) -> int:
    from pyvmm.validate.kernels.series_verdict import is_broken, is_worse, nothing_ran

    if is_broken(steps):
        return BROKEN
    if is_worse(steps, facts):
        return WORSE
    return NOTHING_RAN if nothing_ran(steps) else NOTHING_WORSE


def _built(
    options: Namespace,
    source: Path,
    patches: Sequence[Patch],
    paths: Sequence[Path],
    debug: tuple[str, ...],
) -> list[Step]:
    from pyvmm.lab.config import read_fragment
    from pyvmm.validate.kernels.series import SeriesBuild

    with build_progress() as progress:
        build = SeriesBuild(
            source,
            patches,
            paths,
            config=read_fragment(options.config) if options.config else "",
            debug=debug,
            configs={name: read_fragment(path) for name, path in options.build_config},
            announce=say,
            progress=progress,
        )
        return list(build.steps())


@contextmanager
def _source(options: Namespace) -> Iterator[Path]:
    """The source without the series: what --source names, or what a range begins with."""
    from pyvmm.lab.build import DEFAULT_VERSION
    from pyvmm.lab.cache import cache_folder, locked, make_folder
    from pyvmm.lab.series import unpack_commit
    from pyvmm.lab.sources import default_tarball

    if not options.commits:
        yield options.source or default_tarball(DEFAULT_VERSION)
        return
    # One place for a tree, so that what was built of it before is of use.
    name = hashlib.sha256(str(options.source.resolve()).encode()).hexdigest()[:8]
    folder = make_folder(cache_folder() / "ranges" / f"{options.source.resolve().name}-{name}")
    with locked(folder, say):
        say(f"unpacking the start of {options.commits}")
        unpack_commit(options.source, options.commits, folder / "src")
        _check_start(options, folder / "src")
        yield folder / "src"


def _check_start(options: Namespace, source: Path) -> None:
    """What of a source is looked at before it is built. Its tree may have nothing checked out."""
    from pyvmm.lab.build import check_can_count
    from pyvmm.lab.errors import LabUsageError
    from pyvmm.lab.sources import is_kernel_source

    if not is_kernel_source(source):
        cause = "its start is no kernel source: no Kbuild or no arch/x86/kvm in it"
        raise LabUsageError(f"range {options.commits}", cause)
    if lab_coverage.is_wanted(options):
        check_can_count(source)


def _selftests(
    options: Namespace, patches: Sequence[Patch], steps: Sequence[Step]
) -> tuple[Pair, ...]:
    """The selftests that the series touches, as it leaves them, on both kernels."""
    from pyvmm.validate.kernels.series_selftests import before_and_now, commands_of

    first, last = steps[0].kernel, steps[-1].kernel
    commands = commands_of(patch.text for patch in patches)
    if not commands:
        say("--selftests: the series touches none of x86")
        return ()
    if first is None or last is None:
        say("--selftests: the end of the series is no kernel")
        return ()
    return tuple(before_and_now(commands, first, last, options.cpus, options.memory, say))


def _keep(
    folder: Path,
    steps: Sequence[Step],
    facts: SeriesFacts,
    told: Sequence[str],
    coverage: dict[str, Any] | None,
) -> None:
    from pyvmm.cli.lab_series_text import summary
    from pyvmm.validate.kernels.series_verdict import to_json

    text = "\n".join([*summary(steps, facts, most_names=1 << 30), *told, ""])
    (folder / "check.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
    (folder / "check.json").write_text(
        json.dumps(to_json(steps, facts, coverage)), encoding="utf-8"
    )
