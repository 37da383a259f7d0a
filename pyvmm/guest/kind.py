"""What a file is that is no real-mode guest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """``name`` follows "it is"; ``remedy`` says what to do, "" if nothing makes it a guest.

    ``is_loadable`` is False for what has no place in a guest's RAM, so that no mode runs it.
    ``platform`` and ``mode`` name the world that it is a guest of, "" if none is known.
    """

    name: str
    remedy: str = ""
    is_loadable: bool = True
    platform: str = ""
    mode: str = ""
