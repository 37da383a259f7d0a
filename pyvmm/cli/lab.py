"""`pyvmm lab`: kernels with real private memory, built and booted.

Everything it says itself goes to stderr, so that stdout is the command's alone.
"""

from __future__ import annotations

import itertools
import os
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli import lab_check, lab_coverage, lab_debug, lab_explore, lab_job
from pyvmm.cli.arguments import seconds
from pyvmm.cli.lab_command import build_progress, guarded, printing, say

if TYPE_CHECKING:
    from pyvmm.lab.kernel_log import Splat
    from pyvmm.lab.lab import Lab, RunResult
    from pyvmm.lab.qemu import Tcg

#: So many cases are named that ran as trouble came.
_MOST_CASES = 4


def add_parser(subparsers: Any) -> None:
    """Add `lab` and its commands to the parsers of `pyvmm`."""
    lab: ArgumentParser = subparsers.add_parser(
        "lab", help="kernels with real private memory, built and booted in QEMU"
    )
    commands = lab.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)

    _add_setup_and_build(commands)
    _add_run(commands)

    shell = commands.add_parser("shell", help="an interactive shell in a booted kernel")
    _add_machine_arguments(shell)
    shell.add_argument("argv", nargs=REMAINDER, metavar="-- COMMAND...")
    shell.set_defaults(func=guarded(_shell))

    selftests = commands.add_parser(
        "selftests",
        help="the kernel's own selftests of private memory, from the source it was built from",
    )
    _add_machine_arguments(selftests)
    selftests.add_argument("names", nargs="*", metavar="NAME", help="default: those that apply")
    selftests.set_defaults(func=guarded(_selftests))

    lab_check.add_parser(commands)
    lab_job.add_parsers(commands)
    lab_explore.add_parser(commands)

    listing = commands.add_parser("list", help="kernels that were built, or can be by name")
    listing.set_defaults(func=guarded(_list))

    log = commands.add_parser("kernel-log", help="the kernel's log of the last lab")
    log.set_defaults(func=guarded(_kernel_log))


def _add_setup_and_build(commands: Any) -> None:
    setup = commands.add_parser("setup", help="install what the lab needs (as root), or name it")
    setup.add_argument(
        "--source", metavar="VERSION", default=None, help="kernel source to get (default: 6.12)"
    )
    setup.set_defaults(func=guarded(_setup))

    build = commands.add_parser("build", help="build a kernel; what was built before is kept")
    build.add_argument(
        "--source",
        type=Path,
        metavar="VERSION|TARBALL|DIR",
        help="a version is Debian's linux-source-VERSION (default: 6.12)",
    )
    build.add_argument(
        "--patch", type=Path, action="append", default=[], metavar="FILE", help="applied with -p1"
    )
    build.add_argument(
        "--config", type=Path, metavar="FRAGMENT", help="laid over the lab's configuration"
    )
    build.add_argument(
        "--coverage", action="store_true", help="let KVM count what it executes (gcov)"
    )
    lab_debug.add_argument(build)
    build.add_argument("--name", help="what 'lab run --kernel' calls it")
    build.set_defaults(func=guarded(_build))


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run a command in a booted kernel",
        description="Boot a kernel and run a command in it, with the folders and environment of"
        " here; what it writes is thrown away, but for the results folder. Exit status: the"
        " command's own; 125 when the kernel does not build or boot, dies, or its log has a"
        " warning or worse; 124 after the time limit.",
    )
    _add_machine_arguments(run)
    run.add_argument(
        "--timeout",
        type=seconds,
        default=1800.0,
        metavar="S",
        help="for the command (%(default)s)",
    )
    run.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder that is writable inside, at the same path and as $PYVMM_RESULTS",
    )
    run.add_argument("--results-limit", type=int, default=1024, metavar="MIB", help="(%(default)s)")
    run.add_argument(
        "--allow-warnings",
        action="store_true",
        help="report trouble in the kernel's log, but keep the command's status",
    )
    lab_coverage.add_arguments(
        run, "on a kernel like this one that counts: say what of KVM the command executed"
    )
    run.add_argument("argv", nargs=REMAINDER, metavar="-- COMMAND...")
    run.set_defaults(func=guarded(_run))


def _add_machine_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--kernel", default="default", metavar="NAME|BZIMAGE", help="(%(default)s)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="(%(default)s)")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for the kernel's command line, for instance kvm_amd.npt=0",
    )
    parser.add_argument(
        "--tcg",
        choices=("single", "multi"),
        help="how QEMU emulates CPUs: by turns, or on a thread for each, where races are seen; "
        "multi is for guests of pyvmm, which then share a CPU (default: multi for pyvmm on a "
        "kernel that the lab built, otherwise single)",
    )


def _setup(arguments: Namespace) -> int:
    from pyvmm.lab.install import install

    install(arguments.source, say)
    return 0


def _build(arguments: Namespace) -> int:
    from pyvmm.lab.build import DEFAULT_VERSION, Recipe, build, known_recipe
    from pyvmm.lab.config import read_fragment
    from pyvmm.lab.sources import default_tarball, source_path

    source = source_path(arguments.source) if arguments.source else None
    recipe = known_recipe(arguments.name) if arguments.name else None
    if (
        arguments.patch
        or arguments.config
        or arguments.coverage
        or arguments.debug
        or (recipe and source not in (None, recipe.source))
    ):
        recipe = None
    if recipe is None:
        source = source or default_tarball(DEFAULT_VERSION)
        config = read_fragment(arguments.config) if arguments.config else ""
        patches = tuple(arguments.patch)
        debug = lab_debug.names(arguments)
        recipe = Recipe(source, patches, config, arguments.coverage, debug)
    with build_progress() as progress:
        kernel = build(recipe, arguments.name, say, progress)
    print(f"{kernel.name}: Linux {kernel.release}, {kernel.image}")
    return 0


def _run(arguments: Namespace) -> int:
    from pyvmm.lab.leaks import find_leaks, forget_leaks, looks_for_leaks

    command = _command(arguments, None)
    counted = lab_coverage.is_wanted(arguments)
    if counted:
        arguments.kernel = lab_coverage.counting_kernel(arguments.kernel)
    with _lab(arguments, arguments.results, arguments.results_limit, command=command) as lab:
        if counted:
            lab_coverage.reset(lab)
        if looks_for_leaks(lab.kernel):
            forget_leaks(lab)
        result = lab.run(
            command,
            timeout=arguments.timeout,
            stdin=b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.fileno(),
            stdout=_writer(1),
            stderr=_writer(2),
        )
        is_alive = result.status is not None
        executed = lab_coverage.executed(lab) if counted and is_alive else None
        if looks_for_leaks(lab.kernel) and is_alive:
            leaks = find_leaks(lab, result.kernel_log)
            result = replace(result, splats=(*result.splats, *leaks))
    _report(result)
    if executed is not None:
        lab_coverage.tell(arguments, executed)
    return result.exit_status(allow_warnings=arguments.allow_warnings)


def _shell(arguments: Namespace) -> int:
    from pyvmm.lab.terminal import RawTerminal

    terminal = RawTerminal()
    with _lab(arguments) as lab:
        say(f"Linux {lab.release}; what is written here is thrown away; 'exit' ends it")
        with terminal:
            result = lab.run(
                _command(arguments, os.environ.get("SHELL", "/bin/sh")),
                timeout=float("inf"),
                stdin=sys.stdin.fileno(),
                stdout=_writer(1),
                terminal=terminal,
            )
    _report(result)
    return result.exit_status()


def _selftests(arguments: Namespace) -> int:
    from pyvmm.lab.selftests import PRIVATE_MEMORY, build_selftests, run_selftests

    names = arguments.names
    commands = [(name,) for name in names] or PRIVATE_MEMORY
    lab = _lab(arguments)
    programs = build_selftests(lab.kernel, sorted({command[0] for command in commands}), say)
    failed = False
    with lab:
        for result in run_selftests(lab, programs, commands):
            line = f"{result.outcome:8}{result.seconds:6.1f} s  {' '.join(result.command)}"
            print(line if result.outcome == "passed" else f"{line}: {result.said}", flush=True)
            failed = failed or result.outcome == "failed"
    return 1 if failed else 0


def _list(arguments: Namespace) -> int:
    from pyvmm.lab.build import known_names
    from pyvmm.lab.kernels import built_kernels

    rows = [("NAME", "LINUX", "PATCHES", "SOURCE")]
    for kernel in built_kernels():
        extra = ["--coverage"] * kernel.counts
        extra += [f"--debug {','.join(kernel.debug)}"] * bool(kernel.debug)
        patches = ", ".join((*kernel.patches, *extra)) or "-"
        rows.append((kernel.name, kernel.release, patches, kernel.source))
    built = {row[0] for row in rows}
    rows += [(name, "not built", "", "") for name in known_names() if name not in built]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    with printing():
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())
    return 0


def _kernel_log(arguments: Namespace) -> int:
    from pyvmm.lab.cache import unusable_cache
    from pyvmm.lab.errors import LabUsageError
    from pyvmm.lab.kernels import last_log

    try:
        text = last_log().read_bytes()
    except FileNotFoundError:
        raise LabUsageError("kernel log", "no lab has run yet", "pyvmm lab run") from None
    except OSError as error:
        raise unusable_cache(last_log(), error) from None
    with printing():
        sys.stdout.buffer.write(text)
    return 0


def _lab(
    arguments: Namespace,
    results: Path | None = None,
    results_mib: int = 1,
    command: Sequence[str] = (),
) -> Lab:
    """The lab that was asked for, its kernel built first if need be."""
    from pyvmm.lab.lab import Lab

    with build_progress() as progress:
        return Lab(
            arguments.kernel,
            tcg=arguments.tcg or usual_tcg(arguments.kernel, command),
            cpus=arguments.cpus,
            memory_mib=arguments.memory,
            params=arguments.param,
            results=results,
            results_mib=results_mib,
            announce=say,
            progress=progress,
        )


def usual_tcg(kernel: str, command: Sequence[str]) -> Tcg:
    """How CPUs are emulated for this command on this kernel unless it is said."""
    # Distributions' kernels patch their own code, which QEMU 7.2 does not always survive with a
    # thread for each CPU; those that the lab builds do not.
    is_foreign_kernel = os.path.isfile(kernel)
    return "multi" if _is_pyvmm(command) and not is_foreign_kernel else "single"


def _is_pyvmm(command: Sequence[str]) -> bool:
    """Whether a command is pyvmm itself, by its name or as a module of Python."""
    program = os.path.basename(command[0]) if command else ""
    if not program.startswith("python"):
        return program == "pyvmm"
    options = list(itertools.takewhile(lambda word: word.startswith("-"), command[1:]))
    return options[-1:] == ["-m"] and command[len(options) + 1 :][:1] == ["pyvmm"]


def _command(arguments: Namespace, default: str | None) -> list[str]:
    from pyvmm.lab.errors import LabUsageError

    argv: list[str] = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if argv:
        return argv
    if default is None:
        raise LabUsageError("no command given", "want: pyvmm lab run [OPTIONS] -- COMMAND...")
    return [default]


def _report(result: RunResult) -> None:
    from pyvmm.lab.kernel_log import by_kind, running_at

    if result.problem is not None:
        during = _during(running_at(result.kernel_log, float("inf")))
        say(result.problem + during + "; --timeout S gives it longer" * result.timed_out)
    for splat, times in by_kind(result.splats):
        _report_splat(splat, times)


def _report_splat(splat: Splat, times: int) -> None:
    often = f" {times} times" * (times > 1)
    say(f"the kernel's log has{often}: {splat.title}{_during(splat.cases)}")
    for line in splat.lines:
        print(f"    {line}", file=sys.stderr)


def _during(cases: Sequence[str]) -> str:
    if not cases:
        return ""
    more = f" and {len(cases) - _MOST_CASES} more" if len(cases) > _MOST_CASES else ""
    return f" (while {', '.join(cases[:_MOST_CASES])}{more} ran)"


def _writer(fd: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write
