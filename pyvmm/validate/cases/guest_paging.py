"""The RFC's private memory under a guest's own paging: 32-bit, PAE, 64-bit, and without.

With nested paging the CPU walks the guest's page tables, without it KVM does, and keeps what it
made of them: FNAME(page_fault) of paging_tmpl.h, or nonpaging_page_fault(). A guest must not see
which. Its page tables may lie in either view; their pages are converted like others, and then a
walk exits as any access does.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyvmm.kvm.mapping import Mapping
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.accounts import left_behind, lines
from pyvmm.validate.kit.case import HUGE, MIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, check, expect
from pyvmm.validate.kit.guest import Fault, Outcome
from pyvmm.validate.kit.paged_views import PLAIN_DATA, SIZE, TO_SHARED, PagedViews
from pyvmm.validate.kit.paging import MODES, leaf
from pyvmm.validate.kit.routines import Routine
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.userfault import HeldPage
from pyvmm.validate.kit.watch import INSIDE, Watch, flip_while_faulting

NEEDS = ("memory_error",)
RACES = (*NEEDS, "two_cpus", "native_guests")
BACKEND = "memory_error"
A, B = 0x1111_0001, 0x2222_0002
# Bits of an entry.
ACCESSED, DIRTY = 0x20, 0x40
# One in some hundreds meets the moment that matters.
_HELD_FAULTS = 600
# Numbers of pages of PageTables.LINEAR by which a guest reaches its own tables.
LEAF, DIRECTORY = 9, 10


def _combinations() -> list[dict[str, str]]:
    paged = [
        {"mode": mode, "tables": tables, "pages": pages}
        for mode in MODES
        for tables in ("plain", "private", "shared")
        for pages in ("small", "large")
    ]
    return [{"mode": "off", "tables": "none", "pages": "none"}, *paged]


@case(
    "SH1",
    "under guest paging each wrong access exits with the page's GPA, and goes on afterwards",
    needs=NEEDS,
    backend=BACKEND,
    combinations=_combinations(),
)
def exits(tools: Toolbox, mode: str, tables: str, pages: str) -> None:
    stage = PagedViews(tools, mode, "plain" if tables == "none" else tables)
    at, cpu = stage.at, stage.cpu
    for page, access in enumerate(("read", "write", "fetch")):
        for number, view in enumerate((at.private, at.shared)):
            gpa = view + page * PAGE
            linear = gpa
            if pages == "small":
                linear = stage.tables.map(2 * page + number, gpa)
            elif pages == "large":
                linear = stage.tables.map_large(view, number) + page * PAGE
            if view == at.shared:
                at.to_private(page * PAGE, PAGE)
            routine: Routine | int = linear  # for a fetch
            if access != "fetch":
                routine = (routines.READ if access == "read" else routines.WRITE)[4]
            cpu.prepare(routine, rdi=linear, rax=B)
            what = f"a {'private' if view == at.private else 'shared'} {access} under guest paging"
            for _ in range(3):
                cpu.expect_memory_error(gpa, stage.wanted(gpa), what)
            stage.give_back(gpa)
            stage.helper.write(gpa, 0xF4F4F4F4, 4)
            seen = cpu.finish(f"{what}, after the conversion").rax
            if access == "read":
                expect(int(seen), 0xF4F4F4F4, f"what the guest reads there, {what}")
            if access == "write":
                stage.helper.expect_read(gpa, B, f"what the guest wrote there, {what}", 4)


@case(
    "SH2",
    "a guest page table that is converted: the walk exits with the table's GPA",
    needs=NEEDS,
    backend=BACKEND,
    vary={"mode": tuple(MODES), "tables": ("private", "shared")},
)
def tables_converted(tools: Toolbox, mode: str, tables: str) -> None:
    stage = PagedViews(tools, mode, tables)
    linear = stage.tables.map(0, PLAIN_DATA)
    stage.helper.write(PLAIN_DATA, A, 4)
    for level in stage.tables.mode.converted_levels:
        page = stage.tables.table(level)
        stage.cpu.expect_read(linear, A, f"a page under page tables in a {tables} page", 4)
        stage.convert(page)
        stage.expect_error(
            linear, page, f"a walk through a {tables} view's page table that was converted"
        )
        stage.give_back(page)
        stage.tables.write_again()
        seen = stage.cpu.finish("a walk after its page table was converted back").rax
        expect(int(seen), A, "what the guest reads after its page table was converted back")


@case(
    "SH3",
    "a guest changes its page tables, in any page, before and after they were converted",
    needs=NEEDS,
    backend=BACKEND,
    vary={
        "mode": tuple(MODES),
        "tables": ("plain", "private", "shared"),
        "by": tuple(routines.REMAP),
    },
)
def remap(tools: Toolbox, mode: str, tables: str, by: str) -> None:
    stage = PagedViews(tools, mode, tables)
    ours, mode_ = stage.tables, stage.tables.mode
    private, shared = stage.private(0, A), stage.shared(4, B)
    linear, large = ours.map(0, private), ours.map_large(stage.at.private)
    to_leaf = ours.map(LEAF, ours.table(1)) + ours.entry(linear) % PAGE
    to_directory = ours.map(DIRECTORY, ours.table(2)) + ours.entry(large, 2) % PAGE
    large_flags = leaf(0) | 0x80

    def change(entry: int, old: int, new: int, address: int) -> None:
        value = {"add": new - old, "exchange": old}.get(by, new) & 0xFFFFFFFF
        rbx = new if by == "exchange" else ours.gpa
        stage.cpu.prepare(routines.REMAP[by], rdi=entry, rsi=address, rax=value, rbx=rbx)

    def expect_value(value: int, what: str) -> None:
        seen = int(stage.cpu.finish(what).rax)
        expect(seen, value, f"{what} ({tables} page tables, {mode_.name}): what the guest reads")

    for when in ("", ", after its pages were converted and back"):
        if when and tables != "plain":
            stage.convert_tables_and_back()
        for _ in range(2):
            stage.cpu.expect_read(linear, A, f"a page under a guest's page table{when}", 4)
            change(to_leaf, leaf(private), leaf(shared), linear)
            expect_value(B, f"a guest that changed its page table{when}")
            change(to_leaf, leaf(shared), leaf(private), linear)
            expect_value(A, f"a guest that changed its page table back{when}")
        stage.cpu.expect_read(large, A, f"a page under a guest's page directory{when}", 4)
        change(to_directory, stage.at.private | large_flags, stage.at.shared | large_flags, large)
        stage.cpu.expect_memory_error(
            stage.at.shared, TO_SHARED, f"a private page by a page directory that was changed{when}"
        )
        stage.at.to_shared(0, PAGE)
        stage.shared(0, B)
        expect_value(B, f"a guest that changed its page directory{when}")
        stage.private(0, A)
        change(to_directory, stage.at.shared | large_flags, stage.at.private | large_flags, large)
        expect_value(A, f"a guest that changed its page directory back{when}")


@case(
    "SH4",
    "a fault maps no neighbour in the wrong state",
    needs=NEEDS,
    backend=BACKEND,
    vary={"mode": tuple(MODES)},
)
def neighbours(tools: Toolbox, mode: str) -> None:
    stage = PagedViews(tools, mode)
    at = stage.at
    # Readable memory behind the private view, that nobody may ever see.
    at.delete()
    at.hole = tools.keep(Mapping(SIZE))
    at.hole.view[:] = b"\x77" * SIZE
    at.create()
    at.side.view[:] = b"\x66" * SIZE
    kinds = []
    for page in range(8):
        if page % 4 in (0, 3):
            kinds.append((stage.private(page, A + page), A + page))
        elif page % 4 == 1:
            at.file.allocate(page * PAGE, PAGE)  # not discarded: it could be mapped still
            kinds.append((at.shared + page * PAGE, 0))
        else:
            kinds.append((at.private + page * PAGE, 0))
    addresses = [stage.tables.map(page, gpa) for page, (gpa, _) in enumerate(kinds)]
    for start in (0, 3):
        stage.cpu.expect_read(addresses[start], A + start, "a private page", 4)
        for linear, (gpa, value) in zip(addresses, kinds, strict=True):
            if value:
                stage.cpu.expect_read(linear, value, "a private page beside others", 4)
            else:
                stage.expect_error(
                    linear, gpa, "a page in the wrong state beside one that is mapped"
                )


@case(
    "SH5",
    "a large page of the guest over pages of both states",
    needs=NEEDS,
    backend=BACKEND,
    vary={"mode": tuple(MODES), "tables": ("plain", "private")},
)
def large_pages(tools: Toolbox, mode: str, tables: str) -> None:
    stage = PagedViews(tools, mode, tables, size=2 * HUGE, backing="thp")
    at = stage.at
    at.side.fill(at.shared, 0, 2 * HUGE, 0x33 << 48)
    for number, view in enumerate((at.shared, at.private)):
        large = stage.tables.map_large(view, number)
        for page in (0, 5, 300):
            linear, gpa = large + page * PAGE, view + page * PAGE
            for _ in range(2):
                stage.convert(gpa)
                stage.expect_error(linear, gpa, "a page of the other state in a large page")
                stage.give_back(gpa)
                stage.helper.write(gpa, A, 4)
                stage.cpu.expect_read(linear, A, "the same page, converted back", 4)
        if view == at.shared:
            stage.helper.expect_read(
                view + 6 * PAGE, (0x33 << 48) + view + 6 * PAGE, "its neighbour"
            )


@case(
    "SH6",
    "walks through page tables in private pages keep none of these pages",
    needs=NEEDS,
    backend=BACKEND,
    alone=True,
)
def pages_back(tools: Toolbox) -> None:
    stage = PagedViews(tools, "64", "private")
    linear = stage.tables.map(0, PLAIN_DATA)
    rounds = 64

    def walk() -> None:
        for _ in range(rounds):
            stage.cpu.read(linear, 4)
            for level in stage.tables.mode.converted_levels:
                stage.convert(stage.tables.table(level))
                stage.give_back(stage.tables.table(level))
            stage.tables.write_again()

    walk()
    least = rounds * PAGE // 2
    grown = left_behind(walk, lines(), lambda line: max(line.noise, least // PAGE * line.unit), 3)
    if grown:
        line, seen = next(iter(grown.items()))
        raise CheckFailed(
            f"pages that were page tables are not given back ({line.name} grows)", f"by {seen}"
        )


@case(
    "SH7",
    "the conversion of a page table reaches a vCPU that never leaves the guest",
    needs=RACES,
    backend=BACKEND,
    vary={"mode": tuple(MODES), "tables": ("private", "shared")},
    alone=True,
)
def running(tools: Toolbox, mode: str, tables: str) -> None:
    stage = PagedViews(tools, mode, tables)
    linear = stage.tables.map(0, PLAIN_DATA)
    for level in stage.tables.mode.converted_levels:
        page = stage.tables.table(level)
        for _ in tools.enough(2):
            with Watch(stage.cpu, linear, routines.WATCH_32, stop_at_exit=True) as watch:
                tools.tried(watch.during(stage.convert, page), INSIDE)
                # The directory has the mailbox too, whose translation may be in the TLB still.
                watch.join(10)
            outcome = watch.outcome
            check(
                outcome is not None,
                "a vCPU went on with a page table that was converted under it",
                f"level {level}",
            )
            assert outcome is not None
            expect(outcome.fault, Fault(stage.wanted(page), page, PAGE), "the exit of that vCPU")
            stage.give_back(page)
            stage.tables.write_again()


@case(
    "SH8",
    "a page that is converted while it is faulted in under guest paging: no stale mapping",
    needs=RACES,
    backend=BACKEND,
    vary={"mode": ("off", "32", "64"), "end": ("private", "shared")},
    alone=True,
)
def stale_fault(tools: Toolbox, mode: str, end: str) -> None:
    stage = PagedViews(tools, mode)
    at = stage.at
    first, last, gpa = at.to_private, at.to_shared, at.private
    if end == "private":
        first, last, gpa = at.to_shared, at.to_private, at.shared
    linear = stage.tables.map(0, gpa) if mode != "off" else gpa
    flip_while_faulting(
        tools,
        lambda wait: Watch(stage.cpu, linear, routines.WATCH_32, stop_at_exit=True, wait=wait),
        lambda: first(0, PAGE),
        lambda: last(0, PAGE),
        Fault(stage.wanted(gpa), gpa, PAGE),
        f"a vCPU that faults under guest paging ({mode}) while its page becomes {end} gets no exit "
        "for it (stale-fault check missing)",
        seconds=3,
    )


@case(
    "SH9",
    "while a large range that has a guest's page tables is converted, no walk uses them again",
    needs=RACES,
    backend=BACKEND,
    vary={"mode": tuple(MODES), "tables": ("private", "shared"), "which": ("all", "topmost")},
    alone=True,
)
def walk_meanwhile(tools: Toolbox, mode: str, tables: str, which: str) -> None:
    size = 64 * MIB
    # At the end of the range, which changes state last.
    stage = PagedViews(tools, mode, tables, size=size, tables_at=size - MODES[mode].levels * PAGE)
    linear = stage.tables.map(0, PLAIN_DATA)
    # From the leaf to the first table of a walk that is not in a register.
    levels = stage.tables.mode.converted_levels
    pages = [stage.tables.table(level) for level in levels if which == "all" or level == levels[-1]]
    convert, back = stage.at.file.allocate, stage.at.file.punch
    if tables == "private":
        convert, back = back, convert
    for _ in tools.enough(1):
        back(0, size)
        stage.tables.write_again()
        with Watch(stage.cpu, linear, routines.WATCH_32, stop_at_exit=True) as watch:
            before = stage.cpu.counter("pf_taken")
            convert(0, size - (stage.tables.table(1) - pages[0]))  # what lies behind it stays
            faults = stage.cpu.counter("pf_taken") - before
            tools.tried(faults > 0, "calls had the vCPU take page faults")
            watch.join(10)
        outcome = watch.outcome
        # A walk that has read one table may find the next one converted.
        check(
            outcome is not None
            and outcome.fault in [Fault(stage.wanted(page), page, PAGE) for page in pages],
            "a vCPU walks its page tables while a large range with them is converted, and gets no "
            "exit for them (stale-walk check missing)",
            str(outcome),
        )
    stage.expect_error(linear, pages[-1], "a walk after its page tables were converted")


@case(
    "SH12",
    "while a large range is converted no fault under guest paging maps its pages again",
    needs=RACES,
    backend=BACKEND,
    vary={"mode": tuple(MODES), "end": ("private", "shared")},
    alone=True,
)
def fault_meanwhile(tools: Toolbox, mode: str, end: str) -> None:
    size = 64 * MIB
    stage = PagedViews(tools, mode, size=size)
    view = stage.at.private
    convert, back = stage.at.file.punch, stage.at.file.allocate
    if end == "private":
        view, convert, back = stage.at.shared, back, convert
    # At the end of the range, which changes state last.
    page = view + size - PAGE
    linear = stage.tables.map(0, page)
    for _ in tools.enough(1):
        back(0, size)
        with Watch(stage.cpu, linear, routines.WATCH_32, stop_at_exit=True) as watch:
            before = stage.cpu.counter("pf_taken")
            convert(0, size)
            tools.tried(
                stage.cpu.counter("pf_taken") > before, "calls had the vCPU take page faults"
            )
            watch.join(10)
        outcome = watch.outcome
        check(
            outcome is not None and outcome.fault == Fault(stage.wanted(page), page, PAGE),
            f"a vCPU that uses a page under guest paging while a large range becomes {end} gets "
            "no exit for it (stale-fault check missing)",
            str(outcome),
        )


@case(
    "SH13",
    "a fault under guest paging that gets its shared page as it becomes private maps nothing",
    needs=RACES,
    backend=BACKEND,
    vary={"mode": ("off", *MODES)},
    alone=True,
)
def held_fault(tools: Toolbox, mode: str) -> None:
    stage = PagedViews(tools, mode)
    page = 5 * PAGE
    gpa, address = stage.at.shared + page, stage.at.side.address + page
    linear = stage.tables.map(0, gpa) if mode != "off" else gpa
    convert = partial(os.posix_fallocate, stage.at.file.fileno(), page, PAGE)

    def read() -> Outcome:
        return stage.cpu.run(routines.READ[4], rdi=linear)

    with ThreadPoolExecutor(1) as pool:
        for number in range(_HELD_FAULTS):
            stage.at.to_shared(page, PAGE)
            if number % 50 == 0:
                read()  # where guests have a CPU of their own, this thread is elsewhere afterwards
            stage.at.side.discard(page, PAGE)
            with HeldPage(address) as held:
                first = pool.submit(read)
                held.wait()
                held.fill(A.to_bytes(4, "little"), wake=False)
                wake = held.waking()
                pause_s = 2e-6 * 300 ** tools.random.random()
                until = time.perf_counter() + pause_s
                wake()
                while time.perf_counter() < until:
                    pass  # it is a matter of microseconds
                convert()
                is_late = first.result().fault is not None
            tools.tried(is_late, "faults came to an end after the conversion")
            outcome = pool.submit(read).result()
            check(
                outcome.fault == Fault(TO_SHARED, gpa, PAGE),
                f"a fault under guest paging ({mode}) mapped its shared page while that became "
                "private (stale-fault check missing)",
                str(outcome),
            )


@case(
    "SH11",
    "accessed and dirty bits are set in the tables, in whichever view these are",
    needs=NEEDS,
    backend=BACKEND,
    vary={"mode": tuple(MODES), "tables": ("plain", "private", "shared")},
)
def accessed_and_dirty(tools: Toolbox, mode: str, tables: str) -> None:
    stage = PagedViews(tools, mode, tables)
    linear = stage.tables.map(0, PLAIN_DATA)
    levels = stage.tables.mode.converted_levels
    for access, wanted in (("read", ACCESSED), ("write", ACCESSED | DIRTY)):
        for level in levels:
            entry = stage.tables.entry(linear, level)
            stage.helper.write(entry, stage.tables.entries[entry] & ~(ACCESSED | DIRTY), 4)
        # Writes beside itself, flushes the TLB, and reads what it was told to.
        where = linear if access == "read" else PLAIN_DATA
        stage.cpu.prepare(
            routines.REMAP["write, CR3"], rdi=PLAIN_DATA + 8, rsi=where, rbx=stage.tables.gpa
        )
        stage.cpu.finish("a guest that loads CR3")
        if access == "write":
            stage.cpu.write(linear, A, 4)
        for level in levels:
            seen = stage.helper.read(stage.tables.entry(linear, level), 4) & (ACCESSED | DIRTY)
            expect(
                seen if level == 1 else seen & ACCESSED,
                wanted if level == 1 else ACCESSED,
                f"accessed and dirty bits of a {tables} page table after a {access}",
            )
