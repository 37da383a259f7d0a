"""`pyvmm lab job`: a piece of work in a file, and what came of it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pyvmm.cli.lab_command import build_progress, guarded, live_line, say

PASSED, BAD, NOTHING_RAN = 0, 1, 4


def add_parser(commands: Any) -> None:
    """Add `job` to the commands of `pyvmm lab`."""
    parser: ArgumentParser = commands.add_parser(
        "job",
        help="run a piece of work from a file, once",
        description="Run the cases of a job on its kernel, and print one JSON object. What came of"
        " it is kept in the cache: a second call prints that. Exit status: 0 nothing failed, 1 a"
        " case failed, the kernel's log has a splat or it died, 2 the file is no job of this pyvmm,"
        " 4 nothing could run, 125 the kernel does not build or boot, or there is no room.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="docs/jobs.md has its keys")
    parser.add_argument("--again", action="store_true", help="run it though the result is known")
    parser.set_defaults(func=guarded(_job))


def _job(options: Namespace) -> int:
    from pyvmm.validate.jobs import result as results
    from pyvmm.validate.jobs.job import load
    from pyvmm.validate.jobs.run import run_job

    job = load(options.file)
    with build_progress() as progress, live_line() as show:
        done = run_job(job, say, show or (lambda line: None), progress, again=options.again)
    print(results.to_text(done), flush=True)
    if done.is_bad:
        return BAD
    return NOTHING_RAN if done.nothing_ran else PASSED
