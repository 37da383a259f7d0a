"""What can be measured: a case has a name, and a bench knows how to measure one or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from pyvmm.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Promise:
    """What a case may cost: a ratio to its floor, or so many nanoseconds more."""

    ratio: float = math.inf
    more_ns: float = math.inf

    def __str__(self) -> str:
        if self.ratio < math.inf:
            return f"at most {self.ratio - 1:.0%} more"
        return f"at most {self.more_ns:,.0f} ns more"

    def kept(self, floor_ns: float, ratio: float) -> bool:
        return ratio <= self.ratio and (ratio - 1) * floor_ns <= self.more_ns


@dataclass(frozen=True, slots=True)
class Case:
    """A name to know the case by, a title to understand it, and what is promised."""

    name: str
    title: str
    promise: Promise | None = None


# Nanoseconds per operation, in the order of an experiment's cases.
Times = Sequence[float]


class Experiment(Protocol):
    """What measures one case or several at once; set up once for each round."""

    def ours(self, operations: int) -> Times:
        """Do so many operations by way of pyvmm, recording off."""

    def floor(self, operations: int) -> Times:
        """Do as many from bare C."""

    def sample(self, operations: int, latencies: Sequence[Any]) -> Sequence[dict[str, float]]:
        """Do as many by way of pyvmm, each operation's time into its case's histogram.

        Returns for each case what :attr:`Bench.split` makes its split of, or nothing.
        """


@dataclass(frozen=True, slots=True)
class Bench:
    """Cases that one experiment measures. ``set_up`` raises UnsupportedError to skip them.

    ``pinned`` experiments run on one CPU. ``least`` and ``most`` limit a batch's operations.
    ``split`` turns what :meth:`Experiment.sample` measured into parts that add up.
    """

    cases: tuple[Case, ...]
    set_up: Callable[[ExitStack], Experiment]
    pinned: bool = True
    least: int = 1
    most: int = 1 << 16
    split: Callable[[dict[str, float]], dict[str, float]] = dict


def select(benches: Iterable[Bench], word: str) -> list[Bench]:
    """The benches with a case whose name contains ``word``."""
    chosen = [each for each in benches if any(word in case.name for case in each.cases)]
    if not chosen:
        raise ConfigurationError(f"-k {word}", "no case has that in its name", "see --list")
    return chosen
