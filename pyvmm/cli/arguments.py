"""Numbers on the command line, and what is said of a word that is none."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

_LONGEST_S = 1e6


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser of decimal numbers in these bounds, for argparse's ``type``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise ArgumentTypeError(f"{text} is not a number from {least} to {most}")
        return int(text)

    return parse


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 64:
        raise ArgumentTypeError(f"{text} is not a number from 0 to 2^64 - 1")
    return int(text)


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
