"""The slot table: numbers given out once, ranges that do not overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import ConfigurationError
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.memory.slots import SlotTable

PAGE_RANGES = st.tuples(st.integers(0, 40), st.integers(1, 10))


@given(st.lists(PAGE_RANGES, max_size=20))
def test_ranges_never_overlap(wanted: list[tuple[int, int]]) -> None:
    table = SlotTable(100)
    taken: set[int] = set()
    for first, count in wanted:
        pages = set(range(first, first + count))
        if pages & taken:
            with pytest.raises(ConfigurationError, match="overlaps"):
                table.claim_range("range", first * PAGE_SIZE, count * PAGE_SIZE)
        else:
            table.claim_range("range", first * PAGE_SIZE, count * PAGE_SIZE)
            taken |= pages


@given(st.lists(st.integers(0, 30), max_size=20))
def test_slot_numbers_are_given_out_once(counts: list[int]) -> None:
    table = SlotTable(100)
    claimed = table.claim_range("range", 0, PAGE_SIZE)
    given_out: list[int] = []
    for count in counts:
        if count > 100 - len(given_out):
            with pytest.raises(ConfigurationError, match="memslots"):
                table.claim_slots(count, claimed)
            continue
        first = table.claim_slots(count, claimed)
        given_out += range(first, first + count)
    assert given_out == list(range(len(given_out)))
    assert table.free == 100 - len(given_out)


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (0, 0),
        (0, -PAGE_SIZE),
        (-PAGE_SIZE, PAGE_SIZE),
        (1, PAGE_SIZE),
        (0, 1),
        (1 << 52, PAGE_SIZE),
    ],
)
def test_what_is_no_range_is_refused(gpa: int, size: int) -> None:
    table = SlotTable(100)
    with pytest.raises(ConfigurationError):
        table.claim_range("range", gpa, size)
    table.claim_range("range", 0, PAGE_SIZE)
