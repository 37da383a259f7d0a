"""`pyvmm lab check`: a kernel with a patch against the kernel without, or any two kernels."""

from __future__ import annotations

import json
import os
import re
import shutil
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli import arguments, lab_coverage, lab_debug, lab_engine, lab_series, validate_files
from pyvmm.cli.lab_command import build_progress, guarded, say

if TYPE_CHECKING:
    from pyvmm.lab.kernels import Kernel
    from pyvmm.validate.kernels.lab_run import LabMachine
    from pyvmm.validate.kernels.two_kernels import Variant
    from pyvmm.validate.kernels.verdict import Facts
    from pyvmm.validate.kit.case import Case

SAME_OR_BETTER, WORSE, NOTHING_RAN, NOT_WHOLE = 0, 1, 4, 125
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]+=[^\s,\"]*(?:,[^\s,\"]*)*")
_MOST_COMBINATIONS = 64


def add_parser(commands: Any) -> None:
    """Add `check` to the commands of `pyvmm lab`."""
    parser: ArgumentParser = commands.add_parser(
        "check",
        help="does a patch make anything worse: the catalogue on two kernels",
        description="Build and boot a kernel without and with patches, or two kernels by name, run"
        " 'pyvmm validate' on both and say what differs. Exit status: 0 nothing got worse, 1"
        " something did, 125 a kernel does not build or boot, 4 nothing could run on either.",
    )
    _add_kernels(parser)
    lab_series.add_arguments(parser)
    lab_debug.add_argument(parser)
    lab_coverage.add_arguments(
        parser, "run the catalogue once more, on a kernel that counts what it executes"
    )
    _add_cases(parser)
    _add_machine(parser)
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="keep everything there: check.txt, check.json, each run's JSON and kernel log",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    validate_files.add_arguments(parser)
    parser.set_defaults(func=guarded(_check))


def _add_kernels(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=Path, metavar="TARBALL|DIR", help="default: Debian's linux-source-6.12"
    )
    parser.add_argument(
        "--patch", type=Path, action="append", default=[], metavar="FILE", help="applied with -p1"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FRAGMENT", help="laid over the lab's configuration of both"
    )
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME|BZIMAGE",
        help="instead of all these, twice: the kernel before, and the kernel now",
    )
    parser.add_argument(
        "--vary",
        type=_varied,
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="boot both with each value of a module parameter (kvm_amd.npt=0,1); all combinations",
    )


def _add_cases(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-k", metavar="EXPR", default="", dest="expression", help="cases, as in pyvmm validate"
    )
    parser.add_argument(
        "-j",
        type=arguments.workers,
        metavar="N",
        dest="workers",
        help="cases beside each other (2)",
    )
    lab_engine.add_arguments(parser)
    lab_engine.add_job_seconds(parser, "--job-seconds")
    parser.add_argument(
        "--model-examples",
        type=arguments.model_examples,
        default=0,
        metavar="N",
        help="as in pyvmm validate",
    )
    parser.add_argument(
        "--seed", type=arguments.seed, metavar="SEED", help="the same for both kernels"
    )


def _add_machine(parser: ArgumentParser) -> None:
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="(%(default)s)")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for both kernels' command lines",
    )
    parser.add_argument(
        "--timeout",
        type=arguments.seconds,
        default=1800.0,
        metavar="S",
        help="for each job (%(default)g)",
    )


def _varied(text: str) -> list[str]:
    if not _PARAMETER.fullmatch(text):
        raise ArgumentTypeError(f"{text!r} is not NAME=VALUE,VALUE")
    name, _, values = text.partition("=")
    return [f"{name}={value}" for value in dict.fromkeys(values.split(","))]


def _check(options: Namespace) -> int:
    from pyvmm.validate.jobs.run import own_cache
    from pyvmm.validate.run.catalogue import select

    _check_words(options)
    own_cache()  # before builds that take minutes
    debug = lab_debug.names(options)
    cases = select(options.expression, model_examples=options.model_examples)
    with _Results(options.results) as results, validate_files.ResultFiles(options) as files:
        if lab_series.is_series(options):
            done = lab_series.check_series(
                options, cases, _machine(options, cases), results.folder, debug
            )
            results.is_whole = True
        else:
            done = _check_two(options, cases, results, debug)
        files.write(done.reports)
    done.show(results.where)
    return done.status


def _check_two(
    options: Namespace, cases: Sequence[Case], results: _Results, debug: tuple[str, ...]
) -> lab_engine.Checked:
    from pyvmm.lab.errors import KernelFailed
    from pyvmm.validate.kernels.lab_report import reports_of
    from pyvmm.validate.kernels.two_kernels import check_parameters, place_of, variants
    from pyvmm.validate.kernels.verdict import Facts

    kernels = _kernels(options, debug)
    machine = _machine(options, cases)
    choices = lab_engine.choices(options)
    if options.vary:
        check_parameters(kernels, machine, choices[0], say)
    folders = {
        (number, choice): place_of(results.folder, choice) / when
        for choice in choices
        for number, when in enumerate(("before", "now"))
    }
    with lab_engine.runs_of(options, kernels, cases) as runs:
        first = runs.first(folders)
        for came in first.values():
            if isinstance(came, KernelFailed):
                raise came
        found = list(variants(first, (0, 1), runs, results.folder, say))
        told, coverage = _coverage(options, machine, results.folder, runs.seed)
        facts = Facts(*kernels, runs.seed, options.cpus, options.memory, options.expression)
        results.keep_all(facts, found, told, coverage)
        runs.forget()
    show = partial(_show, options, facts, found, told, coverage)
    status = NOT_WHOLE if lab_coverage.is_missing(coverage) else _status(found)
    return lab_engine.Checked(status, reports_of(found, "before", "now"), show)


def _machine(options: Namespace, cases: Sequence[Case]) -> LabMachine:
    from pyvmm.validate.jobs.job import HUGE_PAGES
    from pyvmm.validate.kernels.lab_run import LabMachine

    return LabMachine(
        options.cpus,
        options.memory,
        [HUGE_PAGES, *options.param],
        options.timeout,
        silence_s=max(each.longest_s for each in cases) + 60,
    )


def _status(variants: Sequence[Variant]) -> int:
    if any(variant.worse for variant in variants):
        return WORSE
    return NOTHING_RAN if all(each.nothing_ran for each in variants) else SAME_OR_BETTER


def _coverage(
    options: Namespace, machine: LabMachine, folder: Path, seed: int
) -> tuple[list[str], dict[str, Any] | None]:
    """What was executed of the kernel now: for people and for programs, nothing unless asked."""
    from pyvmm.lab.build import DEFAULT_VERSION, Recipe
    from pyvmm.lab.config import read_fragment
    from pyvmm.lab.sources import default_tarball

    if not lab_coverage.is_wanted(options):
        return [], None
    source = options.source or default_tarball(DEFAULT_VERSION)
    config = read_fragment(options.config) if options.config else ""
    recipe = Recipe(source, tuple(options.patch), config)
    return lab_coverage.measure(options, recipe, machine, folder, seed)


def _show(
    options: Namespace,
    facts: Facts,
    variants: Sequence[Variant],
    told: Sequence[str],
    coverage: dict[str, Any] | None,
    where: str,
) -> None:
    from pyvmm.cli import lab_check_text as text
    from pyvmm.validate.kernels.verdict import to_json

    if options.json:
        print(json.dumps(to_json(facts, variants, coverage)), flush=True)
        return
    about = lab_coverage.shown(told)
    lines = text.summary(facts, variants, text.LINES - 1 - len(about))
    print("\n".join([*lines, *about, where]), flush=True)


def _check_words(options: Namespace) -> None:
    """Say what is wrong with the request before anything is built."""
    from pyvmm.lab.build import DEFAULT_VERSION, check_can_count, check_known, check_patches
    from pyvmm.lab.diffs import flaw_of
    from pyvmm.lab.errors import LabUsageError
    from pyvmm.lab.lab import check_machine
    from pyvmm.lab.mail import patch_texts
    from pyvmm.lab.sources import default_tarball, open_source, source_path

    if options.kernel:
        if lab_coverage.is_wanted(options):
            cause = "it wants a kernel that is built for it"
            raise LabUsageError("--coverage", cause, "give --patch instead of --kernel")
        if options.debug:
            cause = "it wants kernels that are built for it"
            raise LabUsageError("--debug", cause, "give --patch instead of --kernel")
        if options.source or options.patch or options.config:
            raise LabUsageError("--kernel", "it stands instead of --source, --patch and --config")
        if len(options.kernel) != 2:
            raise LabUsageError(
                f"{len(options.kernel)} --kernel", "want two: the kernel before, and the kernel now"
            )
    elif not options.patch and not lab_series.is_series(options):
        raise LabUsageError(
            "nothing to compare",
            "want --patch FILE, --series FILE, or --kernel BEFORE --kernel NOW",
        )
    lab_engine.check(options)
    lab_series.check_words(options)
    for name in options.kernel:
        check_known(name)
    check_patches(options.patch)
    for patch in options.patch:
        if flaw := next(filter(None, map(flaw_of, patch_texts(patch))), ""):
            raise LabUsageError(f"patch {patch}", flaw)  # before builds that take minutes
    varied = [word for values in options.vary for word in values]
    check_machine(options.cpus, options.memory, [*options.param, *varied])
    if options.source:
        options.source = source_path(options.source)
    if options.source and not options.commits:  # of a tree its start is looked at, unpacked
        open_source(options.source)
    if lab_coverage.is_wanted(options) and not options.commits:
        check_can_count(options.source or default_tarball(DEFAULT_VERSION))
    combinations = 1
    for values in options.vary:
        combinations *= len(values)
    if combinations > _MOST_COMBINATIONS:
        raise LabUsageError(f"{combinations} combinations", f"at most {_MOST_COMBINATIONS}")
    names = [values[0].partition("=")[0] for values in options.vary]
    if twice := {name for name in names if names.count(name) > 1}:
        raise LabUsageError(f"--vary {twice.pop()}", "it is given twice", "list all its values")


def _kernels(options: Namespace, debug: tuple[str, ...]) -> tuple[Kernel, Kernel]:
    """Both kernels, built first if need be."""
    from pyvmm.lab.build import DEFAULT_VERSION, Recipe, build, find_or_build
    from pyvmm.lab.config import read_fragment
    from pyvmm.lab.initramfs import find_busybox
    from pyvmm.lab.qemu import find_qemu
    from pyvmm.lab.sources import default_tarball

    find_qemu()  # before builds that take minutes
    find_busybox()
    with build_progress() as progress:
        if options.kernel:
            first, second = (find_or_build(name, say, progress) for name in options.kernel)
            return first, second
        source = options.source or default_tarball(DEFAULT_VERSION)
        config = read_fragment(options.config) if options.config else ""
        return (
            build(Recipe(source, (), config, debug=debug), None, say, progress),
            build(Recipe(source, tuple(options.patch), config, debug=debug), None, say, progress),
        )


class _Results:
    """The folder that has everything; one of the caller's own, or else the cache's last-check.

    What an interrupted check leaves is kept in the caller's own only.
    """

    def __init__(self, folder: Path | None) -> None:
        from pyvmm.lab.cache import cache_folder, make_folder
        from pyvmm.lab.errors import NAME_A_FOLDER, LabUsageError

        self._last = None if folder else make_folder(cache_folder()) / "last-check"
        self.folder = (folder or cache_folder() / f"check.{os.getpid()}").absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            cause = str(error.strerror)
            raise LabUsageError(f"results folder {folder}", cause, NAME_A_FOLDER) from None
        if not os.access(self.folder, os.W_OK):
            cause = "not writable"
            raise LabUsageError(f"results folder {folder}", cause, NAME_A_FOLDER)
        self.is_whole = False

    @property
    def where(self) -> str:
        return f"all of it: {(self._last or self.folder) / 'check.txt'}"

    def keep_all(
        self,
        facts: Facts,
        variants: list[Variant],
        told: Sequence[str],
        coverage: dict[str, Any] | None,
    ) -> None:
        from pyvmm.cli import lab_check_text as text
        from pyvmm.validate.kernels.verdict import to_json

        self._write("check.txt", "\n".join([*text.everything(facts, variants), *told, ""]))
        self._write("check.json", json.dumps(to_json(facts, variants, coverage)))
        self.is_whole = True

    def _write(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content, encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is None:
            return
        if not self.is_whole:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        # A link, because what is in the folder may name it; the one before goes.
        before = self._last.resolve()
        if self._last.is_dir() and not self._last.is_symlink():
            shutil.rmtree(self._last, ignore_errors=True)
        # Of this process alone: two checks may end at the same time.
        link = self.folder.with_name(f"{self.folder.name}.link")
        link.symlink_to(self.folder.name)
        link.replace(self._last)
        if before.is_relative_to(self._last.parent) and before != self.folder:
            shutil.rmtree(before, ignore_errors=True)
