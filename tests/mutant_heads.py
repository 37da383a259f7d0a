"""What the heads of the patches in lab/mutants/ and lab/realbugs/ say.

A head is like a mail's: ``Key: value``, a line that begins with a blank goes on. Keys:
Subject and Breaks (what is broken), Plausible (how it could have happened), Caught-by
(``PC7.edges: words of the message``, or ``AT13.edges: splat BUG: how a line begins`` where the
kernel itself cries out; one or more), Select (the ``-k`` that finds it quickly), Always
(yes: tested in every run of the lab lane), License. Where they are needed, Upon, the kernel that
it comes after (one of the lab's own, or a version), Parameters, of the
kernel's command line, Memory, the lab's in MiB, and Debug, what the kernel has to watch itself
for or must be able to do; a splat must then name the case. The patch follows an empty line.

A real bug has, instead of Plausible, the fix that is taken back: Fix (twelve digits and the title
of the commit), Date (the author's, in UTC; a month without a day is when Linux took it) and
Release, the first that has it. A kernel that lacks the fix by itself needs no patch; its cases
say ``known``, and the words are ``known`` and the commit then. A bug that nothing sees has
Not-caught, with the reason, and no Caught-by; Select has what was tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import Parser
from pathlib import Path

from pyvmm.lab.build import DEFAULT_VERSION, Recipe, known_recipe
from pyvmm.lab.debug_options import parse_debug
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.sources import default_tarball, patched_files
from pyvmm.validate.jobs.job import Job, Named
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

FOLDER = Path(__file__).parent / "lab" / "mutants"
REAL_BUGS = FOLDER.with_name("realbugs")
MAY_BE_THERE = ("Upon", "Parameters", "Memory", "Debug")
KEYS = ("Subject", "Breaks", "Plausible", "Caught-by", "Select", "Always", "License")
KEYS_OF_REAL_BUGS = (
    *("Subject", "Fix", "Date", "Release", "Breaks", "Caught-by", "Select", "Always", "License"),
)


@dataclass(frozen=True, slots=True)
class Promise:
    """The id and function of a case, and words of the message with which it fails.

    Or, after "splat", how the trouble begins that is in the kernel's log then.
    """

    case: str
    words: str

    def is_kept_by(self, result: CaseResult) -> bool:
        """Whether this result is what was promised."""
        first, _, commit = self.words.partition(" ")
        if first == "known":
            is_it = result.bug is not None and result.bug.commit == commit
        else:
            is_it = result.state is State.FAIL and self.words in result.message
        return is_it and result.name.partition("[")[0] == self.case

    def is_kept_by_log(self, title: str) -> bool:
        """Whether this trouble in the kernel's log is what was promised."""
        first, _, begins = self.words.partition(" ")
        return first == "splat" and title.startswith(begins)

    def is_named_by(self, splat: Splat) -> bool:
        """Whether it is, and came in the middle of the promised case."""
        cases = {name.partition("[")[0] for name in splat.cases}
        return self.is_kept_by_log(splat.title) and self.case in cases


@dataclass(frozen=True, slots=True)
class Mutant:
    """A kernel that is broken on purpose."""

    patch: Path
    head: Message

    @property
    def name(self) -> str:
        return self.patch.stem

    @property
    def kernel_name(self) -> str:
        kind = "real" if self.patch.parent == REAL_BUGS else "mutant"
        return f"{kind}-{self.name}"

    @property
    def recipe(self) -> Recipe:
        """The kernel that it breaks, and the patch upon it."""
        upon = self.value("Upon")
        base = known_recipe(upon) if upon else Recipe(default_tarball(DEFAULT_VERSION))
        assert base is not None, f"there is no kernel {upon!r}"
        patches = (self.patch,) if patched_files(self.patch) else ()
        return replace(base, patches=(*base.patches, *patches), debug=self.debug)

    @property
    def debug(self) -> tuple[str, ...]:
        """What the kernel watches itself for."""
        wanted = self.value("Debug")
        return parse_debug(wanted) if wanted else ()

    @property
    def is_told_by_the_log(self) -> bool:
        """Whether only a kernel that watches itself sees it."""
        return bool(self.debug) and all(each.words.startswith("splat ") for each in self.promises)

    @property
    def is_known(self) -> bool:
        """Whether a kernel lacks the fix by itself, and the cases say so."""
        return bool(self.promises) and all(
            each.words.startswith("known ") for each in self.promises
        )

    @property
    def parameters(self) -> list[str]:
        """What the kernel is booted with."""
        return self.value("Parameters").split()

    @property
    def select(self) -> str:
        return self.value("Select")

    @property
    def always(self) -> bool:
        return self.value("Always") == "yes"

    @property
    def promises(self) -> list[Promise]:
        lines = (_unfolded(line) for line in self.head.get_all("Caught-by", []))
        return [Promise(*(part.strip() for part in line.split(":", 1))) for line in lines]

    def value(self, key: str) -> str:
        return _unfolded(self.head.get(key, ""))

    def job(self, seed: int) -> Job:
        """The cases that find it quickly, on its kernel."""
        job = Job(
            Named(self.kernel_name),
            tuple(each.name for each in select(self.select)),
            seed,
            parameters=tuple(self.parameters),
            timeout_s=400.0,
        )
        memory = self.value("Memory")
        return replace(job, memory_mib=int(memory)) if memory else job

    def is_caught_by(self, done: JobResult) -> bool:
        """Whether a promise is kept by what came of its job."""
        troubles = [each.splat for each in done.run.trouble]
        if self.is_told_by_the_log:
            return any(each.is_named_by(splat) for each in self.promises for splat in troubles)
        titles = [splat.title for splat in troubles]
        results = done.run.results
        return any(
            any(map(promise.is_kept_by_log, titles)) or any(map(promise.is_kept_by, results))
            for promise in self.promises
        )


def _unfolded(value: str) -> str:
    return " ".join(value.split())


def all_mutants(folder: Path = FOLDER) -> list[Mutant]:
    patches = sorted(folder.glob("*.patch"))
    return [Mutant(patch, Parser().parsestr(patch.read_text())) for patch in patches]


def chosen(mutants: Iterable[Mutant], wanted: Collection[str]) -> list[Mutant]:
    """Those that always run; all with ``all``; or those that are named."""
    if not wanted:
        return [each for each in mutants if each.always]
    return [each for each in mutants if "all" in wanted or each.name in wanted]
