"""What became of a case."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """``hang``: killed at its deadline. ``crash``: its process died."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    HANG = "hang"
    CRASH = "crash"

    @property
    def bad(self) -> bool:
        return self in (State.FAIL, State.HANG, State.CRASH)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """``message`` is empty for pass; for skip it names what is missing.

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
