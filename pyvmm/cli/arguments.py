"""Numbers and files on the command line, and what is said of a word that is none."""

from __future__ import annotations

import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable

from pyvmm.errors import ConfigurationError

_LONGEST_S = 1e6


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser of decimal numbers in these bounds, for argparse's ``type``."""

    def parse(text: str) -> int:
        number = _decimal(text)
        if number is None or not least <= number <= most:
            raise ArgumentTypeError(f"{text} is not a number from {least} to {most}")
        return number

    return parse


def seed(text: str) -> int:
    number = _decimal(text)
    if number is None or number >= 1 << 64:
        raise ArgumentTypeError(f"{text} is not a number from 0 to 2^64 - 1")
    return number


def _decimal(text: str) -> int | None:
    """None for what is no number, and for more digits than Python takes."""
    try:
        return int(text) if text.isdecimal() else None
    except ValueError:
        return None


def positive(text: str) -> float:
    value = _float(text)
    if not 0 < value <= 1e6:  # false for nan, too
        raise ArgumentTypeError(f"{text} is not a number more than 0")
    return value


def seconds(text: str) -> float:
    value = _float(text)
    if not 0 < value <= _LONGEST_S:
        raise ArgumentTypeError(
            f"{text} is not a number of seconds, more than 0 and at most {_LONGEST_S:.0f}"
        )
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


#: What several commands take.
workers = whole_number(1, 256)
model_examples = whole_number(1, 1_000_000)


def refuse_to_share(*files: tuple[str, str | None], inputs: Iterable[tuple[str, str]] = ()) -> None:
    """One file for two of them, or for one that is read, would be overwritten; devices and pipes
    are not."""
    seen = {os.path.realpath(name): option for option, name in inputs}
    for option, name in files:
        path = os.path.realpath(name or "")
        if not name or (os.path.exists(path) and not os.path.isfile(path)):
            continue
        if path in seen:
            raise ConfigurationError(
                f"{option} {name}", f"it is {seen[path]}'s file, too", "name another one"
            )
        seen[path] = option
