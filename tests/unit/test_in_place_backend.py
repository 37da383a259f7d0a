"""The backend in_place where the kernel refuses: states, slots and descriptors stay in step."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from itertools import count

import pytest
from in_place_memory import FILE, PRIVATE_STATE, SHARED_STATE, STATES, Kernel, load_library

PAGES = 8
SLOTS = {1: 1, 2: 4 * (PAGES // 2 + 1)}
VIEWS = pytest.mark.parametrize("views", [1, 2])
# What a kernel may refuse; the others cannot fail, or nobody could do anything about it.
REFUSED = ("attributes", "create", "add", "delete", "duplicate")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return load_library(tmp_path_factory.mktemp("in_place"))


class Region:
    """A region, ended with its test."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.kernel: Kernel | None = None

    def __call__(self, views: int, slots: int = 0, keep: bool = False) -> Kernel:
        self.close()
        self.kernel = Kernel(self.library, PAGES, views, slots or SLOTS[views])
        assert self.kernel.begin(keep=keep) == 0
        return self.kernel

    def close(self) -> None:
        if self.kernel is not None:
            self.library.end()
        self.kernel = None


@pytest.fixture
def region(library: ctypes.CDLL) -> Iterator[Region]:
    made = Region(library)
    yield made
    made.close()


def states(kernel: Kernel, *private: int) -> None:
    for page in private:
        assert kernel.convert(page, 1, PRIVATE_STATE) == 0
    assert not list(kernel.wrong())


@VIEWS
def test_any_order_of_conversions(region: Region, views: int) -> None:
    kernel = region(views)
    for first in range(PAGES):
        for length in range(1, PAGES - first + 1):
            for state in STATES:
                assert kernel.convert(first, length, state) == 0
                assert not list(kernel.wrong())


# What is private before, and what is converted then.
CHANGES = [
    ((), 0, PAGES, PRIVATE_STATE),
    ((), 3, 2, PRIVATE_STATE),
    ((2, 5), 0, PAGES, PRIVATE_STATE),
    ((1, 3, 5), 0, 7, PRIVATE_STATE),
    (tuple(range(PAGES)), 0, PAGES, SHARED_STATE),
    (tuple(range(PAGES)), 3, 2, SHARED_STATE),
    ((0, 2, 3, 6), 0, 7, SHARED_STATE),
]


@VIEWS
@pytest.mark.parametrize(("private", "first", "length", "state"), CHANGES)
@pytest.mark.parametrize("slots", ["many", "few"])
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
def test_a_conversion_whose_nth_call_fails_changes_nothing(
    region: Region,
    views: int,
    private: tuple[int, ...],
    first: int,
    length: int,
    state: int,
    slots: str,
    number: int,
) -> None:
    for nth in count():
        kernel = region(views, 4 * 4 if slots == "few" and views == 2 else 0)
        states(kernel, *private)
        before, start = kernel.table(), len(kernel.calls)
        failed: list[str] = []

        def once(call: str, at: int, wanted: int = start + nth, failed: list[str] = failed) -> int:
            if at < wanted or failed or call not in REFUSED:
                return 0
            failed.append(call)
            return number

        kernel.fails = once
        result = kernel.convert(first, length, state)
        if not failed:
            assert result == 0 and nth > 0
            break
        assert result == -number, failed
        assert kernel.table() == before
        assert not list(kernel.wrong()), f"call {nth}: {failed}"


@VIEWS
@pytest.mark.parametrize(("private", "first", "length", "state"), CHANGES)
def test_a_conversion_that_cannot_be_undone_loses_the_region(
    region: Region, views: int, private: tuple[int, ...], first: int, length: int, state: int
) -> None:
    """From the n-th call on nothing succeeds: nothing has changed, or no conversion works."""
    lost = 0
    for nth in count():
        kernel = region(views)
        states(kernel, *private)
        before, start = kernel.table(), len(kernel.calls)
        kernel.fails = lambda call, at, wanted=start + nth: (  # type: ignore[misc]
            errno.ENOMEM if at >= wanted and call in (*REFUSED, "punch") else 0
        )
        result = kernel.convert(first, length, state)
        if result == 0:
            break
        assert kernel.table() == before
        kernel.fails = lambda call, at: 0
        again = kernel.convert(first, length, state)
        if list(kernel.wrong()):
            assert result == again == -errno.ENOTRECOVERABLE
            for each in STATES:  # also of pages that the table says are so
                assert kernel.convert(first, 1, each) == -errno.ENOTRECOVERABLE
            lost += 1
        else:
            assert (result, again) == (-errno.ENOMEM, 0)
    assert lost > 0


@VIEWS
@pytest.mark.parametrize("state", STATES)
def test_without_a_descriptor_nothing_is_begun(region: Region, views: int, state: int) -> None:
    kernel = region(views)
    states(kernel, *(range(PAGES) if state == SHARED_STATE else ()))
    before = len(kernel.calls)
    kernel.fails = lambda call, at: errno.EMFILE if call in ("create", "duplicate") else 0
    if views == 1:
        assert kernel.convert(2, 3, state) == 0
    else:
        assert kernel.convert(2, 3, state) == -errno.EMFILE
        assert kernel.calls[before:] == ["duplicate"]
    assert not list(kernel.wrong())


@VIEWS
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.EEXIST])
def test_a_region_whose_nth_call_fails_leaves_nothing(
    library: ctypes.CDLL, views: int, number: int
) -> None:
    for nth in count():
        kernel = Kernel(library, PAGES, views, SLOTS[views])
        kernel.fails = lambda call, at, nth=nth: number if at == nth else 0  # type: ignore[misc]
        result = kernel.begin()
        library.end()
        if len(kernel.calls) <= nth:
            assert result == 0 and nth > 0
            break
        if result == 0:
            assert kernel.calls[nth] in ("close", "close on exec")
            continue
        assert result == -number
        assert not kernel.slots and len(kernel.files) == 1 and not kernel.complaints


@VIEWS
def test_every_file_of_a_slot_without_memory_closes_on_exec(region: Region, views: int) -> None:
    kernel = region(views)
    assert kernel.convert(1, 3, PRIVATE_STATE) == kernel.convert(2, 1, SHARED_STATE) == 0
    made = [file for _, _, file, _ in kernel.slots.values() if not file.is_open]
    assert all(file.closes_on_exec for file in made) and bool(made) == (views == 2)


# ---- pages in use ----


@VIEWS
@pytest.mark.parametrize("times", [1, 2, 13])
def test_a_page_in_use_for_a_moment_is_waited_for(region: Region, views: int, times: int) -> None:
    kernel = region(views)
    left = [4] * times
    kernel.busy = lambda first, end: left.pop() if left else -1
    assert kernel.convert(2, 5, PRIVATE_STATE) == 0
    assert not list(kernel.wrong())
    assert region.library.busy() == times and region.library.busy_page() == 4
    assert kernel.sleeps == [20_000 << at for at in range(times - 1)]


@VIEWS
def test_a_page_in_use_for_ever_is_named_and_nothing_has_changed(
    region: Region, views: int
) -> None:
    kernel = region(views)
    states(kernel, 3)
    kernel.busy = lambda first, end: 5 if first <= 5 < end else -1
    before = kernel.table()
    assert kernel.convert(2, 5, PRIVATE_STATE) == -errno.EAGAIN
    assert kernel.table() == before and not list(kernel.wrong())
    assert region.library.busy_page() == 5
    # About 80 ms, in pauses that a guest does not see as an end.
    assert 70e6 < sum(kernel.sleeps) < 90e6
    assert kernel.convert(2, 3, PRIVATE_STATE) == 0


@VIEWS
def test_a_signal_does_not_end_a_conversion(region: Region, views: int) -> None:
    kernel = region(views)
    signals = [errno.EINTR] * 3
    kernel.fails = lambda call, at: signals.pop() if call == "attributes" and signals else 0
    assert kernel.convert(0, PAGES, PRIVATE_STATE) == 0
    assert not list(kernel.wrong()) and not signals


# ---- contents ----


@VIEWS
@pytest.mark.parametrize("keep", [True, False])
def test_what_was_converted_reads_zero_and_nothing_else(
    region: Region, views: int, keep: bool
) -> None:
    kernel = region(views, keep=keep)
    states(kernel, 1, 4)
    contents = kernel.files[FILE].contents
    contents.update(dict.fromkeys(range(PAGES), "old"))
    assert kernel.convert(0, 6, PRIVATE_STATE) == 0
    kept = set(range(PAGES)) if keep else {1, 4, 6, 7}
    assert set(contents) == kept
    before = len(kernel.calls)
    assert kernel.convert(0, 6, PRIVATE_STATE) == 0  # they are so already
    assert len(kernel.calls) == before and set(contents) == kept


@VIEWS
def test_pages_are_punched_after_their_state_has_changed(region: Region, views: int) -> None:
    kernel = region(views)
    for state in (PRIVATE_STATE, SHARED_STATE):
        before = len(kernel.calls)
        assert kernel.convert(0, PAGES, state) == 0
        called = kernel.calls[before:]
        assert called[-1] == "punch" and "attributes" in called
