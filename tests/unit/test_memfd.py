"""Memory files against a model: which pages are present, and what they hold."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyvmm import ClosedError, KvmError, Memfd
from pyvmm.kvm.mapping import PAGE_SIZE, Mapping

PAGES = 16
SIZE = PAGES * PAGE_SIZE

RANGES = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(
    lambda pair: (pair[0], min(pair[1], PAGES - pair[0]))
)


def pages_of(ranges: Iterable[tuple[int, int]]) -> set[int]:
    """The pages of ranges, which must be whole, in order and apart."""
    end = -1
    found: set[int] = set()
    for offset, size in ranges:
        assert offset > end and size > 0 and offset % PAGE_SIZE == size % PAGE_SIZE == 0
        end = offset + size
        found |= set(range(offset // PAGE_SIZE, end // PAGE_SIZE))
    return found


class MemfdAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.memfd = Memfd("model", SIZE)
        self.mapping = self.memfd.map()
        self.present = [False] * PAGES
        self.touched = [False] * PAGES
        self.contents = [0] * PAGES

    @rule(range_=RANGES)
    def allocate(self, range_: tuple[int, int]) -> None:
        first, count = range_
        self.memfd.allocate(first * PAGE_SIZE, count * PAGE_SIZE)
        self.present[first : first + count] = [True] * count

    @rule(range_=RANGES)
    def punch(self, range_: tuple[int, int]) -> None:
        first, count = range_
        self.memfd.punch(first * PAGE_SIZE, count * PAGE_SIZE)
        self.present[first : first + count] = [False] * count
        self.touched[first : first + count] = [False] * count
        self.contents[first : first + count] = [0] * count

    @rule(page=st.integers(0, PAGES - 1), value=st.integers(0, 255))
    def write(self, page: int, value: int) -> None:
        self.mapping.view[page * PAGE_SIZE + value] = value
        self.mapping.view[page * PAGE_SIZE] = value
        self.present[page] = self.touched[page] = True
        self.contents[page] = value

    @invariant()
    def presence_agrees(self) -> None:
        data, holes = pages_of(self.memfd.data()), pages_of(self.memfd.holes())
        assert data | holes == set(range(PAGES)) and not data & holes
        # Of what is allocated and was never touched the kernel says now this, now that.
        assert {page for page in range(PAGES) if self.touched[page]} <= data
        assert data <= {page for page in range(PAGES) if self.present[page]}
        assert self.memfd.allocated_bytes() == sum(self.present) * PAGE_SIZE

    @rule()
    def contents_agree(self) -> None:
        # Reading through the descriptor allocates nothing.
        fd = self.memfd.fileno()
        assert [os.pread(fd, 1, page * PAGE_SIZE)[0] for page in range(PAGES)] == self.contents

    def teardown(self) -> None:
        if hasattr(self, "memfd"):
            self.mapping.close()
            self.memfd.close()


TestMemfdAgainstModel = MemfdAgainstModel.TestCase
TestMemfdAgainstModel.settings = settings(max_examples=30, stateful_step_count=20)


def test_sealed_it_keeps_its_size_and_can_still_be_punched() -> None:
    with Memfd("sealed", SIZE) as memfd:
        memfd.seal()
        assert memfd.seals() == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        for size in (0, 2 * SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(memfd.fileno(), size)
        memfd.allocate(0, SIZE)
        memfd.punch(0, SIZE)
        assert memfd.allocated_bytes() == 0


def test_sealed_against_seals_it_takes_no_more() -> None:
    with Memfd("sealed", SIZE) as memfd:
        memfd.seal(fcntl.F_SEAL_SEAL)
        with pytest.raises(KvmError) as caught:
            memfd.seal()
        assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (-PAGE_SIZE, PAGE_SIZE), (0, -1)])
def test_senseless_ranges_are_refused(offset: int, size: int) -> None:
    with Memfd("senseless", SIZE) as memfd:
        for call in (memfd.allocate, memfd.punch):
            with pytest.raises((KvmError, OverflowError)):
                call(offset, size)


def test_allocating_beyond_the_end_does_not_make_it_larger() -> None:
    with Memfd("end", SIZE) as memfd:
        memfd.allocate(SIZE, PAGE_SIZE)
        assert os.fstat(memfd.fileno()).st_size == SIZE
        assert list(memfd.data()) == []


def test_a_mapping_outlives_the_file_and_a_view_the_mapping() -> None:
    memfd = Memfd("outlived", SIZE)
    mapping = memfd.map(PAGE_SIZE, PAGE_SIZE)
    memfd.close()
    view = mapping.view
    mapping.close()
    view[0] = 7
    assert view[0] == 7
    with pytest.raises(ClosedError):
        _ = mapping.view
    view.release()


def test_mapping_at_an_offset_shows_that_part() -> None:
    with Memfd("part", SIZE) as memfd:
        os.pwrite(memfd.fileno(), b"here", 3 * PAGE_SIZE)
        part = memfd.map(3 * PAGE_SIZE)
        assert part.size == SIZE - 3 * PAGE_SIZE
        assert bytes(part.view[:4]) == b"here"
        part.close()


@pytest.mark.parametrize("size", [0, 1 << 62])
def test_a_mapping_that_cannot_be_is_an_error(size: int) -> None:
    with pytest.raises(KvmError, match="mmap"):
        Mapping(size)


@pytest.mark.parametrize("size", [-1, 1 << 63])
def test_a_file_that_cannot_be_is_an_error_and_leaves_nothing(size: int, no_leak: None) -> None:
    with pytest.raises((KvmError, OverflowError)):
        Memfd("impossible", size)


def test_use_after_close() -> None:
    memfd = Memfd("closed", SIZE)
    memfd.close()
    memfd.close()
    assert memfd.closed
    for call in (
        memfd.fileno,
        memfd.map,
        memfd.seal,
        memfd.seals,
        memfd.allocated_bytes,
        lambda: memfd.allocate(0, PAGE_SIZE),
        lambda: memfd.punch(0, PAGE_SIZE),
        lambda: list(memfd.data()),
        lambda: list(memfd.holes()),
    ):
        with pytest.raises(ClosedError, match="memfd closed"):
            call()


def test_descriptor_is_not_inherited() -> None:
    with Memfd("private", SIZE) as memfd:
        assert not os.get_inheritable(memfd.fileno())
