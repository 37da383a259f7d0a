"""`pyvmm lab explore`: the model's random scripts for hours, and one of each kind that fails."""

from __future__ import annotations

import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.cli import arguments, lab_engine
from pyvmm.cli.interruption import Interrupted
from pyvmm.cli.lab_command import Show, guarded, live_line, say
from pyvmm.printable import counted, printable

if TYPE_CHECKING:
    from pyvmm.validate.jobs.corpus import Corpus
    from pyvmm.validate.jobs.executed import Executed
    from pyvmm.validate.jobs.job import Built, Image, Job, Named
    from pyvmm.validate.jobs.result import JobResult
    from pyvmm.validate.jobs.workers import Engine

PASSED, FOUND, NOTHING_RAN = 0, 1, 4
_LONGEST_H = 10_000.0
#: So many jobs in a row that cannot run on a kernel end it there.
_MOST_ERRORS = 3
#: From so many labs on that executed nothing new it is said, whenever they have doubled.
_QUIET = 8
#: Scripts of each case in a job: some minutes' work beside seconds for the boot.
_EXAMPLES = 32


def add_parser(commands: Any) -> None:
    """Add `explore` to the commands of `pyvmm lab`."""
    parser: ArgumentParser = commands.add_parser(
        "explore",
        help="play the model's random scripts for hours, and keep one of each kind that fails",
        description="Play random scripts of the MODEL cases in labs until the time is over; those"
        " that are under way then come to their end. A script that fails is shrunk, and one of each"
        " kind is kept for 'pyvmm validate --replay'. The same command with the same corpus goes on"
        " where it was. Exit status: 0 nothing failed, 1 something did, 2 usage, 4 nothing could"
        " run, 125 a kernel does not build or boot.",
    )
    parser.add_argument("--hours", type=_hours, required=True, metavar="N", help="0.5 is 30 min")
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME|BZIMAGE",
        help="(default); several take turns",
    )
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="what is found")
    parser.add_argument(
        "-k", metavar="EXPR", default="MODEL", dest="expression", help="cases (%(default)s)"
    )
    parser.add_argument(
        "--model-examples",
        type=arguments.model_examples,
        default=_EXAMPLES,
        metavar="N",
        help="scripts of each case in a lab (%(default)s)",
    )
    lab_engine.add_arguments(parser)
    parser.add_argument("--seed", type=arguments.seed, metavar="SEED", help="of a new corpus")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="(%(default)s)")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE")
    parser.set_defaults(func=guarded(_explore))


def _hours(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= _LONGEST_H:  # false for nan, too
        raise ArgumentTypeError(f"{text} is not a number of hours up to {_LONGEST_H:.0f}")
    return value


def _explore(options: Namespace) -> int:
    from pyvmm.lab.cache import locked
    from pyvmm.lab.errors import NAME_A_FOLDER, LabError, LabUsageError
    from pyvmm.validate.jobs.corpus import Corpus
    from pyvmm.validate.jobs.executed import Executed

    lab_engine.check(options)
    templates = _templates(options)
    workers = lab_engine.labs(options, options.cpus, options.memory)
    where = lab_engine.where(options, workers)
    try:
        options.corpus.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = error.strerror or str(error)
        raise LabUsageError(f"corpus {options.corpus}", cause, NAME_A_FOLDER) from None
    with locked(options.corpus, say, "another exploration"), live_line() as show:
        corpus = Corpus(options.corpus, options.seed)
        executed = Executed(options.corpus)
        exploration = _Exploration(corpus, executed, templates, options.hours * 3600, where)
        say(f"seed {corpus.seed}, {where}, {counted(len(corpus.kinds), 'kind')} known")
        try:
            watch = exploration.watch(show or (lambda line: None))
            exploration.run(lab_engine.engine(options, workers, watch))
        except Interrupted:
            exploration.tell()
            raise
        except (LabError, OSError):
            if exploration.has_run:  # hours before
                exploration.tell()
            raise
    exploration.tell()
    if exploration.seen:
        return FOUND
    if exploration.has_run and exploration.leaves_one_out:
        return LabError.status
    return PASSED if exploration.has_run else NOTHING_RAN


class _Exploration:
    """One call: what it has done of the corpus' work."""

    def __init__(
        self,
        corpus: Corpus,
        executed: Executed,
        templates: Sequence[Job],
        seconds: float,
        where: str,
    ) -> None:
        self.seen: set[str] = set()
        self.has_run = False
        self._corpus = corpus
        self._executed = executed
        self._templates = templates
        self._start = time.monotonic()
        self._until = self._start + seconds
        self._where = where
        self._scripts_before = corpus.scripts
        self._number: dict[str, int] = {}
        self._ended = 0
        self._is_over = False
        self._said: set[str] = set()
        self._ran: set[object] = set()
        #: How many jobs in a row could not run, by kernel.
        self._refused = {each.kernel: 0 for each in templates}

    @property
    def leaves_one_out(self) -> bool:
        """Whether there is a kernel on which nothing could run, or nothing can any more."""
        return any(
            times if kernel not in self._ran else self._is_given_up(kernel)
            for kernel, times in self._refused.items()
        )

    def run(self, engine: Engine) -> None:
        """Until the time is over. Raises :class:`LabError` when nothing can run any more."""
        from pyvmm.errors import PyvmmError
        from pyvmm.lab.errors import LabError

        outcomes = engine(self._jobs())
        with closing(outcomes):
            for job, outcome in outcomes:
                if isinstance(outcome, PyvmmError):
                    if str(outcome) not in self._said:
                        say(str(outcome))
                    self._said.add(str(outcome))
                    self._corpus.leave(self._number.pop(job.name))
                    self._refused[job.kernel] += 1
                    why = f"{_MOST_ERRORS} labs in a row could not run"
                    if all(map(self._is_given_up, self._refused)):
                        raise LabError("explore", why)
                    if self._refused[job.kernel] == _MOST_ERRORS:
                        say(f"kernel {_called(job.kernel)}: {why}; it is left out")
                else:
                    self._refused[job.kernel] = 0
                    self._ran.add(job.kernel)
                    self._take(job, outcome)
        if self._said and not self._ended:
            raise LabError("explore", "no lab could run")

    def _is_given_up(self, kernel: Named | Image | Built) -> bool:
        return self._refused[kernel] >= _MOST_ERRORS

    def _take(self, job: Job, outcome: JobResult) -> None:
        from pyvmm.validate.jobs.run import forget_job

        before = {kind: each.times for kind, each in self._corpus.kinds.items()}
        for kind in self._corpus.take(self._number.pop(job.name), outcome):
            say(f"new: {printable(kind.message)} ({kind.case or kind.kernel})")
        now = self._corpus.kinds
        self.seen |= {kind for kind in now if now[kind].times != before.get(kind)}
        if outcome.counters:
            self._count(job, outcome)
        forget_job(job)
        self._ended += 1
        self.has_run |= not outcome.nothing_ran
        # What cannot run on any of the kernels now will not later.
        self._is_over = self._ended >= len(self._templates) and not self.has_run

    def _count(self, job: Job, outcome: JobResult) -> None:
        """Say what of KVM was executed for the first time, and when nothing is any more."""
        from pyvmm.lab.coverage import merge
        from pyvmm.validate.jobs.run import kernel_of_job
        from pyvmm.validate.kernels.coverage_run import read_packed

        kernel = kernel_of_job(job, say)
        executed = self._executed
        found = merge(read_packed(kernel, each) for each in outcome.counters)
        if new := executed.take(outcome.kernel.sha256, found):
            many = counted(new, "line")
            say(f"{many} of KVM executed for the first time, {executed.lines} in all")
        elif executed.quiet >= _QUIET and not executed.quiet & (executed.quiet - 1):
            say(f"nothing new of KVM executed in the last {executed.quiet} labs")

    def tell(self) -> None:
        """What this call has done, for people."""
        minutes = (time.monotonic() - self._start) / 60
        scripts = self._corpus.scripts - self._scripts_before
        print(
            f"{counted(scripts, 'script')} in {minutes:.1f} min on {self._where}, "
            f"{scripts / max(minutes, 1e-3):.0f} a minute; {self._corpus.scripts} in all"
        )
        if self._executed.rounds:
            print(
                f"{counted(self._executed.lines, 'line')} of KVM executed in "
                f"{counted(self._executed.rounds, 'lab')}, "
                f"nothing new in the last {self._executed.quiet}"
            )
        for kind in self._corpus.kinds.values():
            often = "once" if kind.times == 1 else f"{kind.times} times"
            print(f"{printable(kind.message)}")
            where = ", ".join(str(self._corpus.folder / name) for name in kind.files)
            print(f"    {kind.case or kind.kernel}, {often}: {where or 'no script'}")

    def _jobs(self) -> Iterator[Job]:
        for number in self._corpus.numbers():
            if self._is_over or time.monotonic() > self._until:
                return
            left = [each for each in self._templates if not self._is_given_up(each.kernel)]
            if not left:
                return
            template = left[number % len(left)]
            seed = (self._corpus.seed + number) % (1 << 64)
            job = replace(template, seed=seed)
            self._number[job.name] = number
            yield job

    def watch(self, show: Show) -> Show:
        """What shows how far it is, given a line on the labs."""

        def watch(told: str) -> None:
            left = max(0.0, self._until - time.monotonic()) / 60
            scripts = self._corpus.scripts - self._scripts_before
            kinds = counted(len(self._corpus.kinds), "kind")
            many = counted(scripts, "script")
            show(f"{many}, {kinds} of failure, {left:.0f} min left: {told}")

        return watch


def _called(kernel: Named | Image | Built) -> str:
    return getattr(kernel, "name", "") or getattr(kernel, "image", "")


def _templates(options: Namespace) -> list[Job]:
    """A job on each kernel, still without its seed."""
    from pyvmm.lab.errors import LabUsageError
    from pyvmm.lab.lab import check_machine
    from pyvmm.validate.jobs.job import LONGEST_S
    from pyvmm.validate.run.catalogue import select

    check_machine(options.cpus, options.memory, options.param)
    cases = select(options.expression, model_examples=options.model_examples)
    cases = [each for each in cases if each.examples]
    if not cases:
        raise LabUsageError(f"-k {options.expression!r}", "it chooses no case of the model")
    timeout_s = 60 + sum(each.deadline_s for each in cases)
    if timeout_s > LONGEST_S:
        cause = f"a lab with {counted(len(cases), 'case')} might take {timeout_s / 86400:.0f} days"
        remedy = "play fewer in each: there is no end of labs"
        raise LabUsageError(f"--model-examples {options.model_examples}", cause, remedy)
    return [
        lab_engine.job(options, lab_engine.kernel_of(name), cases, 0, timeout_s)
        for name in options.kernel or ["default"]
    ]
