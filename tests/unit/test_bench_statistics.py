"""Quantiles and intervals, and what the comparison makes of noise like a shared machine's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.bench.comparison import Verdict, compare
from pyvmm.bench.result import BenchResult, CaseResult
from pyvmm.bench.statistics import bootstrap_of_median, lower_quartile, median, quantile

NUMBERS = st.floats(min_value=0.001, max_value=1e9)
ROUNDS, BATCHES = 10, 60


@given(st.lists(NUMBERS, min_size=1), st.floats(min_value=0, max_value=1))
def test_a_quantile_lies_between_the_extremes(values: list[float], fraction: float) -> None:
    assert min(values) * 0.999999 <= quantile(values, fraction) <= max(values) * 1.000001


def test_quantiles_of_few() -> None:
    assert quantile([3.0], 0.9) == 3.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert lower_quartile([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


@given(st.lists(NUMBERS, min_size=2, max_size=12))
def test_the_interval_holds_the_median_and_nothing_unseen(values: list[float]) -> None:
    low, high = bootstrap_of_median(values)
    assert min(values) * 0.999999 <= low <= high <= max(values) * 1.000001
    assert low <= median(values) * 1.000001 and median(values) <= high * 1.000001


def test_the_same_numbers_give_the_same_interval() -> None:
    values = [1.0, 1.1, 0.9, 1.3]
    assert bootstrap_of_median(values) == bootstrap_of_median(values)


def noisy_batch(rng: random.Random, ns: float, slowness: float) -> float:
    """A batch's time: never less than it takes, often a little more, sometimes preempted."""
    taken = ns * slowness * (1 + rng.expovariate(1 / 0.02))
    return taken + (rng.expovariate(1 / 40_000) if rng.random() < 0.15 else 0)


def measured(rng: random.Random, slower: float = 1.0) -> BenchResult:
    """What measure.run() would make of one case on a machine whose speed wanders."""
    ratios = []
    for _ in range(ROUNDS):
        slowness = rng.uniform(1.0, 1.4)
        placement = rng.gauss(1.0, 0.003)
        ours = [noisy_batch(rng, 8000 * slower * placement, slowness) for _ in range(BATCHES)]
        floors = [noisy_batch(rng, 8000, slowness) for _ in range(BATCHES)]
        ratios.append(lower_quartile(ours) / lower_quartile(floors))
    low, high = bootstrap_of_median(ratios)
    case = CaseResult("case", 8000.0, 8000.0, median(ratios), (low, high), {}, {})
    return BenchResult({}, (case,))


@pytest.mark.parametrize(
    ("slower", "wanted"), [(1.0, Verdict.SAME), (1.05, Verdict.WORSE), (1 / 1.05, Verdict.BETTER)]
)
def test_noise_is_told_from_a_change_of_five_percent(
    rng: random.Random, slower: float, wanted: Verdict
) -> None:
    verdicts = [
        compare(measured(rng), measured(rng, slower)).changes[0].verdict for _ in range(100)
    ]
    assert verdicts.count(wanted) >= 97, verdicts
