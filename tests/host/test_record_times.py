"""No record of an exit holds a time that was not.

PYVMM_RECORD_TIMES_S is how many seconds of exits are looked at; unless said, a few.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from snippets import PRIVATE, guest

from pyvmm import Machine
from pyvmm.loop.vcpu_loop import ExitRecord
from pyvmm.native import lib

SECONDS = float(os.environ.get("PYVMM_RECORD_TIMES_S", "4"))
RUN_S = 2.0
MIGRATION_S = 0.003

# A port and memory that nobody has, a port of the protocol, and now and then a conversion.
GUEST = f"""
        movw ${PRIVATE >> 4}, %ax
        movw %ax, %es
        movw $0x8000, %ax
        movw %ax, %fs
again:  movw $0x600, %dx
        movw $1000, %cx
1:      outb %al, $0x10
        outl %eax, %dx
        movb %al, %fs:0
        loop 1b
        incb %es:0
        movw $0xc000, %ax
        movw %ax, %gs
        incb %gs:0
        jmp again
"""


@contextmanager
def migrations() -> Iterator[None]:
    """The calling thread goes from one CPU to the next all the time."""
    cpus = os.sched_getaffinity(0)
    thread, is_over = threading.get_native_id(), threading.Event()

    def move() -> None:
        while True:
            for cpu in sorted(cpus):
                if is_over.wait(MIGRATION_S):
                    return
                os.sched_setaffinity(thread, {cpu})

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield
    finally:
        is_over.set()
        mover.join()
        os.sched_setaffinity(0, cpus)


class Records:
    """Looks at every record of a run: in itself, and beside the one before."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.count = 0
        self.wrong: list[tuple[int, ExitRecord]] = []
        self._last_out = 0

    def take(self, vcpu: int, record: ExitRecord) -> None:
        self.count += 1
        if record.time_out - record.time_in < self.least:
            self.wrong.append((record.time_out - record.time_in, record))
        if record.time_in - self._last_out < self.least:
            self.wrong.append((record.time_in - self._last_out, record))
        self._last_out = record.time_out


@pytest.mark.timeout(2 * SECONDS + 120)
def test_no_record_is_shorter_than_the_fastest_clean_loop() -> None:
    least = lib.bare_record_ns(10_000_000)
    assert least > 0
    image, until, number, count = guest(GUEST), time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < until:
        records = Records(least)
        with Machine(image, log_capacity=1 << 16) as machine:
            machine.log_exits(records.take)
            if number % 2:
                with migrations():
                    report = machine.run(RUN_S)
            else:
                report = machine.run(RUN_S)
        assert records.wrong == []
        latencies = (report.exit_latency, report.conversion_latency)
        assert all(latency.min is not None and latency.min >= least for latency in latencies)
        assert all(times.min_ns >= least for times in report.by_reason.values())
        number, count = number + 1, count + records.count
    print(f"{count} records in {SECONDS:.0f} s, the least {least} ns or more")
    assert count > 1000
