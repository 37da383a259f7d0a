"""What became of a case."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pyvmm.validate.kit.known import KnownBug


class State(StrEnum):
    """``known``: a bug that upstream has fixed. ``hang``: killed at its deadline. ``crash``: its
    process died. The order is that of a report."""

    KNOWN = "known"
    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    HANG = "hang"
    CRASH = "crash"

    @property
    def bad(self) -> bool:
        return self in (State.FAIL, State.HANG, State.CRASH)

    @property
    def wrong(self) -> bool:
        """Whether the kernel did something wrong, known or not."""
        return self.bad or self is State.KNOWN


@dataclass(frozen=True, slots=True)
class CaseResult:
    """``message`` is empty for pass; for skip it names what is missing. ``bug`` is there for known.
    The ``detail`` of a case about races says how many it provoked. ``scripts`` is how many random
    ones a case of the model played.

    The same failure has the same ``message`` in every run; ``detail`` may differ.
    """

    name: str
    id: str
    title: str
    subject: str
    state: State
    message: str = ""
    detail: str = ""
    duration_s: float = 0.0
    bug: KnownBug | None = None
    scripts: int = 0

    @property
    def words(self) -> str:
        """``message``, and for a known bug its fix."""
        return self.message if self.bug is None else f"{self.message}; {self.bug}"
