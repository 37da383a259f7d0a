"""What KVM emulates under the RFC's private memory: it reaches what the guest's own access would.

The emulator reads and writes operands, descriptors and code by itself, and walks the guest's page
tables to find them. Where one of these pages is in the other state the exit is the usual one, and
the instruction is emulated again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from pyvmm.kvm.eventfd import EventFd
from pyvmm.kvm.exits import HltExit
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, expect
from pyvmm.validate.kit.guest import Cpu, Fault
from pyvmm.validate.kit.paged_views import PLAIN_DATA, TO_SHARED, PagedViews
from pyvmm.validate.kit.paging import MODES
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.views import Views
from pyvmm.validate.kit.watch import INSIDE

NEEDS = ("memory_error",)
RACES = (*NEEDS, "two_cpus", "native_guests")
BACKEND = "memory_error"
PORT = 0x77
# Where no memory is.
MMIO = 3 * GIB
# A data segment that nobody has loaded yet, its selector, and the byte that says so.
SEGMENT, SELECTOR, ACCESSED_BYTE = 0x00CF_9200_0000_FFFF, 0x10, 5
LOADED = 0x93
STRING_IO = {"outs": routines.OUTSB, "ins": routines.INSB}


@case(
    "SH10",
    "what KVM emulates reaches the page that the guest's own access would",
    needs=NEEDS,
    backend=BACKEND,
    vary={"view": ("private", "shared"), "what": ("outs", "ins")},
)
def emulated(tools: Toolbox, view: str, what: str) -> None:
    stage = PagedViews(tools, "64")
    gpa, cpu = getattr(stage.at, view), stage.helper
    stage.convert(gpa)
    cpu.prepare(STRING_IO[what], rsi=gpa, rdi=gpa, rdx=PORT)
    if what == "outs":
        for _ in range(2):
            cpu.expect_memory_error(
                gpa, stage.wanted(gpa), f"{what} from a page in the wrong state"
            )
        stage.give_back(gpa)
        registers = cpu.vcpu.get_regs()
        stage.cpu.use(stage.tables)
        stage.write_beside(gpa, 0xA5)
        cpu.vcpu.set_regs(registers)
        expect(stage.port_byte(cpu), 0xA5, f"what {what} writes to a port from a {view} page")
    else:
        stage.port_byte(cpu, 0x5A)
        cpu.expect_memory_error(gpa, stage.wanted(gpa), f"{what} into a page in the wrong state")
        stage.give_back(gpa)
        stage.port_byte(cpu, 0x5A)
        cpu.finish(f"{what} after the conversion")
        cpu.expect_read(gpa, 0x5A, f"what {what} wrote into a {view} page", 1)


@case(
    "SH14",
    "what KVM emulates exits for a page table in the other state, with the table's GPA",
    needs=NEEDS,
    backend=BACKEND,
    vary={"mode": tuple(MODES), "tables": ("private", "shared"), "what": tuple(STRING_IO)},
)
def emulated_walk(tools: Toolbox, mode: str, tables: str, what: str) -> None:
    stage = PagedViews(tools, mode, tables)
    cpu, table = stage.cpu, stage.tables.table(1)
    linear = stage.tables.map(0, PLAIN_DATA)
    stage.helper.write(PLAIN_DATA, 0xA5, 1)
    cpu.prepare(STRING_IO[what], rsi=linear, rdi=linear, rdx=PORT)
    if what == "ins":
        stage.port_byte(cpu, 0x5A)
    stage.convert(table)
    for _ in range(2):
        cpu.expect_memory_error(
            table, stage.wanted(table), f"{what} by a page table in the wrong state"
        )
        if what == "ins":
            stage.port_byte(cpu, 0x5A)
    stage.give_back(table)
    stage.tables.write_again()
    if what == "outs":
        expect(stage.port_byte(cpu), 0xA5, f"what {what} writes to a port after the conversion")
        return
    cpu.finish(f"{what} after the conversion")
    stage.helper.expect_read(PLAIN_DATA, 0x5A, f"what {what} wrote after the conversion", 1)


@case(
    "SH15",
    "a descriptor that KVM loads and marks for an emulated instruction is that of its view",
    needs=NEEDS,
    backend=BACKEND,
    vary={"view": ("private", "shared")},
)
def descriptor(tools: Toolbox, view: str) -> None:
    """A segment register is loaded with a selector from MMIO, so KVM emulates all of it."""
    stage = PagedViews(tools, "64")
    gpa, cpu = getattr(stage.at, view), stage.helper
    linear = stage.tables.map(0, gpa)
    if view == "private":
        stage.at.to_private(0, PAGE)
    cpu.prepare(routines.HALT)
    sregs = cpu.vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = gpa, SELECTOR + 7
    cpu.vcpu.set_sregs(sregs)
    stage.convert(gpa)
    cpu.prepare(routines.LOAD_SEGMENT, rdi=MMIO)
    for _ in range(2):
        _answer_selector(cpu)
        cpu.expect_memory_error(
            gpa, stage.wanted(gpa), f"a descriptor in a {view} page in the wrong state"
        )
    stage.give_back(gpa)
    stage.cpu.use(stage.tables)
    for half in (0, 4):
        stage.cpu.write(linear + SELECTOR + half, SEGMENT >> 8 * half, 4)
    _answer_selector(cpu)
    cpu.finish("a descriptor after the conversion")
    expect(int(cpu.vcpu.get_sregs().ds.selector), SELECTOR, "the selector that was loaded")
    stage.cpu.expect_read(
        linear + SELECTOR + ACCESSED_BYTE, LOADED, f"a descriptor in a {view} page, loaded", 1
    )


def _answer_selector(cpu: Cpu) -> None:
    outcome = cpu.enter()
    expect(outcome.reason, lib.KVM_EXIT_MMIO, "the exit of an instruction that loads a selector")
    cpu.answer(SELECTOR)


@case(
    "SH16",
    "code whose page is converted while KVM emulates it exits like any fetch",
    needs=RACES,
    backend=BACKEND,
    vary={"mode": ("off", "64")},
    alone=True,
)
def code_meanwhile(tools: Toolbox, mode: str) -> None:
    """Each round of the code is a write that KVM emulates and that makes no exit."""
    with _emulated_forever(tools, mode, "code") as it:
        for _ in tools.enough(200, limit_s=20):
            _wait_for(lambda: it.rounds.take() > 0, it.running)
            seen = it.exits[0]
            it.at.file.allocate(0, PAGE)
            tools.tried(it.rounds.take() > 0, INSIDE)
            _wait_for(lambda seen=seen: it.exits[0] > seen, it.running)  # type: ignore[misc]
            it.at.to_shared(0, PAGE)


@case(
    "SH17",
    "a page that is converted and back while KVM emulates may exit, and nothing else",
    needs=RACES,
    backend=BACKEND,
    vary={"mode": ("off", "64"), "what": ("code", "data")},
    alone=True,
)
def back_again(tools: Toolbox, mode: str, what: str) -> None:
    """The emulator cannot have the page; when KVM looks why, it is there again."""
    with _emulated_forever(tools, mode, what) as it:
        for _ in tools.enough(1500, limit_s=30):
            seen = it.exits[0]
            it.at.file.allocate(0, PAGE)
            it.at.to_shared(0, PAGE)
            _wait_for(lambda: it.rounds.take() > 0, it.running)
            tools.tried(it.exits[0] > seen, "conversions and back made an exit")


class _Emulated(NamedTuple):
    """A vCPU in another thread: the views it reaches, its rounds, exits so far, and its end."""

    at: Views
    rounds: EventFd
    exits: list[int]
    running: Future[None]


@contextmanager
def _emulated_forever(tools: Toolbox, mode: str, what: str) -> Iterator[_Emulated]:
    """A vCPU whose every round KVM emulates; the first shared page is ``what`` of it."""
    stage = PagedViews(tools, mode)
    routine = {"code": routines.WRITE_FOREVER, "data": routines.COPY_FOREVER}[what]
    code_at, stop_at = {"code": 0, "data": PAGE}[what], 2 * PAGE
    side = stage.at.side.view
    side[code_at : code_at + len(routine.code)] = routine.code
    rounds = tools.keep(EventFd())
    stage.vm.vm.ioeventfd(rounds, MMIO, 0)
    page, entry, stop = (stage.at.shared + offset for offset in (0, code_at, stop_at))
    to = MMIO
    if mode != "off":
        page, entry, stop, to = map(stage.tables.map, range(4), (page, entry, stop, to))
    stage.cpu.prepare(entry, rsi=page, rdi=to, rbx=stop)
    wanted, exits = Fault(TO_SHARED, stage.at.shared, PAGE), [0]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(_run_until_it_halts, stage.cpu, wanted, exits)
        try:
            yield _Emulated(stage.at, rounds, exits, running)
        finally:
            side[stop_at] = 1
            stage.at.to_shared(0, PAGE)
        running.result()


def _run_until_it_halts(cpu: Cpu, wanted: Fault, exits: list[int]) -> None:
    """Enter again and again; each exit must be ``wanted``. They are counted in ``exits``."""
    while True:
        outcome = cpu.enter(deadline_s=1000)
        if isinstance(outcome.exit, HltExit):
            return
        if (outcome.error, outcome.fault) != (errno.EPERM, wanted):
            raise CheckFailed(
                "a page was converted while KVM emulated what needs it: no exit for its page",
                str(outcome),
            )
        exits[0] += 1


def _wait_for(it: Callable[[], bool], running: Future[None]) -> None:
    """Until ``it`` is so; no longer than the vCPU runs, whose end is a failure."""
    until = time.monotonic() + 30
    while not it():
        if running.done():
            running.result()
        if running.done() or time.monotonic() > until:
            raise CheckFailed("a vCPU whose code is converted and back does not go on")
        time.sleep(0)
