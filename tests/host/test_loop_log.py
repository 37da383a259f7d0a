"""The exit log, the exit iterator, and recording that is off."""

from __future__ import annotations

from typing import Any

import pytest
from snippets import EXIT_0, PAGE, PRIVATE, SHARED, guest, out_loop, passing, touches

from pyvmm import ConfigurationError, Machine, PageState, Policy, Result
from pyvmm.kvm.exits import IoExit, MemoryErrorExit, MmioExit
from pyvmm.loop.vcpu_loop import ExitRecord


def outs(count: int) -> Any:
    """Writes to ports 0x1000, 0x1001, ..."""
    return guest(
        f"movw $0x1000, %dx\n movw ${count}, %cx\n1: outb %al, %dx\n incw %dx\n loop 1b\n{EXIT_0}"
    )


def test_records_are_in_order_and_say_what_happened() -> None:
    with Machine(touches(PRIVATE + 8, 0x80004, SHARED + 9), log_capacity=64) as machine:
        report = machine.run(20)
        records = list(machine.loops[0].drain_log())
        assert list(machine.loops[0].drain_log()) == []
    assert report.passed
    assert [(record.address, record.size, record.conversion) for record in records[:3]] == [
        (PRIVATE + 8, 1, PageState.PRIVATE),
        (0x80004, 1, None),
        (SHARED + 9, 1, PageState.SHARED),
    ]
    assert records[3].reason == "io" and records[3].address == 0xF4 and records[3].is_write
    times = [stamp for record in records for stamp in (record.time_in, record.time_out)]
    assert times == sorted(times)
    assert all((record.conversion_ns > 0) == (record.conversion is not None) for record in records)


@pytest.mark.parametrize("exits", [0, 1, 7, 8, 9, 100])
def test_a_full_ring_keeps_the_newest(exits: int) -> None:
    with Machine(outs(exits + 1), log_capacity=8) as machine:
        assert machine.run(20).passed
        records = list(machine.loops[0].drain_log())
        assert records == machine.loops[0].last_exits(100)
        assert machine.loops[0].last_exits(2) == records[-2:]
        assert machine.loops[0].last_exits(0) == []
    ports = [0x1000 + number for number in range(exits + 1)] + [0xF4]
    assert [record.address for record in records] == ports[-8:]


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_log_that_is_taken_loses_nothing(vcpus: int) -> None:
    taken: dict[int, list[ExitRecord]] = {index: [] for index in range(vcpus)}
    with Machine(outs(1000), log_capacity=4, vcpus=vcpus) as machine:
        machine.log_exits(lambda index, record: taken[index].append(record))
        report = machine.run(60)
    assert report.passed
    for records in taken.values():
        ports = [record.address for record in records]
        assert ports == [*range(0x1000, 0x1000 + 1000), 0xF4]


@pytest.mark.parametrize("capacity", [4, 1024])
def test_a_log_is_taken_once_though_its_taker_raises(capacity: int) -> None:
    ports: list[int] = []

    def take(index: int, record: ExitRecord) -> None:
        ports.append(record.address)
        if len(ports) in (3, 7):
            raise RuntimeError("enough")

    with Machine(outs(20), log_capacity=capacity) as machine:
        machine.log_exits(take)
        with pytest.raises(RuntimeError, match="enough"):
            machine.run(20)
        rest = [record.address for record in machine.loops[0].drain_log()]
    taken = [*ports, *rest]
    assert taken == [*range(0x1000, 0x1000 + len(taken) - 1), taken[-1]]
    assert len(set(taken)) == len(taken)


def test_what_an_iterator_of_the_log_did_not_give_is_kept() -> None:
    with Machine(outs(5)) as machine:
        assert machine.run(20).passed
        first = next(machine.loops[0].drain_log())
        rest = list(machine.loops[0].drain_log())
    assert [record.address for record in (first, *rest)] == [*range(0x1000, 0x1005), 0xF4]


def test_statistics_agree_with_the_counts() -> None:
    with Machine(touches(PRIVATE, SHARED, 0x80000)) as machine:
        report = machine.run(20)
    assert {name: entry.count for name, entry in report.by_reason.items()} == report.exits
    assert report.exit_latency.count == sum(report.exits.values())
    assert report.conversion_latency.count == 2
    latency = report.exit_latency
    values = [latency.min, latency.p50, latency.p90, latency.p99, latency.p999, latency.max]
    assert values == sorted(value for value in values if value is not None)
    total = sum(entry.total_ns for entry in report.by_reason.values())
    assert latency.min is not None and latency.max is not None
    assert latency.min * 4 <= total <= latency.max * 4


def test_recording_off_leaves_counts_and_nothing_else() -> None:
    with Machine(touches(PRIVATE, SHARED), recording=False) as machine:
        report = machine.run(20)
        assert list(machine.loops[0].drain_log()) == []
        assert machine.loops[0].last_exits(8) == []
        assert machine.loops[0].raw.log.written == 0
    assert report.passed
    assert sum(report.exits.values()) == 3
    assert report.conversions.to_private == report.conversions.to_shared == 1
    assert report.exit_latency.count == report.conversion_latency.count == 0
    assert report.by_reason == {}


def test_a_log_without_recording_is_refused() -> None:
    """It would stay empty, and nobody would know why."""
    with Machine(passing(), recording=False) as machine, pytest.raises(ConfigurationError):
        machine.log_exits(lambda index, record: None)


@pytest.mark.parametrize("capacity", [3, -1, 1 << 70])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises((ConfigurationError, OverflowError, OSError)):
        Machine(passing(), log_capacity=capacity)


# ---- the iterator ----


def test_exits_yields_what_nobody_claims() -> None:
    image = guest(
        "inb $0x20, %al\n cmpb $0x42, %al\n jne 1f\n"
        "movw $0x8000, %ax\n movw %ax, %es\n movl %es:4, %eax\n cmpl $0x12345678, %eax\n jne 1f\n"
        "movb $7, %es:8\n"
        f"{EXIT_0}\n1: movb $1, %al\n outb %al, $0xf4"
    )
    seen: list[Any] = []
    with Machine(image) as machine:
        for exit in machine.exits(20):
            seen.append(exit)
            if isinstance(exit, IoExit):
                machine.answer(0x42)
            elif isinstance(exit, MmioExit) and not exit.is_write:
                machine.answer(0x12345678)
        report = machine.report()
    assert report.passed, report.reason
    assert [type(exit) for exit in seen] == [IoExit, MmioExit, MmioExit]


def test_a_read_that_is_not_answered_reads_all_ones() -> None:
    """Not what an exit before has left in the buffer."""
    image = guest(
        "movb $0x42, %al\n outb %al, $0x20\n inb $0x20, %al\n cmpb $0xFF, %al\n jne 1f\n"
        "movw $0x8000, %ax\n movw %ax, %es\n movl $0x12345678, %es:4\n"
        "movl %es:4, %eax\n cmpl $-1, %eax\n jne 1f\n"
        f"{EXIT_0}\n1: movb $1, %al\n outb %al, $0xf4"
    )
    with Machine(image) as machine:
        assert len(list(machine.exits(20))) == 4
        report = machine.report()
    assert report.passed, report.reason


def test_exits_yields_memory_errors_when_they_are_asked_for() -> None:
    with Machine(touches(PRIVATE + 5, SHARED + PAGE), policy=Policy.ASK) as machine:
        seen = list(machine.exits(20))
        report = machine.report()
    assert seen == [MemoryErrorExit(PRIVATE, PAGE, PageState.PRIVATE)]
    assert report.passed
    assert report.conversions.to_private == 1


def test_a_policy_that_denies_also_denies_an_iterator() -> None:
    with Machine(touches(PRIVATE), policy=Policy.DENY) as machine:
        assert [exit for exit in machine.exits(20) if not isinstance(exit, MemoryErrorExit)] == []
        report = machine.report()
    assert report.result is Result.FAIL
    assert "denied" in report.reason
    assert report.conversions.to_private == 0


def test_exits_needs_one_vcpu() -> None:
    with Machine(passing(), vcpus=2) as machine, pytest.raises(ConfigurationError, match="2 vCPUs"):
        next(machine.exits())


def test_an_iterator_that_outlives_its_machine_says_so(no_leak: None) -> None:
    machine = Machine(out_loop())
    exits = machine.exits(20)
    next(exits)
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        next(exits)
    machine = Machine(out_loop())
    exits = machine.exits(20)
    next(exits)
    machine.close()
    exits.close()
