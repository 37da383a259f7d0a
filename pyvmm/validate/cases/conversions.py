"""Explicit conversions: KVM_SET_MEMORY_ATTRIBUTES, fallocate and punch, and what both sides see.

Ranges are given as (offset, size) in memory of 2 MiB + 12 KiB, so that a page of it is
left on either side.
"""

from __future__ import annotations

from pyvmm.validate.case import GIB, HUGE, KIB, PAGE, case
from pyvmm.validate.toolbox import Toolbox

# Tags of the patterns: who wrote, and in which state the page was.
HOST, SHARED, PRIVATE, LATER = (n << 48 for n in (0x1111, 0x2222, 0x3333, 0x4444))

SIZE = HUGE + 3 * PAGE
RANGES = ((0, PAGE), (0, HUGE), (PAGE, PAGE), (PAGE, HUGE), (HUGE, PAGE))
BASES = (512 * KIB, 4 * GIB)


@case(
    "PC1",
    "a page's other side is another page, and neighbours keep theirs (no fallocate)",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": BASES, "range": RANGES},
)
def explicit(tools: Toolbox, gpa: int, range: tuple[int, int]) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, SIZE)
    offset, size = range
    end = offset + size
    memory.fill(0, SIZE, HOST)
    memory.expect_guest(0, SIZE, HOST, "shared memory that the host wrote")
    memory.guest_fill(0, SIZE, SHARED)
    memory.expect_host(0, SIZE, SHARED, "shared memory that the guest wrote")

    memory.set_private(offset, size)
    memory.expect_guest_zero(offset, size, "pages that became private, read for the first time")
    memory.guest_fill(offset, size, PRIVATE)
    memory.expect_host(0, SIZE, SHARED, "the shared side while pages are private")
    memory.fill(offset, size, HOST)
    memory.expect_guest(offset, size, PRIVATE, "private pages after the host wrote its side")
    memory.expect_guest(0, offset, SHARED, "pages before the private range")
    memory.expect_guest(end, SIZE - end, SHARED, "pages behind the private range")

    memory.set_shared(offset, size)
    memory.expect_guest(offset, size, HOST, "pages that became shared again")
