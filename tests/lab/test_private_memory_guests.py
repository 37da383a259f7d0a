"""Every guest ends on a kernel with private memory as it does elsewhere: as its head says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from guest_heads import Head, cases, check_report, run_guest, skip_where_the_head_says
from snippets import EXIT_0, PAGE, PRIVATE, SHARED, guest, touches
from text_and_json import both, compare

from pyvmm import Kvm, Machine, Policy, Result, UnsupportedError
from pyvmm.guest.shipped import guests_dir
from pyvmm.kvm.exits import MemoryErrorExit
from pyvmm.memory.backends import choose_backend
from pyvmm.native import lib
from pyvmm.page_states import Mechanism, PageState

MEMORY_ERROR = pytest.mark.lab(kernel="memory-error")
KERNELS = [
    pytest.param("guest_memfd", id="guest_memfd"),
    pytest.param("memory_error", id="memory_error", marks=MEMORY_ERROR),
    pytest.param("in_place", id="in_place", marks=pytest.mark.lab(kernel="in-place")),
]
EXITS = {
    "guest_memfd": "memory_fault",
    "memory_error": "memory_error",
    "in_place": "memory_fault",
}


# A conversion of two views takes in_place, like emulated, milliseconds in here: memslots change.
# PYVMM_STORM asks for these guests, too.
LONG = () if "PYVMM_STORM" in os.environ else ("hostile", "irq", "smp", "storm")
IN_PLACE = [
    each
    for each in cases(vcpus=(2,))
    if each.values[0].stem not in LONG or "--views 1" in each.values[1]
]


@pytest.mark.lab(kernel="in-place")
@pytest.mark.parametrize(("path", "options", "vcpus"), IN_PLACE)
def test_guest_ends_in_place_as_its_head_says(path: Path, options: str, vcpus: int) -> None:
    test_guest_ends_as_its_head_says("in_place", path, options, vcpus)


@pytest.mark.parametrize("backend", KERNELS[:-1])
@pytest.mark.parametrize(("path", "options", "vcpus"), cases(vcpus=(2,)))
def test_guest_ends_as_its_head_says(backend: str, path: Path, options: str, vcpus: int) -> None:
    head = Head.of(path)
    skip_where_the_head_says(head, options, backend)
    try:
        report = run_guest(path, head, options, vcpus)
    except UnsupportedError:
        assert backend == "memory_error" and "--views 1" in options
        return
    assert report.backend == backend
    check_report(report, head, options)


def test_the_emulated_backend_works_on_slots_here() -> None:
    """On hardware KVM a PROT_NONE window gives EFAULT: the probe must find that out."""
    with Kvm() as kvm:
        assert choose_backend(kvm, "emulated")[1] is Mechanism.SLOTS


@pytest.mark.parametrize(
    ("name", "options", "vcpus"),
    [("convert", "", 1), ("storm", "--param ROUNDS=200", 2), ("doorbell", "--views 1", 1)],
)
def test_guests_on_the_emulated_backend(name: str, options: str, vcpus: int) -> None:
    """Few and short: adding and deleting a memslot takes a kernel in here milliseconds."""
    path = guests_dir() / f"{name}.S"
    report = run_guest(path, Head.of(path), options, vcpus, backend="emulated")
    assert report.backend == "emulated"
    check_report(report, Head.of(path), options)


@pytest.mark.parametrize("backend", KERNELS)
def test_one_exit_per_wrong_touch(backend: str) -> None:
    image = touches(PRIVATE, PRIVATE + 5, SHARED + 9, SHARED, PRIVATE + PAGE, SHARED + 2 * PAGE)
    with Machine(image) as machine:
        report = machine.run(60)
    assert report.passed, report.reason
    assert report.exits == {EXITS[backend]: 3, "io": 1}
    assert (report.conversions.to_private, report.conversions.to_shared) == (2, 1)


@pytest.mark.parametrize("backend", KERNELS)
def test_ask_and_deny(backend: str) -> None:
    seen: list[MemoryErrorExit] = []

    def ask(exit: MemoryErrorExit, vcpu: int) -> bool:
        seen.append(exit)
        return len(seen) < 3

    image = touches(PRIVATE + 5, SHARED + 9, PRIVATE + 7)
    with Machine(image, policy=ask) as machine:
        report = machine.run(60)
    assert report.result is Result.FAIL and "denied" in report.reason
    assert seen == [
        MemoryErrorExit(PRIVATE, PAGE, PageState.PRIVATE),
        MemoryErrorExit(SHARED, PAGE, PageState.SHARED),
        MemoryErrorExit(PRIVATE, PAGE, PageState.PRIVATE),
    ]
    with Machine(touches(PRIVATE), policy=Policy.DENY) as machine:
        report = machine.run(60)
    assert report.result is Result.FAIL and f"{PRIVATE:#x}" in report.reason


@pytest.mark.parametrize("backend", KERNELS)
def test_one_page_in_both_states_trips_the_guard(backend: str) -> None:
    """movsb from a page's private view to its shared one needs both at once."""
    image = guest(
        "movw $0x4000, %ax\n movw %ax, %ds\n movw $0xC000, %ax\n movw %ax, %es\n"
        "xorw %si, %si\n xorw %di, %di\n movsb\n movb $0, %al\n outb %al, $0xf4"
    )
    with Machine(image) as machine:
        report = machine.run(60)
    assert report.result is Result.FAIL, report.reason
    assert "in a row by one instruction" in report.reason
    exits = report.exits[EXITS[backend]]
    assert lib.GUARD_LIMIT <= exits <= lib.GUARD_LIMIT + 50
    compare(*both(report))


def test_many_wrong_touches_do_not_trip_the_guard() -> None:
    """Far more than the limit, but by an instruction that gets on."""
    image = guest(
        "movw $0x4000, %ax\n movw %ax, %ds\n movw $0xC000, %ax\n movw %ax, %es\n"
        "movw $600, %cx\n1: movb %ds:0, %al\n movb %es:0, %al\n loop 1b\n"
        "movb $0, %al\n outb %al, $0xf4"
    )
    with Machine(image) as machine:
        report = machine.run(120)
    assert report.passed, report.reason
    assert report.exits["memory_fault"] == 1200


def test_string_io_on_private_memory_is_diagnosed() -> None:
    image = guest(
        "movw $0x4000, %ax\n movw %ax, %ds\n movb $1, %ds:0\n xorw %si, %si\n"
        "movw $0x20, %dx\n outsb\n movb $0, %al\n outb %al, $0xf4"
    )
    with Machine(image) as machine:
        report = machine.run(60)
    assert report.result is not Result.PASS
    assert "emulator" in report.reason and "private" in report.reason


def test_vcpus_on_two_cpus_keep_their_registers() -> None:
    """An emulator that mixes up nested guests loses one in a few of 100,000 exits."""
    image = guest(
        "movl $3000, %ecx\n movw $0x600, %dx\n movl $0x12345678, %esi\n movl %eax, %ebp\n"
        "1: movl %esi, %eax\n outl %eax, %dx\n inl %dx, %eax\n incl %eax\n jnz 2f\n"
        "cmpl $0x12345678, %esi\n jne 2f\n decl %ecx\n jnz 1b\n" + EXIT_0 + "2: outb %al, $0xf4"
    )
    for _ in range(4):
        with Machine(image, vcpus=2) as machine:
            report = machine.run(120)
        assert report.passed, (report.reason, report.where)
        assert report.exits == {"io": 2 * (2 * 3000 + 1)}
