"""What in-place conversion adds: contents that stay, pages in use, a mapping for the host."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from snippets import EXIT_0, PAGE, PRIVATE, SHARED, guest, passing, stores

from pyvmm import Kvm, KvmError, Machine, PageState, Result, UnsupportedError
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.memory.backends import choose_backend
from pyvmm.memory.guest_memory import PrivatePageError
from pyvmm.native import lib

pytestmark = pytest.mark.lab(kernel="in-place")

P, S = PageState.PRIVATE, PageState.SHARED
VIEWS = pytest.mark.parametrize("views", [1, 2])


def shared_view(views: int) -> int:
    return SHARED if views == 2 else PRIVATE


def file_of(machine: Machine) -> GuestMemfd:
    file = machine.memory.regions[0].backing.private_file
    assert isinstance(file, GuestMemfd)
    return file


@VIEWS
@pytest.mark.parametrize(("contents", "left"), [("keep", b"kept"), ("zero", bytes(4))])
def test_contents(views: int, contents: str, left: bytes) -> None:
    with Machine(passing(), views=views, contents=contents) as machine:
        memory, gpa = machine.memory, shared_view(views)
        memory.write(gpa + PAGE, b"kept")
        for state in (P, S):
            assert memory.convert(PRIVATE, 4 * PAGE, state) == 4
        assert memory.read(gpa + PAGE, 4) == left


def test_what_a_guest_writes_to_a_private_page_stays() -> None:
    with Machine(stores({PRIVATE + 5: 0x5A}), contents="keep") as machine:
        assert machine.run(30).passed
        assert machine.memory.convert(PRIVATE, PAGE, S) == 1
        assert machine.memory.read(SHARED + 5, 1) == b"\x5a"


@pytest.mark.parametrize(("contents", "bit"), [("keep", lib.FEATURE_KEEPS_CONTENTS), ("zero", 0)])
def test_the_guest_is_told(contents: str, bit: int) -> None:
    ask = "movw $0x618, %dx\n inl %dx, %eax\n movw $0x614, %dx\n outl %eax, %dx\n"
    with Machine(guest(ask + EXIT_0), contents=contents) as machine:
        report = machine.run(30)
    assert report.measures[0] & lib.FEATURE_KEEPS_CONTENTS == bit


@VIEWS
def test_a_range_that_is_private_in_part_keeps_that_part(views: int) -> None:
    with Machine(stores({PRIVATE + PAGE: 0x5A}), views=views) as machine:
        machine.memory.convert(PRIVATE + PAGE, PAGE, P)
        assert machine.run(30).passed
        assert machine.memory.convert(PRIVATE, 3 * PAGE, P) == 2
        # The byte is still there for a guest; the host sees it where contents are kept.
        file_of(machine).set_memory_attributes2(PAGE, PAGE, 0)
        assert bytes(machine.memory.regions[0].backing.shared_host.view[PAGE : PAGE + 1]) == b"\x5a"


@contextmanager
def in_a_pipe(machine: Machine, page: int) -> Iterator[None]:
    """Somebody uses a page of the region: a pipe has it."""
    address = machine.memory.regions[0].backing.shared_host.address + page * PAGE
    part = (ctypes.c_uint64 * 2)(address, 8)
    source, sink = os.pipe()
    try:
        assert ctypes.CDLL(None).vmsplice(sink, part, 1, 0) == 8
        yield
    finally:
        os.close(source)
        os.close(sink)


@VIEWS
def test_a_page_in_use_is_named(views: int) -> None:
    with Machine(passing(), views=views) as machine:
        memory = machine.memory
        memory.write(shared_view(views) + 2 * PAGE, b"used")
        with in_a_pipe(machine, 2), pytest.raises(KvmError) as caught:
            memory.convert(PRIVATE, 4 * PAGE, P)
        assert caught.value.errno == errno.EAGAIN
        assert f"the page at GPA {PRIVATE + 2 * PAGE:#x} is in use" in str(caught.value)
        assert "a pipe" in str(caught.value)
        assert not any(memory.regions[0].states())
        assert memory.regions[0].busy_refusals() > 1
        assert memory.read(shared_view(views) + 2 * PAGE, 4) == b"used"
        assert memory.convert(PRIVATE, 4 * PAGE, P) == 4


def test_the_doorbell_says_so_and_the_guest_goes_on() -> None:
    ring = (
        f"movw $0x600, %dx\n movl ${PRIVATE}, %eax\n outl %eax, %dx\n"
        "movw $0x604, %dx\n movl $1, %eax\n outl %eax, %dx\n"
        "movw $0x608, %dx\n movl $2, %eax\n outl %eax, %dx\n"
        "movw $0x60C, %dx\n inl %dx, %eax\n movw $0x614, %dx\n outl %eax, %dx\n"
    )
    with Machine(guest(ring + EXIT_0), views=1) as machine:
        machine.memory.write(PRIVATE, b"used")
        with in_a_pipe(machine, 0):
            report = machine.run(30)
    assert report.passed and list(report.measures) == [-errno.EAGAIN & 0xFFFFFFFF]


def test_an_access_that_needs_a_page_in_use_ends_the_run() -> None:
    with Machine(stores({PRIVATE: 1})) as machine:
        machine.memory.write(SHARED, b"used")
        with in_a_pipe(machine, 0):
            report = machine.run(30)
    assert report.result is not Result.PASS
    assert f"GPA {PRIVATE:#x}" in report.reason and "EAGAIN" in report.reason


@VIEWS
def test_the_host_is_told_of_a_private_page(views: int) -> None:
    with Machine(passing(), views=views) as machine:
        memory, gpa = machine.memory, shared_view(views)
        memory.convert(PRIVATE + PAGE, PAGE, P)
        for access in (lambda: memory.read(gpa + PAGE, 1), lambda: memory.write(gpa, bytes(8192))):
            with pytest.raises(PrivatePageError):
                access()
        # Behind pyvmm's back: still no SIGBUS.
        file_of(machine).set_memory_attributes2(0, PAGE, 8)
        for access in (lambda: memory.read(gpa, 1), lambda: memory.write(gpa, b"x")):
            with pytest.raises(KvmError, match="somebody else made a page of it private") as caught:
                access()
            assert caught.value.errno == errno.EFAULT


def test_bytes_of_many_pages_are_copied_whole(rng: random.Random) -> None:
    data = rng.randbytes(5 * PAGE + 77)
    with Machine(passing()) as machine:
        machine.memory.write(SHARED + 33, data)
        assert machine.memory.read(SHARED + 33, len(data)) == data


def test_the_other_backend_says_why_it_is_not_there() -> None:
    with Kvm() as kvm:
        assert choose_backend(kvm)[0].name == "in_place"
        with pytest.raises(UnsupportedError) as caught:
            choose_backend(kvm, "guest_memfd")
    assert "kvm.gmem_in_place_conversion is on" in caught.value.cause
    assert "gmem_in_place_conversion=0" in caught.value.remedy


@pytest.mark.parametrize(
    ("offset", "size", "attributes", "rule"),
    [
        (0, 0, 8, "size is 0"),
        (1, PAGE, 8, "offset 0x1 is not page aligned"),
        (0, PAGE, 9, "attributes 0x1 are not known"),
        (63 * PAGE, 2 * PAGE, 8, "past the end of the file at 0x40000"),
    ],
)
def test_a_refused_conversion_names_the_rule(
    offset: int, size: int, attributes: int, rule: str
) -> None:
    with Machine(passing()) as machine, pytest.raises(KvmError) as caught:
        file_of(machine).set_memory_attributes2(offset, size, attributes)
    assert caught.value.errno == errno.EINVAL and rule in caught.value.remedy


def test_the_vm_s_own_ioctl_names_the_new_one() -> None:
    with Machine(passing()) as machine, pytest.raises(KvmError) as caught:
        machine.vm.set_memory_attributes(PRIVATE, PAGE, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    assert "set_memory_attributes2()" in caught.value.remedy


def test_a_page_in_use_is_named_by_the_ioctl_too() -> None:
    with Machine(passing()) as machine:
        machine.memory.write(SHARED + 3 * PAGE, b"used")
        with in_a_pipe(machine, 3), pytest.raises(KvmError) as caught:
            file_of(machine).set_memory_attributes2(0, 8 * PAGE, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    assert caught.value.errno == errno.EAGAIN and "at offset 0x3000" in caught.value.remedy
