"""Conversions that guest and host ask for, with any arguments, against a model."""

from __future__ import annotations

import errno
import os
import struct
import threading
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from region_model import RegionModel
from snippets import EXIT_0, PAGE, PAGES, PRIVATE, SHARED, guest, passing, touches

from pyvmm import ConfigurationError, Kvm, KvmError, Machine, PageState, Policy
from pyvmm.kvm.mapping import Mapping
from pyvmm.memory.backends import BACKENDS
from pyvmm.memory.backends.emulated import EmulatedBackend
from pyvmm.memory.guest_memory import GuestMemory, PrivatePageError
from pyvmm.native import lib
from pyvmm.page_states import Mechanism

P, S = PageState.PRIVATE, PageState.SHARED
REQUESTS_AT = 0x10000
F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h, 5.1

U32 = st.integers(0, (1 << 32) - 1)
VIEWS = st.sampled_from([PRIVATE, SHARED])
# Mostly what nearly fits, sometimes anything.
GPAS = st.one_of(
    st.builds(lambda view, page: view + page * PAGE, VIEWS, st.integers(-1, PAGES)),
    st.builds(lambda view, offset: view + offset, VIEWS, st.integers(0, PAGES * PAGE)),
    st.sampled_from([0, 0x1000, 0x80000, 0xBF000, 0x100000, 0xFFFFF000, 0xFFFFFFFF]),
    U32,
)
COUNTS = st.one_of(
    st.integers(0, PAGES + 1),
    st.sampled_from([1 << 20, 0xFFFFF, 1 << 31, (1 << 32) - 1]),
    U32,
)
OPERATIONS = st.one_of(st.sampled_from([1, 2]), st.sampled_from([0, 3, 1 << 31]), U32)

# Rings the doorbell for each {gpa, pages, operation} at REQUESTS_AT and stores the answer
# behind it, until an entry's fourth word says that it is the last.
DOORBELLS = guest(
    "movw $0x1000, %ax\n movw %ax, %ds\n xorw %si, %si\n"
    "1: movw $0x600, %dx\n movl (%si), %eax\n outl %eax, %dx\n"
    "movw $0x604, %dx\n movl 4(%si), %eax\n outl %eax, %dx\n"
    "movw $0x608, %dx\n movl 8(%si), %eax\n outl %eax, %dx\n"
    "movw $0x60C, %dx\n inl %dx, %eax\n movl %eax, 12(%si)\n"
    "movl 16(%si), %ebx\n addw $20, %si\n testl %ebx, %ebx\n jz 1b\n" + EXIT_0
)


@pytest.mark.parametrize("views", [1, 2])
@settings(max_examples=40)
@given(requests=st.lists(st.tuples(GPAS, COUNTS, OPERATIONS), min_size=1, max_size=40))
def test_any_doorbell(views: int, requests: list[tuple[int, int, int]]) -> None:
    model = RegionModel(views)
    expected = []
    for gpa, pages, operation in requests:
        state = {1: S, 2: P}.get(operation, -1)
        expected.append(-model.convert(gpa, pages, state) & 0xFFFFFFFF)
    table = b"".join(
        struct.pack("<IIIII", gpa, pages, operation, 0xABABABAB, number == len(requests) - 1)
        for number, (gpa, pages, operation) in enumerate(requests)
    )
    with Machine(DOORBELLS, views=views) as machine:
        machine.memory.write(REQUESTS_AT, table)
        report = machine.run(60)
        answers = machine.memory.read(REQUESTS_AT, len(table))
        assert list(machine.memory.regions[0].states()) == model.states
    assert report.passed, report.reason
    assert [entry[3] for entry in struct.iter_unpack("<IIIII", answers)] == expected
    done = report.conversions
    assert (done.to_private, done.to_shared) == (model.to_private, model.to_shared)
    assert done.explicit == model.to_private + model.to_shared and done.implicit == 0


ANY = st.integers(-(1 << 70), 1 << 70)


@settings(max_examples=20)
@given(
    requests=st.lists(
        st.tuples(
            st.one_of(GPAS, ANY),
            st.one_of(
                st.integers(-1, PAGES + 1).map(lambda n: n * PAGE), st.integers(0, 9999), ANY
            ),
            st.sampled_from([P, S]),
        ),
        max_size=30,
    )
)
def test_any_conversion_by_the_host(requests: list[tuple[int, int, PageState]]) -> None:
    """States, counts, and every byte: what changed reads zero, what did not is untouched."""
    model = RegionModel()
    with Machine(passing()) as machine:
        memory = machine.memory
        region = memory.regions[0]
        contents = [0] * PAGES
        for number, (gpa, size, state) in enumerate(requests, 1):
            for page in range(PAGES):
                if model.states[page] == S:
                    contents[page] = (number * 7 + page) % 256
                    memory.write(PRIVATE + page * PAGE, bytes([contents[page]]) * PAGE)
            pages, rest = divmod(size, PAGE)
            error = model.convert(gpa, -1 if rest else pages, state)
            if error:
                with pytest.raises(KvmError) as caught:
                    memory.convert(gpa, size, state)
                assert caught.value.errno == errno.EINVAL
            else:
                assert memory.convert(gpa, size, state) == len(model.last_changed)
            assert list(region.states()) == model.states
            for page in model.last_changed:
                contents[page] = 0
            for page in range(PAGES):
                if model.states[page] == S:
                    found = memory.read(SHARED + page * PAGE, PAGE)
                    assert found == bytes([contents[page]]) * PAGE, f"page {page}"
                else:
                    with pytest.raises(PrivatePageError):
                        memory.read(PRIVATE + page * PAGE + 5, 1)


def test_memory_is_not_doubled() -> None:
    with Machine(passing()) as machine:
        region = machine.memory.regions[0]
        files = region.backing.private_file, region.backing.shared_file
        for page in range(PAGES):
            machine.memory.write(PRIVATE + page * PAGE, b"x")
        for _ in range(10):
            for state in (P, S):
                machine.memory.convert(PRIVATE, PAGES * PAGE, state)
                assert sum(file.allocated_bytes() for file in files) <= PAGES * PAGE


def test_what_the_host_writes_never_outlives_a_conversion() -> None:
    """The host writes while a page changes; it must not come back from the shared file."""
    data, last = b"stale", PRIVATE + PAGE
    with Machine(passing()) as machine:
        memory = machine.memory
        finished = False

        def write() -> None:
            while not finished:
                with suppress(PrivatePageError):
                    memory.write(last, data)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(20000):
                memory.convert(last, PAGE, P)
                found = os.pread(
                    memory.regions[0].backing.shared_file.fileno(), PAGE, last - PRIVATE
                )
                assert not any(found)
                memory.convert(last, PAGE, S)
        finally:
            finished = True
            thread.join()


@pytest.mark.parametrize(
    ("gpa", "size"),
    [(0x3FFFF, 2), (0x80000, 1), (0x7FFFF, 2), (0xFFFFF, 2), (-1, 1), (1 << 64, 1), (0, 0x50000)],
)
def test_where_no_memory_is(gpa: int, size: int) -> None:
    with Machine(passing()) as machine:
        with pytest.raises(ConfigurationError, match="no memory"):
            machine.memory.read(gpa, size)
        with pytest.raises(ConfigurationError, match="no memory"):
            machine.memory.write(gpa, bytes(size))


@pytest.mark.parametrize("size", [-1, 1 << 62, 1 << 70])
def test_no_more_is_read_than_there_is(size: int) -> None:
    with Machine(passing()) as machine:
        for gpa in (0, PRIVATE):
            with pytest.raises(ConfigurationError, match="no memory"):
                machine.memory.read(gpa, size)


def test_reads_and_writes_cross_pages_but_not_states() -> None:
    with Machine(passing()) as machine:
        memory = machine.memory
        memory.write(SHARED + PAGE - 2, b"abcd")
        assert memory.read(PRIVATE + PAGE - 2, 4) == b"abcd"
        memory.convert(SHARED + PAGE, PAGE, P)
        with pytest.raises(PrivatePageError):
            memory.write(SHARED + PAGE - 2, b"abcd")
        assert memory.read(PRIVATE + PAGE - 2, 2) == b"ab"
        assert memory.read(PRIVATE, 0) == b""


# ---- adding memory ----


def test_a_refused_region_leaves_its_range_free() -> None:
    with Machine(passing()) as machine:
        memory = machine.memory
        with pytest.raises(ConfigurationError, match="overlaps"):
            memory.add_region(1 << 24, PAGE, SHARED)
        with pytest.raises(ConfigurationError, match="aligned"):
            memory.add_region(1 << 24, PAGE, 1)
        with pytest.raises(ConfigurationError):
            memory.add_region(1 << 24, PAGE, 1 << 24)
        region = memory.add_region(1 << 24, PAGE, 1 << 25)
        assert memory.convert(1 << 25, PAGE, P) == 1
        assert region.private_ranges() == [(1 << 24, PAGE)]


@pytest.mark.parametrize(
    ("mechanism", "taken"),
    [(Mechanism.PROT_NONE, PRIVATE), (Mechanism.PROT_NONE, SHARED), (Mechanism.SLOTS, SHARED)],
)
def test_a_region_that_the_kernel_refuses_leaves_no_memslot(
    mechanism: Mechanism, taken: int
) -> None:
    """One that is left would show the guest what the host maps there next."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        memory = GuestMemory(vm, BACKENDS["emulated"], mechanism, Policy.CONVERT)
        mine = Mapping(PAGE)
        vm.set_user_memory_region(500, taken + 8 * PAGE, PAGE, mine.address)
        with pytest.raises(KvmError, match="EEXIST"):
            memory.add_region(PRIVATE, 64 * PAGE, SHARED)
        vm.set_user_memory_region(500, 0, 0, 0)
        for view in (PRIVATE, SHARED):  # would overlap with one that is left
            memory.add_ram(view, 64 * PAGE)
        memory.close()


def test_a_backend_of_which_c_knows_nothing() -> None:
    class Unknown(EmulatedBackend):
        name = "unknown"

    with Kvm() as kvm, kvm.create_vm() as vm, pytest.raises(ConfigurationError, match="unknown"):
        GuestMemory(vm, Unknown(), Mechanism.SLOTS, Policy.CONVERT)


def test_what_is_no_page_state() -> None:
    with Machine(passing()) as machine:
        assert machine.memory.convert(PRIVATE, PAGE, 1) == 1  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="PageState"):
            machine.memory.convert(PRIVATE, PAGE, 2)  # type: ignore[arg-type]


def test_as_many_regions_as_there_may_be() -> None:
    with Machine(passing()) as machine:
        memory = machine.memory
        while len(memory.regions) < lib.MEMORY_MAX_REGIONS:
            base = (1 << 24) + (len(memory.regions) << 20)
            memory.add_region(base, PAGE, base + 0x80000)
        with pytest.raises(ConfigurationError, match="regions"):
            memory.add_region(1 << 28, PAGE)
        for region in memory.regions:
            assert memory.convert(region.shared_gpa, region.size, P) == region.size // PAGE
        assert memory.conversions().to_private == PAGES + lib.MEMORY_MAX_REGIONS - 1


@pytest.mark.parametrize("views", [1, 2])
def test_a_conversion_that_fails_changes_nothing(views: int) -> None:
    """A file that is gone stands for every way in which a conversion can fail."""
    with Machine(passing(), views=views) as machine:
        memory = machine.memory
        region = memory.regions[0]
        memory.write(PRIVATE, b"kept")
        region.backing.private_file.close()
        with pytest.raises(KvmError, match="EBADF"):
            memory.convert(PRIVATE, PAGE, P)
        assert not any(region.states())
        assert memory.read(PRIVATE, 4) == b"kept"
        assert memory.conversions().to_private == 0


def test_a_conversion_that_fails_ends_the_run() -> None:
    with Machine(touches(PRIVATE)) as machine:
        region = machine.memory.regions[0]
        region.backing.private_file.close()
        report = machine.run(20)
        assert not any(region.states())
    assert not report.passed
    assert "conversion" in report.reason and "EBADF" in report.reason


def test_a_page_that_cannot_be_discarded_stays_what_it_was() -> None:
    with Machine(passing(), backend="emulated") as machine:
        memory = machine.memory
        memory.write(PRIVATE, b"kept")
        shared_file = memory.regions[0].backing.shared_file
        shared_file.seal(F_SEAL_FUTURE_WRITE)
        with pytest.raises(KvmError, match="EPERM"):
            memory.convert(PRIVATE, 2 * PAGE, P)
        assert memory.read(PRIVATE, 4) == b"kept"
        assert memory.regions[0].backing.private_file.allocated_bytes() == 0
        assert bytes(memory.regions[0].backing.shared_host.view[:4]) == b"kept"


def test_policy_of_the_structure_is_the_machines() -> None:
    for policy in Policy:
        with Machine(passing(), policy=policy) as machine:
            assert machine.memory.raw.policy == policy


def test_a_locked_instruction_whose_page_another_vcpu_converts() -> None:
    """KVM's emulator reads the page, and may find nothing there any more when it writes."""
    rounds = 3000
    ring = "".join(
        f"movw ${port:#x}, %dx\n movl ${value}, %eax\n outl %eax, %dx\n"
        for port, value in ((0x600, PRIVATE), (0x604, 1), (0x608, 2))
    )
    image = guest(
        f"testw %ax, %ax\n jnz 5f\n movw ${rounds}, %si\n"
        f"1: {ring} decw %si\n jnz 1b\n movb $1, 0x600\n {EXIT_0}"
        f"5: movw ${SHARED >> 4:#x}, %ax\n movw %ax, %es\n xorw %di, %di\n"
        f"6: xchgw %ax, %es:(%di)\n cmpb $0, 0x600\n je 6b\n {EXIT_0}"
    )
    with Machine(image, vcpus=2, backend="emulated") as machine:
        report = machine.run(60)
    assert report.passed, report.reason
    assert report.conversions.explicit > 0
