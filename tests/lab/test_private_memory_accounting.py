"""What conversions cost on kernels that have private memory: bytes and TLB flushes."""

from __future__ import annotations

from pathlib import Path

import pytest
from snippets import EXIT_0, PAGE, PRIVATE, SHARED, guest, passing

from pyvmm import Machine, PageState

MEMORY_ERROR = pytest.mark.lab(kernel="memory-error")
BACKENDS = [
    pytest.param("guest_memfd", id="guest_memfd"),
    pytest.param("emulated", id="emulated"),
    pytest.param("memory_error", id="memory_error", marks=MEMORY_ERROR),
    pytest.param("in_place", id="in_place", marks=pytest.mark.lab(kernel="in-place")),
]
MIB = 1 << 20
P, S = PageState.PRIVATE, PageState.SHARED


def memory_of_files() -> int:
    """Bytes in files' pages, memfd and guest_memfd included; what is free may lie anywhere."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Cached in /proc/meminfo")


@pytest.mark.parametrize("backend", BACKENDS)
def test_there_and_back_ten_times_uses_no_more_than_the_region(backend: str) -> None:
    size, slack = 64 * MIB, 8 * MIB
    with Machine(passing(), backend=backend) as machine:
        region = machine.memory.add_region(1 << 30, size, 1 << 31)
        before = memory_of_files()
        for _ in range(10):
            for state in (P, S):
                assert machine.memory.convert(region.gpa, size, state) == size // PAGE
                assert memory_of_files() - before <= size + slack
        # In pieces: every other MiB is private at the end.
        for piece in range(0, size, 2 * MIB):
            machine.memory.convert(region.shared_gpa + piece, MIB, P)
        assert memory_of_files() - before <= size + slack
        files = {region.backing.private_file, region.backing.shared_file}
        assert sum(file.allocated_bytes() for file in files) <= size
    assert memory_of_files() - before <= slack


# Reads the first 16 pages through the view whose segment is at 0x8000.
TOUCH_16 = guest(
    "movw 0x8000, %ax\n movw $16, %cx\n1: movw %ax, %es\n movb %es:0, %bl\n addw $0x100, %ax\n"
    f"loop 1b\n outb %al, $0x20\n movw 0x8000, %ax\n movw $16, %cx\n jmp 1b\n{EXIT_0}"
)


def flushes_of(machine: Machine, state: PageState) -> int:
    """TLB flushes that the host's conversion of 16 pages, all mapped, asks for."""
    with machine.vm.get_stats_fd() as stats:
        before = stats.counters()["remote_tlb_flush_requests"]
        assert machine.memory.convert(PRIVATE, 16 * PAGE, state) == 16
        return stats.counters()["remote_tlb_flush_requests"] - before


@pytest.mark.parametrize("views", [1, 2])
def test_a_converted_range_costs_one_flush(views: int) -> None:
    """One for what was mapped, none for discarding the stale side, whatever the range."""
    with Machine(TOUCH_16, views=views) as machine:
        exits = machine.exits(60)
        counts = []
        for state in (P, S, P):
            view = SHARED if views == 2 and machine.memory.regions[0].states()[0] == S else PRIVATE
            machine.memory.write(0x8000, (view >> 4).to_bytes(2, "little"))
            next(exits)
            counts.append(flushes_of(machine, state))
        exits.close()
    assert counts == [1, 1, 1]


@MEMORY_ERROR
def test_a_converted_range_costs_one_flush_with_the_rfc() -> None:
    test_a_converted_range_costs_one_flush(2)
