"""What the heads of the patches in lab/mutants/ say.

A head is like a mail's: ``Key: value``, a line that begins with a blank goes on. Keys:
Subject and Breaks (what is broken), Plausible (how it could have happened), Caught-by
(``PC7.edges: words of the message``, or ``AT13.edges: splat BUG: how a line begins`` where the
kernel itself cries out; one or more), Select (the ``-k`` that finds it quickly), Always
(yes: tested in every run of the lab lane), License. Where they are needed, Upon, for a patch that
comes after one of the lab's own, on the kernel that is made of that one, Parameters, of the
kernel's command line, and Debug, what the kernel has to watch itself for or must
be able to do; a splat must then name the case. The patch follows an empty line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from pyvmm.lab.build import DEFAULT_VERSION, Recipe, known_recipe
from pyvmm.lab.debug_options import parse_debug
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.sources import default_tarball

FOLDER = Path(__file__).parent / "lab" / "mutants"
MAY_BE_THERE = ("Upon", "Parameters", "Debug")
KEYS = ("Subject", "Breaks", "Plausible", "Caught-by", "Select", "Always", "License")


@dataclass(frozen=True, slots=True)
class Promise:
    """The id and function of a case, and words of the message with which it fails.

    Or, after "splat", how the trouble begins that is in the kernel's log then.
    """

    case: str
    words: str

    def is_kept_by(self, result: dict[str, Any]) -> bool:
        """Whether this result, of ``pyvmm validate --json``, is the promised failure."""
        name, failed = result["name"], result["state"] == "fail"
        return failed and name.partition("[")[0] == self.case and self.words in result["message"]

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
    def recipe(self) -> Recipe:
        """The kernel that it breaks, and the patch upon it."""
        upon = self.value("Upon")
        base = known_recipe(upon) if upon else Recipe(default_tarball(DEFAULT_VERSION))
        assert base is not None, f"there is no kernel {upon!r}"
        return replace(base, patches=(*base.patches, self.patch), debug=self.debug)

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


def _unfolded(value: str) -> str:
    return " ".join(value.split())


def all_mutants() -> list[Mutant]:
    patches = sorted(FOLDER.glob("*.patch"))
    return [Mutant(patch, Parser().parsestr(patch.read_text())) for patch in patches]


def chosen(mutants: Iterable[Mutant], wanted: Collection[str]) -> list[Mutant]:
    """Those that always run; all with ``all``; or those that are named."""
    if not wanted:
        return [each for each in mutants if each.always]
    return [each for each in mutants if "all" in wanted or each.name in wanted]
