"""The log-linear histogram against a sorted list."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.native import ffi, lib
from pyvmm.report import Latency

VALUES = st.one_of(
    st.integers(0, 100),
    st.integers(0, 1 << 20),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 31, 32, 33, 63, 64, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
)


def histogram_of(values: list[int]) -> Any:
    histogram = ffi.new("struct histogram *")
    lib.histogram_clear(histogram)
    for value in values:
        lib.histogram_record(histogram, value)
    return histogram


def exact(values: list[int], fraction: float) -> int:
    """The value at or below which that fraction of all lie."""
    rank = min(max(int(fraction * len(values) + 0.5), 1), len(values))
    return sorted(values)[rank - 1]


@given(st.lists(VALUES, min_size=1), st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_percentile_is_within_a_bucket_of_the_sorted_list(
    values: list[int], fraction: float
) -> None:
    found = lib.histogram_percentile(histogram_of(values), fraction)
    wanted = exact(values, fraction)
    assert abs(found - wanted) <= wanted / 32
    assert min(values) <= found <= max(values)


@given(st.lists(VALUES))
def test_count_sum_and_extremes_are_exact(values: list[int]) -> None:
    histogram = histogram_of(values)
    assert histogram.count == len(values) == sum(histogram.buckets)
    assert histogram.sum == sum(values) % (1 << 64)
    if values:
        assert (histogram.min, histogram.max) == (min(values), max(values))


@given(st.lists(VALUES), st.lists(VALUES))
def test_adding_two_is_recording_both(first: list[int], second: list[int]) -> None:
    total = histogram_of(first)
    lib.histogram_add(total, histogram_of(second))
    both = histogram_of(first + second)
    assert bytes(ffi.buffer(total)) == bytes(ffi.buffer(both))


@given(VALUES)
def test_a_value_falls_into_the_bucket_that_begins_at_or_below_it(value: int) -> None:
    buckets = list(histogram_of([value]).buckets)
    bucket = buckets.index(1)
    assert lib.histogram_bucket_floor(bucket) <= value
    if bucket + 1 < len(buckets):
        assert value < lib.histogram_bucket_floor(bucket + 1)


def test_buckets_are_at_most_a_32nd_wide_and_in_order() -> None:
    count = len(histogram_of([]).buckets)
    floors = [lib.histogram_bucket_floor(bucket) for bucket in range(count)]
    assert floors == sorted(set(floors))
    assert all(high - low <= max(low // 32, 1) for low, high in itertools.pairwise(floors))


def test_an_empty_histogram_has_no_latency() -> None:
    assert lib.histogram_percentile(histogram_of([]), 0.5) == 0
    assert Latency.of(histogram_of([])) == Latency()


@pytest.mark.parametrize("fraction", [-1.0, 2.0, float("inf")])
def test_fractions_beyond_the_ends_give_the_ends(fraction: float) -> None:
    found = lib.histogram_percentile(histogram_of([5, 7]), fraction)
    assert found in (5, 7)
