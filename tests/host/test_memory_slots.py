"""The emulated backend without PROT_NONE windows: memslots come and go, as on most hosts."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_heads import Head, check_report, run_guest
from hypothesis import given, settings
from hypothesis import strategies as st
from snippets import PAGE, PAGES, PRIVATE, SHARED, passing, touches

import pyvmm.machine
from pyvmm import ConfigurationError, Kvm, KvmError, Machine, PageState, load_guest
from pyvmm.guest.shipped import guests_dir
from pyvmm.memory.backends import BACKENDS
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism

P, S = PageState.PRIVATE, PageState.SHARED
GUESTS = ("convert", "doorbell", "storm", "smp", "strings", "exec", "hostile")


@pytest.fixture(autouse=True)
def slots_mechanism() -> Iterator[None]:
    """Every machine of this module uses memslots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pyvmm.machine, "choose_backend", lambda kvm, name: (BACKENDS["emulated"], MECHANISM)
        )
        yield


MECHANISM = Mechanism.SLOTS


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_guest_ends_as_its_head_says(name: str, vcpus: int) -> None:
    path = Path(guests_dir(), f"{name}.S")
    report = run_guest(path, Head.of(path), "", vcpus)
    assert report.mechanism == "slots"
    check_report(report, Head.of(path), "")


def test_one_view_works_as_well() -> None:
    path = Path(guests_dir(), "storm.S")
    check_report(run_guest(path, Head.of(path), "--views 1", 1), Head.of(path), "--views 1")


def few_slots(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let a region have ``count`` memslots for each of its windows."""
    monkeypatch.setattr(type(BACKENDS["emulated"]), "slots", lambda self, pages, views: 2 * count)


def test_huge_regions_leave_memslots_for_others(no_leak: None) -> None:
    """Each could need more than there are, and more than a VM of them there cannot be."""
    size = 64 << 20
    with Machine(passing()) as machine:
        for number in range(20):
            before = machine.memory._slots.free
            gpa = (1 + 2 * number) << 32
            try:
                region = machine.memory.add_region(gpa, size, gpa + (1 << 31))
            except ConfigurationError as error:
                assert "memslots" in str(error) or "regions" in str(error)
                break
            assert before - machine.memory._slots.free <= max(before // 2, 8)
            assert machine.memory.convert(gpa, size, P) == size // PAGE
            assert machine.memory.convert(gpa + PAGE, PAGE, S) == 1
            assert region.private_ranges() == [(gpa, PAGE), (gpa + 2 * PAGE, size - 2 * PAGE)]
        assert number >= 10


def test_as_many_slots_as_ranges_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    few_slots(monkeypatch, PAGES // 2)
    path = Path(guests_dir(), "convert.S")
    check_report(run_guest(path, Head.of(path), "", 1), Head.of(path), "")


def test_too_few_slots_are_an_error_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    few_slots(monkeypatch, 4)
    with Machine(touches(*(SHARED + page * PAGE for page in range(1, PAGES, 2)))) as machine:
        memory = machine.memory
        for page in range(PAGES):
            memory.write(SHARED + page * PAGE, bytes([page]) * PAGE)
        converted = 0
        with pytest.raises(KvmError, match="ENOSPC"):
            for page in range(0, PAGES, 2):
                memory.convert(PRIVATE + page * PAGE, PAGE, P)
                converted += 1
        # Each window has room for four ranges; the first private page begins at the edge.
        assert converted == 4
        states = memory.regions[0].states()
        assert sum(states) == converted
        for page in range(PAGES):
            if states[page] == S:
                assert memory.read(SHARED + page * PAGE, PAGE) == bytes([page]) * PAGE
        report = machine.run(20)
        # What is shared was there all the time.
        assert report.passed and report.conversions.implicit == 0
        # With the gaps filled there is room again.
        assert memory.convert(PRIVATE, PAGES * PAGE, P) == PAGES - converted
        assert memory.convert(PRIVATE, PAGES * PAGE, S) == PAGES


def test_a_guest_that_uses_up_the_slots_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_slots(monkeypatch, 4)
    with Machine(touches(*(PRIVATE + page * PAGE for page in range(0, PAGES, 2)))) as machine:
        report = machine.run(20)
    assert not report.passed
    assert "ENOSPC" in report.reason and "conversion" in report.reason


@settings(max_examples=10)
@given(
    count=st.integers(2, 6),
    requests=st.lists(
        st.tuples(st.integers(0, 15), st.integers(1, 16), st.sampled_from([P, S])), max_size=25
    ),
)
def test_each_view_has_exactly_its_pages(
    count: int, requests: list[tuple[int, int, PageState]]
) -> None:
    """The guest touches every page the right way: no exit, whatever was converted before."""
    pages = 16
    with pytest.MonkeyPatch.context() as patch:
        few_slots(patch, count)
        image = load_guest("guests/hello.S")
        with Machine(image) as machine:
            memory = machine.memory
            states = [S] * PAGES
            for first, length, state in requests:
                length = min(length, pages - first)
                try:
                    memory.convert(PRIVATE + first * PAGE, length * PAGE, state)
                except KvmError as error:
                    assert "ENOSPC" in str(error)
                else:
                    states[first : first + length] = [state] * length
            assert list(memory.regions[0].states()) == states
            right = [(PRIVATE if states[page] else SHARED) + page * PAGE for page in range(pages)]
            memory.write(0x7C00, touches(*right).segments[0].data)
            report = machine.run(20)
        assert report.passed
        assert report.conversions.implicit == 0
        assert "mmio" not in report.exits


def test_a_machine_on_slots_leaves_nothing(no_leak: None) -> None:
    with Machine(passing()) as machine:
        assert machine.run(20).passed


def test_no_memslot_of_another_vm_is_changed_once_the_vm_is_closed() -> None:
    with Kvm() as kvm, Machine(passing()) as machine:
        raw, number = machine.memory.raw, machine.vm.fileno()
        machine.vm.close()
        changed = ffi.new("uint64_t *")
        with kvm.create_vm() as other:
            assert other.fileno() == number
            assert lib.memory_convert(raw, PRIVATE, 1, P, changed) == -errno.EBADF
        del raw
