"""Numbers out of noisy measurements.

A shared machine can only make a batch slower, and for a while all batches. So batches
are short, each side's lower quartile stands for a round, the two sides of a round are
only compared with each other, and the rounds say how far that can be trusted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.99
_RESAMPLES = 1000
# The same measurements give the same interval again.
_SEED = 1


class Interval(NamedTuple):
    """From ``low`` to ``high``, with the confidence of :data:`CONFIDENCE`."""

    low: float
    high: float


def quantile(values: Sequence[float], fraction: float) -> float:
    """The value below which ``fraction`` (0 to 1) of them lie, between two if need be."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    at = int(place)
    above = ordered[min(at + 1, len(ordered) - 1)]
    return ordered[at] + (above - ordered[at]) * (place - at)


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def lower_quartile(values: Sequence[float]) -> float:
    return quantile(values, 0.25)


def bootstrap_of_median(values: Sequence[float]) -> Interval:
    """Where the median of ``values`` may lie: the percentile bootstrap over all of them."""
    random_numbers = random.Random(_SEED)
    count = len(values)
    medians = sorted(median(random_numbers.choices(values, k=count)) for _ in range(_RESAMPLES))
    beyond = (1 - CONFIDENCE) / 2
    return Interval(quantile(medians, beyond), quantile(medians, 1 - beyond))
