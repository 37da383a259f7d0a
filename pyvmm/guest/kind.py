"""What a file is that is no real-mode guest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """``name`` follows "it is"; ``remedy`` says what to do, "" if nothing makes it a guest.

    ``is_loadable`` is False for what has no place in a guest's RAM, so that no mode runs it.
    """

    name: str
    remedy: str = ""
    is_loadable: bool = True
