"""The clock of exit records is CLOCK_MONOTONIC to within a microsecond, whatever the TSC does."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pyvmm.native import ffi, lib

NS_PER_S = 1_000_000_000
# An interrupt between two readings says nothing about the clock: look often enough.
ATTEMPTS = 1000
NEAR_NS = 1000


@pytest.fixture
def clock() -> Any:
    clock = ffi.new("struct record_clock *")
    lib.record_clock_init(clock)
    return clock


def distance(clock: Any) -> int:
    """Nanoseconds by which a reading lies outside of two readings of CLOCK_MONOTONIC."""
    before: int = lib.monotonic_ns()
    reading: int = lib.record_clock_ns(clock)
    after: int = lib.monotonic_ns()
    return max(0, before - reading, reading - after)


def is_near(clock: Any) -> bool:
    return any(distance(clock) <= NEAR_NS for _ in range(10))


def read_until_calibrated(clock: Any) -> None:
    until = time.monotonic() + 5
    while clock.uses_tsc and not clock.rate:
        lib.record_clock_ns(clock)
        assert time.monotonic() < until, "no rate in five seconds"


def test_readings_stay_near_the_clock(clock: Any) -> None:
    until = time.monotonic() + 0.3
    distances = []
    while time.monotonic() < until:
        distances.append(distance(clock))
    distances.sort()
    # Preempted between the readings of the kernel's clock or not: all are inside them.
    assert distances[-1] <= NEAR_NS, distances[-5:]


def test_readings_never_go_back(clock: Any) -> None:
    latest = 0
    for _ in range(100_000):
        reading: int = lib.record_clock_ns(clock)
        assert reading >= latest
        latest = reading


def test_without_a_constant_tsc_the_clock_is_asked(clock: Any) -> None:
    clock.uses_tsc = False
    assert all(distance(clock) == 0 for _ in range(100))
    assert clock.rate == 0


@pytest.mark.parametrize("ticks", [-(10**12), 10**12, -(1 << 62), 1 << 62])
def test_a_tsc_that_jumped_is_noticed_at_once(clock: Any, ticks: int) -> None:
    """As after suspend, or in a virtual machine that was moved."""
    read_until_calibrated(clock)
    clock.anchor_tsc = (clock.anchor_tsc + ticks) % (1 << 64)
    assert is_near(clock)


def test_a_small_jump_lasts_no_longer_than_an_anchor(clock: Any) -> None:
    read_until_calibrated(clock)
    if not clock.uses_tsc:
        pytest.skip("this CPU promises no constant TSC")
    clock.anchor_tsc -= clock.lifetime // 4  # readings are 2.5 ms ahead
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        lib.record_clock_ns(clock)
    assert is_near(clock)


def test_a_wrong_rate_is_found_out(clock: Any) -> None:
    read_until_calibrated(clock)
    clock.rate += clock.rate // 50
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        lib.record_clock_ns(clock)
    assert is_near(clock)
