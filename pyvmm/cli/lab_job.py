"""`pyvmm lab job` and `cut`: pieces of work in files, and what came of them."""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli import arguments, lab_debug, lab_engine, validate_files
from pyvmm.cli.lab_command import guarded, live_line, printing, say
from pyvmm.printable import counted

if TYPE_CHECKING:
    from pyvmm.validate.jobs.job import Built, Image, Job, Named
    from pyvmm.validate.jobs.workers import Outcome

PASSED, BAD, NOTHING_RAN = 0, 1, 4


def add_parsers(commands: Any) -> None:
    """Add `job` and `cut` to the commands of `pyvmm lab`."""
    parser: ArgumentParser = commands.add_parser(
        "job",
        help="run pieces of work from files, each once",
        description="Run the cases of each job on its kernel, and print one JSON object for each."
        " What came of it is kept in the cache: a second call prints that. Exit status: 0 nothing"
        " failed, 1 a case failed, a kernel's log has a splat or it died, 2 a file is no job of"
        " this pyvmm (the others run), 4 nothing could run, 125 a kernel does not build or boot, or"
        " there is no room.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="docs/jobs.md has it")
    parser.add_argument("--again", action="store_true", help="run them though results are known")
    lab_engine.add_arguments(parser)
    validate_files.add_arguments(parser)
    validate_files.add_build_argument(parser)
    parser.set_defaults(func=guarded(_job))
    _add_cut(commands)


def _add_cut(commands: Any) -> None:
    parser: ArgumentParser = commands.add_parser(
        "cut",
        help="write cases as jobs that take about the same time",
        description="Cut the catalogue, or what -k chooses of it, into jobs for 'pyvmm lab job',"
        " by how long each case took here. Prints the names of the files.",
    )
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="where they go")
    lab_engine.add_job_seconds(parser, "--seconds")
    parser.add_argument("--kernel", default="default", metavar="NAME|BZIMAGE", help="(%(default)s)")
    parser.add_argument(
        "--source", metavar="VERSION|TARBALL|DIR", help="instead, one that each machine builds"
    )
    parser.add_argument("--patch", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--config", type=Path, metavar="FRAGMENT")
    lab_debug.add_argument(parser)
    parser.add_argument(
        "-k", metavar="EXPR", default="", dest="expression", help="cases, as in pyvmm validate"
    )
    parser.add_argument(
        "--model-examples", type=arguments.model_examples, default=0, metavar="N", help="likewise"
    )
    parser.add_argument("--seed", type=arguments.seed, metavar="SEED")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="(%(default)s)")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--timeout", type=arguments.seconds, default=1800.0, metavar="S", help="(%(default)g)"
    )
    parser.set_defaults(func=guarded(_cut))


def _job(options: Namespace) -> int:
    from pyvmm.lab.errors import LabError, LabUsageError
    from pyvmm.validate.jobs import result as results
    from pyvmm.validate.jobs.reports import reports_of

    lab_engine.check(options)
    jobs, refused = _load(options.files)
    if options.kcidb_build and len({job.kernel for job in jobs}) > 1:
        raise LabUsageError(f"--kcidb-build {options.kcidb_build}", "the jobs have several kernels")
    workers = lab_engine.labs(
        options, max(job.cpus for job in jobs), max(job.memory_mib for job in jobs)
    )
    outcomes: dict[Job, Outcome] = {}
    said: set[str] = set()
    with validate_files.ResultFiles(options) as files, live_line() as show:
        run_all = lab_engine.engine(options, workers, show, again=options.again)
        why_not_all = LabError("lab job", "it was interrupted")
        try:
            with closing(run_all(jobs)) as came:
                for job, outcome in came:
                    outcomes[job] = outcome
                    if isinstance(outcome, results.JobResult):
                        with printing():
                            print(results.to_text(outcome))
                    elif str(outcome) not in said:  # what one job lacks all may
                        said.add(str(outcome))
                        say(str(outcome))
        except LabError as error:
            why_not_all = error
            raise
        finally:
            files.write(reports_of({job: outcomes.get(job, why_not_all) for job in jobs}))
    return _status(list(outcomes.values()), refused)


def _load(files: Sequence[Path]) -> tuple[list[Job], bool]:
    """The jobs, each once, and whether a file was none, which is said. There is at least one."""
    from pyvmm.lab.errors import LabUsageError
    from pyvmm.validate.jobs.job import load

    jobs: dict[str, Job] = {}
    errors: list[LabUsageError] = []
    for path in files:
        try:
            job = load(path)
            jobs[job.name] = job
        except LabUsageError as error:
            errors.append(error)
    for each in errors if jobs else errors[:-1]:
        say(str(each))
    if not jobs:
        raise errors[-1]
    return list(jobs.values()), bool(errors)


def _status(outcomes: Sequence[Outcome], refused: bool) -> int:
    """What is bad counts before what could not run, and that before a file that is no job."""
    from pyvmm.lab.errors import LabError, LabUsageError
    from pyvmm.validate.jobs.result import JobResult

    done = [each for each in outcomes if isinstance(each, JobResult)]
    if any(each.is_bad for each in done):
        return BAD
    if len(done) < len(outcomes):
        return LabError.status
    if refused:
        return LabUsageError.status
    return NOTHING_RAN if all(each.nothing_ran for each in done) else PASSED


def _cut(options: Namespace) -> int:
    from pyvmm.lab.errors import NAME_A_FOLDER, LabUsageError
    from pyvmm.lab.lab import check_machine
    from pyvmm.validate.jobs import durations
    from pyvmm.validate.jobs.cut import cut_job
    from pyvmm.validate.jobs.job import from_text, to_text
    from pyvmm.validate.jobs.workers import about
    from pyvmm.validate.run.catalogue import select

    check_machine(options.cpus, options.memory, options.param)
    cases = select(options.expression, model_examples=options.model_examples)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    whole = lab_engine.job(options, _kernel(options), cases, seed, options.timeout)
    from_text(to_text(whole), "what was asked for")  # as whoever runs the jobs will see it
    known = durations.Durations().of(whole)
    jobs = cut_job(whole, known, options.seconds)
    written: list[Path] = []
    try:
        options.into.mkdir(parents=True, exist_ok=True)
        if any(options.into.iterdir()):
            raise LabUsageError(f"--into {options.into}", "it is not empty", "name another folder")
        digits = max(3, len(str(len(jobs))))  # a shell sorts them: the longest job is the first
        for number, job in enumerate(jobs, 1):
            written.append(options.into / f"{number:0{digits}}-{job.name}.json")
            written[-1].write_text(to_text(job) + "\n")
    except BaseException as error:
        for path in written:  # a part of the jobs would look like all of them
            path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        cause = error.strerror or str(error)
        raise LabUsageError(f"--into {options.into}", cause, NAME_A_FOLDER) from None
    with printing():
        print(*written, sep="\n")
    took = about(sum(durations.expected_s(job, known) for job in jobs))
    told = f"{counted(len(cases), 'case')} in {counted(len(jobs), 'job')}"
    say(f"{told}, {took} in all, seed {seed}")
    return PASSED


def _kernel(options: Namespace) -> Named | Image | Built:
    from pyvmm.lab.build import DEFAULT_VERSION, check_patches
    from pyvmm.lab.config import read_fragment
    from pyvmm.lab.errors import LabUsageError
    from pyvmm.lab.sources import open_source, source_path
    from pyvmm.validate.jobs.job import Built, Patch

    debug = lab_debug.names(options)
    if options.source or options.patch or options.config or debug:
        if options.kernel != "default":
            raise LabUsageError("--kernel", "it stands instead of --source, --patch and the like")
        check_patches(options.patch)
        source = source_path(Path(options.source or DEFAULT_VERSION))
        open_source(source)
        # A version is the same everywhere, wherever its tarball is.
        named = options.source or DEFAULT_VERSION
        told = named if source_path(Path(named)) != Path(named).absolute() else str(source)
        patches = tuple(
            Patch(path.name, path.read_bytes().decode("utf-8", "surrogateescape"))
            for path in options.patch
        )
        config = read_fragment(options.config) if options.config else ""
        return Built(told, patches, config, debug)
    return lab_engine.kernel_of(options.kernel)
