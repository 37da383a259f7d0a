"""The RFC of December 2021: KVM_MEM_PRIVATE slots and KVM_EXIT_MEMORY_ERROR.

A page is private when it is present in the private file. The private view is a slot with
KVM_MEM_PRIVATE, the shared view a second slot of the same file with KVM_MEM_SHARED_VIEW
too, where a kernel has that.
"""

from __future__ import annotations

import errno
from typing import Any

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.calls import KEEP_SIZE, fallocate
from pyvmm.validate.kit.case import GIB, HUGE, KIB, MIB, PAGE, case
from pyvmm.validate.kit.check import check, errno_of, expect, expect_errno
from pyvmm.validate.kit.guest import Fault
from pyvmm.validate.kit.race import Overlaps, in_threads
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.views import PRIVATE_SLOT, SHARED_SLOT, Views, set_slot
from pyvmm.validate.kit.watch import INSIDE, Watch, flip_while_faulting

NEEDS = ("memory_error",)
BACKEND = "memory_error"
TO_SHARED: int = lib.KVM_EXIT_MEM_MAP_SHARED
TO_PRIVATE: int = lib.KVM_EXIT_MEM_MAP_PRIVATE
SIZE = 64 * PAGE
# How long until there was a race: a busy machine lets few come.
_RACE_S = 30.0
TAG, OTHER = 0x11 << 48, 0x22 << 48
BASES = ((0x40000, 0xC0000), (4 * GIB, 5 * GIB), (4 * GIB, GIB))


def views(tools: Toolbox, bases: tuple[int, int] = BASES[1], **options: Any) -> Views:
    return Views(tools, tools.private_vm(), *bases, **{"size": SIZE, **options})


@case(
    "ME1",
    "the exit of each wrong access: EPERM, type, GPA and size; it repeats until converted",
    needs=NEEDS,
    backend=BACKEND,
    vary={"bases": BASES, "page": (0, 17, 63), "access": ("read", "write")},
)
def exits(tools: Toolbox, bases: tuple[int, int], page: int, access: str) -> None:
    at = views(tools, bases)
    cpu, offset = at.vm.cpu, page * PAGE
    routine = routines.READ[4] if access == "read" else routines.WRITE[4]
    cpu.prepare(routine, rdi=at.private + offset + 8, rax=1)
    for _ in range(3):
        cpu.expect_memory_error(at.private + offset, TO_PRIVATE, f"a private {access}")
    at.to_private(offset, PAGE)
    cpu.finish(f"a private {access} after the conversion")
    cpu.prepare(routine, rdi=at.shared + offset + PAGE - 4, rax=1)
    for _ in range(3):
        cpu.expect_memory_error(at.shared + offset, TO_SHARED, f"a shared {access}")
    at.to_shared(offset, PAGE)
    cpu.finish(f"a shared {access} after the conversion")


@case("ME2", "an instruction fetch exits like any access", needs=NEEDS, backend=BACKEND)
def fetch(tools: Toolbox) -> None:
    at = views(tools)
    at.vm.cpu.prepare(at.private + 3 * PAGE)
    at.vm.cpu.expect_memory_error(at.private + 3 * PAGE, TO_PRIVATE, "a fetch")


@case(
    "ME3",
    "a converted page is zero, its neighbours keep state and contents",
    needs=NEEDS,
    backend=BACKEND,
    vary={
        "bases": BASES,
        "range": ((0, 1), (3, 2), (10, 30), (63, 1)),
        "file_offset": (0, 5 * PAGE),
    },
)
def ranges(
    tools: Toolbox, bases: tuple[int, int], range: tuple[int, int], file_offset: int
) -> None:
    first, count = (each * PAGE for each in range)
    at = views(tools, bases, file_offset=file_offset)
    cpu = at.vm.cpu
    cpu.fill(at.shared, SIZE, TAG)
    at.to_private(first, count)
    for page in (first + count - PAGE, first):
        at.expect_error(at.shared + page, TO_SHARED, "a shared access to an end of the range")
    cpu.expect_zero(at.private + first, count, "new private pages")
    cpu.fill(at.private + first, count, OTHER)
    for start, end in ((0, first), (first + count, SIZE)):
        if start < end:
            cpu.expect_filled(at.shared + start, end - start, TAG, "shared pages beside the range")
            at.expect_error(at.private + start, TO_PRIVATE, "a private access beside the range")
    at.to_private(0, first + count)
    cpu.expect_filled(at.private + first, count, OTHER, "private pages allocated again")
    at.to_shared(first, count)
    at.expect_error(at.private + first + count - PAGE, TO_PRIVATE, "the last page, shared again")
    at.expect_error(at.private + first, TO_PRIVATE, "the first page, shared again")
    cpu.expect_zero(at.shared + first, count, "pages that are shared again")


@case("ME4", "allocated is private, touched or not, with either mode", needs=NEEDS, backend=BACKEND)
def untouched(tools: Toolbox) -> None:

    at = views(tools)
    for mode, page in ((0, 2), (KEEP_SIZE, 4)):
        expect(fallocate(at.file.fileno(), mode, page * PAGE, PAGE), 0, f"fallocate, mode {mode}")
        at.expect_error(at.shared + page * PAGE, TO_SHARED, "a shared access to allocated memory")
        at.vm.cpu.expect_zero(at.private + page * PAGE, PAGE, "allocated memory")


@case("ME5", "recycled dirty pages are zero when they are allocated", needs=NEEDS, backend=BACKEND)
def recycled(tools: Toolbox) -> None:
    at = views(tools)
    cpu = at.vm.cpu
    for _ in range(30):
        at.to_private(0, SIZE)
        cpu.expect_zero(at.private, SIZE, "private pages made of recycled ones", 8)
        cpu.fill(at.private, SIZE, TAG, 8)
        at.to_shared(0, SIZE)


@case(
    "ME6",
    "slots deleted and made again keep the state of their pages",
    needs=NEEDS,
    backend=BACKEND,
    vary={"change": ("none", "to private", "to shared")},
)
def made_again(tools: Toolbox, change: str) -> None:
    at = views(tools)
    cpu = at.vm.cpu
    at.to_private(0, 4 * PAGE)
    cpu.fill(at.private, 4 * PAGE, TAG)
    at.delete()
    if change == "to private":
        at.to_private(4 * PAGE, PAGE)
    elif change == "to shared":
        at.to_shared(3 * PAGE, PAGE)
    at.create()
    cpu.expect_filled(at.private, 3 * PAGE, TAG, "private pages, their slots made again")
    if change == "to private":
        at.expect_error(at.shared + 4 * PAGE, TO_SHARED, "a page made private meanwhile")
    if change == "to shared":
        at.expect_error(at.private + 3 * PAGE, TO_PRIVATE, "a page made shared meanwhile")


@case(
    "ME7",
    "a closed private file: private accesses EFAULT with exit 39, all else is shared",
    needs=NEEDS,
    backend=BACKEND,
)
def closed(tools: Toolbox) -> None:
    at = views(tools)
    cpu = at.vm.cpu
    at.to_private(0, PAGE)
    cpu.fill(at.private, PAGE, TAG)
    at.file.close()
    cpu.prepare(routines.READ[4], rdi=at.private)
    outcome = cpu.enter()
    expect(outcome.error, errno.EFAULT, "errno of a private access after the file was closed")
    cpu.write(at.shared, 7)
    cpu.expect_read(at.shared, 7, "a shared page after the private file was closed")


@case(
    "ME8",
    "the host cannot reach private pages by mmap, read or write",
    needs=NEEDS,
    backend=BACKEND,
)
def host_cannot_reach(tools: Toolbox) -> None:
    import os

    at = views(tools)
    at.to_private(0, SIZE)
    fd = at.file.fileno()
    check(errno_of(at.file.map) != 0, "the private file can be mapped")
    check(errno_of(lambda: os.pread(fd, 8, 0)) != 0, "the private file can be read")
    check(errno_of(lambda: os.pwrite(fd, b"x", 0)) != 0, "the private file can be written")


_REFUSED: dict[str, tuple[int, dict[str, int]]] = {
    "shared view without private": (errno.EINVAL, {"flags": lib.KVM_MEM_SHARED_VIEW}),
    "dirty logging": (errno.EINVAL, {"flags": PRIVATE_SLOT | lib.KVM_MEM_LOG_DIRTY_PAGES}),
    "read-only": (errno.EINVAL, {"flags": PRIVATE_SLOT | lib.KVM_MEM_READONLY}),
    "flags bit 4": (errno.EINVAL, {"flags": PRIVATE_SLOT | 16}),
    "flags bit 31": (errno.EINVAL, {"flags": PRIVATE_SLOT | 1 << 31}),
    "padding 0": (errno.EINVAL, {"padding": 0}),
    "padding 4": (errno.EINVAL, {"padding": 4}),
    "fd -1": (errno.EINVAL, {"fd": -1}),
    "offset unaligned": (errno.EINVAL, {"offset": 1}),
    "offset + size past the end": (errno.EINVAL, {"offset": PAGE}),
    "offset at the end": (errno.EINVAL, {"offset": SIZE}),
    "offset negative": (errno.EINVAL, {"offset": -PAGE}),
    "size past the end": (errno.EINVAL, {"size": SIZE + PAGE}),
    "size unaligned": (errno.EINVAL, {"size": PAGE + 1}),
    "size negative": (errno.EINVAL, {"size": -PAGE}),
    "gpa unaligned": (errno.EINVAL, {"gpa": 6 * GIB + 1}),
    "gpa wraps": (errno.EINVAL, {"gpa": -PAGE}),
    "address in the kernel's half": (errno.EINVAL, {"address": 1 << 63}),
    "slot 32764": (errno.EINVAL, {"slot": 32764}),
    "slot of another address space": (errno.EINVAL, {"slot": 1 << 16 | 20}),
    "overlap": (errno.EEXIST, {"gpa": 5 * GIB}),
    "overlap by a page": (errno.EEXIST, {"gpa": 5 * GIB - PAGE}),
}


@case(
    "ME9",
    "what is wrong with a slot is refused, and changes nothing",
    needs=NEEDS,
    backend=BACKEND,
    combinations=[{"wrong": wrong} for wrong in _REFUSED],
)
def refused(tools: Toolbox, wrong: str) -> None:
    at = views(tools)
    at.vm.cpu.fill(at.shared, SIZE, TAG)
    spare = tools.keep(at.vm.vm.create_guest_memfd(SIZE))
    good = {
        "slot": 20,
        "gpa": 6 * GIB,
        "size": SIZE,
        "address": at.side.address,
        "flags": PRIVATE_SLOT,
        "fd": spare.fileno(),
    }

    def attempt(**change: int) -> None:
        set_slot(at.vm, **{**good, **change})

    attempt()
    at.vm.vm.set_user_memory_region(20, 0, 0, 0)
    expected, change = _REFUSED[wrong]
    expect_errno(lambda: attempt(**change), expected, f"KVM_MEM_PRIVATE with {wrong}")
    at.vm.cpu.expect_filled(at.shared, SIZE, TAG, "memory in use after a call that was refused")
    attempt()
    for field in ("gpa", "flags", "offset"):
        other = {"gpa": 7 * GIB, "flags": SHARED_SLOT, "offset": 0}[field]
        expect_errno(
            lambda field=field, other=other: attempt(**{field: other}),  # type: ignore[misc]
            errno.EINVAL,
            f"a slot that is there, with another or the same {field}",
        )


@case(
    "ME10",
    "a block of huge shared pages with one private page",
    needs=NEEDS,
    backend=BACKEND,
    vary={"page": (0, 3, 511, 512)},
)
def huge(tools: Toolbox, page: int) -> None:
    at = views(tools, (4 * GIB, 5 * GIB), size=2 * HUGE, backing="thp")
    cpu = at.vm.cpu
    at.side.fill(at.shared, 0, 2 * HUGE, TAG)
    cpu.expect_filled(at.shared, 2 * HUGE, TAG, "shared memory made of huge pages")
    offset = page * PAGE
    at.file.allocate(offset, PAGE)
    if page:
        cpu.expect_filled(at.shared, offset, TAG, "shared pages before a private one")
    behind = offset + PAGE
    cpu.expect_filled(at.shared + behind, 2 * HUGE - behind, TAG, "shared pages behind it")
    at.expect_error(at.shared + offset, TO_SHARED, "a shared access to the private page")


@case(
    "ME11",
    "a conversion reaches a vCPU that never leaves the guest",
    needs=(*NEEDS, "two_cpus", "native_guests"),
    backend=BACKEND,
    vary={"to": ("private", "shared")},
    alone=True,
)
def running(tools: Toolbox, to: str) -> None:

    at = views(tools)
    view, wanted = (at.shared, TO_SHARED) if to == "private" else (at.private, TO_PRIVATE)
    for _ in tools.enough(20, _RACE_S):
        (at.to_shared if to == "private" else at.to_private)(0, PAGE)
        with Watch(at.vm.cpu, view, stop_at_exit=True) as watch:
            convert = at.to_private if to == "private" else at.to_shared
            tools.tried(watch.during(convert, 0, PAGE), INSIDE)
            watch.join(10)
        outcome = watch.outcome
        check(
            outcome is not None,
            f"after a conversion to {to} a vCPU that stayed in the guest went on to use the page",
        )
        assert outcome is not None
        seen = (outcome.error, outcome.fault)
        expect(seen, (errno.EPERM, (wanted, view, PAGE)), "errno and exit of that vCPU")


@case(
    "ME12",
    "a page that is converted while it is faulted in: no stale mapping",
    needs=(*NEEDS, "two_cpus", "native_guests"),
    backend=BACKEND,
    vary={"end": ("private", "shared")},
    alone=True,
)
def stale_fault(tools: Toolbox, end: str) -> None:

    at = views(tools)
    first, last = (at.to_private, at.to_shared)
    view, wanted = at.private, TO_PRIVATE
    if end == "private":
        first, last, view, wanted = at.to_shared, at.to_private, at.shared, TO_SHARED
    flip_while_faulting(
        tools,
        lambda wait: Watch(at.vm.cpu, view, stop_at_exit=True, wait=wait),
        lambda: first(0, PAGE),
        lambda: last(0, PAGE),
        Fault(wanted, view, PAGE),
        f"a vCPU that faults while its page becomes {end} gets no exit for it "
        "(stale-fault check missing)",
    )


@case(
    "ME13",
    "vCPUs of both views and the host fight for pages: none ever sees another's bytes",
    needs=(*NEEDS, "two_cpus"),
    backend=BACKEND,
    vary={"base": (512 * KIB, 4 * GIB)},
    alone=True,
    deadline_s=120.0,
)
def fight(tools: Toolbox, base: int) -> None:

    vm = tools.private_vm(cpus=2)
    at = Views(tools, vm, base, GIB, SIZE)
    beside = Overlaps(tools)

    def work(cpu: int) -> None:
        view = (at.private, at.shared)[cpu]
        mine = (0xAAAA, 0xBBBB)[cpu]
        for index in range(150):
            gpa = view + index % 4 * PAGE
            for routine in (routines.WRITE[4], routines.READ[4]):
                vm.cpus[cpu].prepare(routine, rdi=gpa, rax=mine)
                outcome = vm.cpus[cpu].enter()
                while outcome.error == errno.EPERM and outcome.fault is not None:
                    convert = at.to_private if outcome.fault.flags == TO_PRIVATE else at.to_shared
                    beside(convert, outcome.fault.gpa - view, PAGE)
                    outcome = vm.cpus[cpu].enter()
                expect(outcome.reason, lib.KVM_EXIT_HLT, "exit after conversions")
            value = int(vm.cpus[cpu].vcpu.get_regs().rax)
            check(value in (0, mine), "a vCPU sees what the other view wrote", f"{value:#x}")

    for _ in tools.enough(1, _RACE_S):
        in_threads(work, 2)


@case(
    "ME14",
    "two shared views of a file: a conversion reaches the pages that the guest uses in either",
    needs=NEEDS,
    backend=BACKEND,
    vary={"first": ("lower", "higher")},
)
def two_shared_views(tools: Toolbox, first: str) -> None:
    at = views(tools)
    cpu, other = at.vm.cpu, 6 * GIB
    set_slot(
        at.vm,
        slot=at.vm.new_slot(),
        gpa=other,
        size=SIZE,
        address=at.side.address,
        flags=SHARED_SLOT,
        fd=at.file.fileno(),
    )
    cpu.fill(at.shared, SIZE, TAG)
    cpu.expect_filled(other, SIZE, TAG + at.shared - other, "a second shared view")
    # Not discarded: that would unmap the host's memory from both.
    at.file.allocate(3 * PAGE, 2 * PAGE)
    for view in (at.shared, other) if first == "lower" else (other, at.shared):
        for page in (4, 3):
            at.expect_error(view + page * PAGE, TO_SHARED, "a private page in one of two views")
        cpu.expect_filled(view, 3 * PAGE, TAG + at.shared - view, "shared pages beside it")
    at.to_shared(3 * PAGE, 2 * PAGE)
    for view in (at.shared, other):
        what = "pages that are shared again in both views"
        cpu.expect_filled(view, SIZE, TAG + at.shared - view, what)


@case(
    "ME15",
    "while a large range becomes private no fault maps its shared pages again",
    needs=(*NEEDS, "two_cpus", "native_guests", "statistics"),
    backend=BACKEND,
    alone=True,
)
def fault_meanwhile(tools: Toolbox) -> None:
    size = 64 * MIB
    at = views(tools, size=size)
    page = at.shared + size - PAGE
    for _ in tools.enough(1, _RACE_S):
        at.file.punch(0, size)
        with Watch(at.vm.cpu, page, stop_at_exit=True) as watch:
            before = at.vm.cpu.counter("pf_taken")
            at.file.allocate(0, size)
            faults = at.vm.cpu.counter("pf_taken") - before
            tools.tried(faults > 1, "calls had the vCPU fault again and again")
            watch.join(10)
        outcome = watch.outcome
        check(
            outcome is not None and outcome.fault == (TO_SHARED, page, PAGE),
            "a vCPU that uses a shared page while a large range becomes private gets no exit for "
            "it (the fault must wait)",
            str(outcome),
        )
