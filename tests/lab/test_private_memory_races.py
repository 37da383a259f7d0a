"""vCPUs and the host convert the same pages at once.

PYVMM_STORM=100000 asks for as many conversions as the promise is about.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from snippets import EXIT_0, PAGE, PAGES, PRIVATE, guest

from pyvmm import Machine, PageState, Result
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import lib

CONVERSIONS = int(os.environ.get("PYVMM_STORM", "3000"))
ROUNDS = 1000

# Each round a page and a view at random: write a word that says which, or read one, which
# must be zero or say the same; every eighth round the doorbell converts up to four pages.
STORM = f"""
        .ifndef VIEW
        .set VIEW, 0x40                 # the bit that chooses one; 0 where there is one view
        .endif
        movl %eax, %ebp
        imull $0x9E3779B1, %eax, %esi
        addl 0x9000, %esi
        movl ${ROUNDS}, %ecx
round:  imull $1103515245, %esi, %esi
        addl $12345, %esi
        movl %esi, %edi
        shrl $16, %edi                  # bits 0-5: page, 6: view, 7: write, 8-10: doorbell
        movl %edi, %ebx
        andl $(0x3F | VIEW), %ebx       # the word: 0xA5, view and page, vCPU
        shll $8, %ebx
        orl $0xA5000000, %ebx
        movw %di, %ax
        andw $0x3F, %ax
        shlw $8, %ax
        addw $0x4000, %ax
        testw $VIEW, %di
        jz private
        addw $0x8000, %ax
private:
        movw %ax, %es
        testw $0x700, %di
        jz doorbell
        testw $0x80, %di
        jz reading
        movl %ebx, %eax
        orl %ebp, %eax
        movl %eax, %es:0x40
        jmp next
reading:
        movl %es:0x40, %eax
        testl %eax, %eax
        jz next
        movb $0, %al
        cmpl %ebx, %eax
        je next
        movl $2, %eax
        outl %eax, $0xF4
doorbell:
        movzwl %ax, %eax
        shll $4, %eax
        movw $0x600, %dx
        outl %eax, %dx
        movl %edi, %eax
        shrl $11, %eax
        andl $3, %eax
        movw $0x604, %dx
        outl %eax, %dx
        movl %edi, %eax
        shrl $13, %eax
        andl $1, %eax
        incl %eax
        movw $0x608, %dx
        outl %eax, %dx
next:   decl %ecx
        jnz round
        {EXIT_0}
"""


@contextmanager
def converting(memory: GuestMemory, rng: random.Random) -> Iterator[list[BaseException]]:
    """The host converts at random meanwhile; the list has what went wrong."""
    finished = threading.Event()
    failures: list[BaseException] = []

    def convert() -> None:
        try:
            while not finished.is_set():
                first = rng.randrange(PAGES)
                count = rng.randint(1, min(4, PAGES - first))
                memory.convert(PRIVATE + first * PAGE, count * PAGE, rng.choice(list(PageState)))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=convert)
    thread.start()
    try:
        yield failures
    finally:
        finished.set()
        thread.join()


KERNELS = [
    pytest.param("guest_memfd", id="guest_memfd"),
    pytest.param("memory_error", id="memory_error", marks=pytest.mark.lab(kernel="memory-error")),
    pytest.param("in_place", id="in_place", marks=pytest.mark.lab(kernel="in-place")),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.timeout(1200)
def test_no_wrong_byte_and_no_lost_access(kernel: str, rng: random.Random) -> None:
    storm(rng, views=2)


@pytest.mark.lab(kernel="in-place")
@pytest.mark.timeout(1200)
def test_no_wrong_byte_in_one_view(rng: random.Random) -> None:
    storm(rng, views=1)


def storm(rng: random.Random, views: int) -> None:
    image = guest(STORM if views == 2 else ".set VIEW, 0\n" + STORM)
    total = spurious = by_host = busy = 0
    while total < CONVERSIONS:
        with Machine(image, vcpus=2, views=views) as machine:
            memory = machine.memory
            memory.write(0x9000, rng.randbytes(4))
            with converting(memory, rng) as failures:
                report = machine.run(120)
            final = memory.conversions()
            states = memory.regions[0].states()
            busy += memory.regions[0].busy_refusals()
        assert not failures
        assert report.passed, report.reason
        assert final.to_private + final.to_shared == final.implicit + final.explicit
        assert final.to_private - final.to_shared == sum(states)
        total += final.to_private + final.to_shared
        by_host += final.explicit
        spurious += report.spurious_exits
        wrong = sum(report.exits.get(name, 0) for name in ("memory_fault", "memory_error"))
        # Every memory exit either converted its page or was counted as spurious.
        assert wrong == final.implicit + report.spurious_exits
    print(f"{total} conversions, {by_host} of them asked for, {spurious} spurious exits,")
    print(f"{busy} times EAGAIN, {views} views")


MOVE_WITHIN_ONE_PAGE = guest(
    "movw $0x4000, %ax\n movw %ax, %ds\n movw $0xC000, %ax\n movw %ax, %es\n"
    f"xorw %si, %si\n xorw %di, %di\n movsb\n{EXIT_0}"
)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_livelock_that_others_hide_from_the_guard_ends_by_the_deadline(
    kernel: str, rng: random.Random
) -> None:
    """The guard counts exits between which nobody else converts; here the host always does."""
    with Machine(MOVE_WITHIN_ONE_PAGE) as machine, converting(machine.memory, rng) as failures:
        report = machine.run(3)
    assert not failures
    assert report.result is Result.DEADLINE or "in a row by one instruction" in report.reason


def test_exits_that_no_conversion_explains_are_bounded() -> None:
    """Without its file a private page faults for ever, though it is in the state it should be."""
    image = guest(f"movw $0x4000, %ax\n movw %ax, %ds\n movb %ds:0, %al\n{EXIT_0}")
    with Machine(image) as machine:
        machine.memory.convert(PRIVATE, PAGE, PageState.PRIVATE)
        machine.memory.regions[0].backing.private_file.close()
        report = machine.run(60)
    assert report.result is Result.FAIL
    assert "or the kernel does not see the conversion" in report.reason
    assert lib.GUARD_LIMIT <= report.spurious_exits <= lib.GUARD_LIMIT + 50
    assert report.exits["memory_fault"] == report.spurious_exits
