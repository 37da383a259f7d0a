"""Conversions under a vCPU that uses the page all the while, and does not leave the guest.

Any exit reloads the TLB and hides a flush that is missing, so the vCPU reports what it
reads into a mailbox in memory. When a call has returned, a round that began afterwards
must not see what was before it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, HUGE, KIB, MIB, PAGE, case
from pyvmm.validate.kit.check import check
from pyvmm.validate.kit.guest import Outcome
from pyvmm.validate.kit.memory import ATTRIBUTE, Memory
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.userfault import HeldPage
from pyvmm.validate.kit.watch import INSIDE, PRIVATE_WORD, SHARED_WORD, Watch, watched_memory

NEEDS = ("private_memory", "two_cpus", "native_guests")
SIZE = 8 * PAGE
_ROUNDS = 40
# However slow the machine is.
_STALE_S = 5.0
# So many tries are enough where a machine is fast. Without the check of stale faults one of 25
# lost races, and one of 20 pairs of punches, leaves a page that is wrong.
_LOST_RACES, _PUNCHES = 500, 2000


@case(
    "RC1",
    "a conversion reaches a vCPU that never leaves the guest: no stale TLB entry",
    needs=NEEDS,
    backend="guest_memfd",
    vary={
        "to": ("private", "shared"),
        "gpa": (512 * KIB, 4 * GIB),
        "backing": ("anonymous", "thp"),
    },
    alone=True,
)
def attribute_change(tools: Toolbox, to: str, gpa: int, backing: str) -> None:
    memory = watched_memory(tools, gpa, SIZE, backing)
    page = 3 * PAGE
    change, undo = memory.set_private, memory.set_shared
    expected = PRIVATE_WORD
    if to == "shared":
        change, undo, expected = undo, change, SHARED_WORD
    undo(page, PAGE)
    with Watch(memory.vm.cpu, gpa + page) as watch:
        for _ in tools.enough(_ROUNDS):
            tools.tried(watch.during(change, page, PAGE), INSIDE)
            value = watch.after(watch.rounds)
            check(
                value == expected,
                f"after a conversion to {to} had returned, a vCPU that stayed in the guest still "
                f"read the other side (TLB flush or zap missing)",
                f"it read {value:#x}",
            )
            undo(page, PAGE)
            watch.fresh()


@case(
    "RC2",
    "a punch reaches a vCPU that never leaves the guest: the page is gone for it too",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"slots": (1, 4), "gpa": (512 * KIB, 4 * GIB)},
    alone=True,
)
def punch(tools: Toolbox, slots: int, gpa: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, SIZE, slots=slots, file_offset=2 * PAGE)
    memory.set_private(0, SIZE)
    page = 5 * PAGE
    with Watch(vm.cpu, gpa + page, routines.COUNT) as watch:
        for _ in tools.enough(_ROUNDS, 4 * _STALE_S):
            began = watch.rounds
            watch.after(began + 200)
            before = watch.rounds
            tools.tried(watch.during(memory.punch, page, PAGE), INSIDE)
            value = watch.after(watch.rounds)
            rounds = watch.rounds
            # The guest counts in the page: a new page has counted only since the punch began.
            check(
                value <= rounds - before + 1,
                "after a punch had returned, a vCPU that stayed in the guest still used the page "
                "(zap or TLB flush missing)",
                f"it had counted to {value}, {rounds - before} of it since the punch",
            )


@case(
    "RC4",
    "two conversions in quick succession: no fault under way installs a stale page",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"end": ("private", "shared")},
    alone=True,
)
def stale_fault(tools: Toolbox, end: str) -> None:
    gpa = 4 * GIB + 2 * PAGE
    memory = watched_memory(tools, 4 * GIB, SIZE)
    there, back = (0, ATTRIBUTE) if end == "private" else (ATTRIBUTE, 0)
    requests = [
        ffi.new("struct kvm_memory_attributes *", (gpa, PAGE, attributes, 0))
        for attributes in (there, back)
    ]
    first, second = (int(ffi.cast("uintptr_t", request)) for request in requests)
    # What is between the two calls must be shorter than a fault: nothing but the call itself.
    fd, number = memory.vm.vm.fileno(), IOCTLS["KVM_SET_MEMORY_ATTRIBUTES"].number
    ioctl = lib.kvm_ioctl
    expected = PRIVATE_WORD if end == "private" else SHARED_WORD
    delays = [range(tools.random.randrange(1 + 4**power)) for power in range(6) for _ in range(50)]
    tools.random.shuffle(delays)
    wrong = flips = failed = 0
    with Watch(memory.vm.cpu, gpa) as watch:
        until = time.monotonic() + 3 * _STALE_S
        while time.monotonic() < until and watch.lost_races < _LOST_RACES and not wrong:
            delay = delays[flips % len(delays)]
            failed |= ioctl(fd, number, first)
            for _ in delay:
                pass
            failed |= ioctl(fd, number, second)
            wrong += watch.after(watch.rounds) != expected
            flips += 1
    check(failed == 0, "KVM_SET_MEMORY_ATTRIBUTES fails under a vCPU that uses the page")
    check(
        wrong == 0,
        f"a fault that was under way during two conversions mapped the page that is not {end} "
        "(stale-fault check missing)",
        f"after {flips} flips, {watch.lost_races} lost races",
    )
    tools.provoked(watch.lost_races, f"lost races in {flips:,} flips")


@case(
    "RC5",
    "punches in quick succession: no fault under way installs a page that was given back",
    needs=NEEDS,
    backend="guest_memfd",
    alone=True,
)
def stale_punch(tools: Toolbox) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE)
    memory.set_private(0, SIZE)
    lost = punches = inside = 0

    def punch_twice(delay: range) -> None:
        memory.punch(0, PAGE)
        for _ in delay:
            pass
        memory.punch(0, PAGE)

    with Watch(vm.cpu, memory.gpa, routines.COUNT) as watch:
        until = time.monotonic() + _STALE_S
        while time.monotonic() < until and inside < _PUNCHES:
            punches += 1
            delay = range(tools.random.randrange(60))
            met = watch.during(punch_twice, delay)
            inside += met
            tools.tried(met, "pairs of punches found the vCPU inside the guest")
            # The guest counts in the page that it has mapped; unmapped, it faults in the file's.
            counted = watch.after(watch.rounds + 20)
            memory.set_shared(0, PAGE)
            memory.set_private(0, PAGE)
            lost += watch.after(watch.rounds) < counted
    check(
        lost == 0,
        "a fault that was under way during a punch mapped the page that was given back "
        "(stale-fault check missing)",
        f"{lost} of {punches} times the guest's page was not the file's",
    )


@case(
    "RC6",
    "host memory that is discarded and replaced under a vCPU: no stale shared page",
    needs=("guests", "two_cpus", "native_guests"),
    vary={"backing": ("anonymous", "thp", "shmem")},
    alone=True,
)
def shared_discard(tools: Toolbox, backing: str) -> None:
    vm = tools.vm()
    gpa, size = 4 * GIB, 2 * HUGE
    shared = tools.shared_side(gpa, size, backing)
    vm.vm.set_user_memory_region(vm.new_slot(), gpa, size, shared.address)
    page = 7 * PAGE
    with Watch(vm.cpu, gpa + page) as watch:
        for index in tools.enough(_ROUNDS):
            written = index + 1
            shared.view[page : page + 8] = written.to_bytes(8, "little")
            value = watch.after(watch.rounds)
            check(value == written, "the guest does not see what the host wrote", f"{value:#x}")
            tools.tried(watch.during(shared.discard, page, PAGE), INSIDE)
            value = watch.after(watch.rounds)
            check(
                value == 0,
                f"a vCPU reads {backing} memory that the host discarded (MMU notifier or TLB "
                "flush missing)",
                f"it read {value:#x} for {written:#x}",
            )


@case(
    "RC7",
    "vCPUs use pages that the host converts at random: every exit is right, no value wrong",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"cpus": (1, 2, 4)},
    alone=True,
)
def random_conversions(tools: Toolbox, cpus: int) -> None:
    memory = watched_memory(tools, 4 * GIB, SIZE)
    for index in range(1, cpus):
        memory.vm.add_cpu(index)
    states = [True] * 8
    with ExitStack() as stack:
        watches = [
            stack.enter_context(Watch(cpu, memory.gpa + (index % 2) * PAGE))
            for index, cpu in enumerate(memory.vm.cpus)
        ]
        for _ in tools.enough(300):
            first = tools.random.randrange(4)
            count = tools.random.randrange(1, 5)
            private = tools.random.random() < 0.5
            change = memory.set_private if private else memory.set_shared
            before = [watch.rounds for watch in watches]
            change(first * PAGE, count * PAGE)
            tools.tried([watch.rounds for watch in watches] != before, INSIDE)
            states[first : first + count] = [private] * count
            for index, watch in enumerate(watches):
                expected = PRIVATE_WORD if states[index % 2] else SHARED_WORD
                value = watch.after(watch.rounds)
                check(
                    value == expected,
                    "a vCPU reads the side that its page is not on any more",
                    f"vCPU {index} read {value:#x}",
                )
    tools.provoked(sum(watch.lost_races for watch in watches), "lost races")


@case(
    "RC8",
    "slots come and go while another slot's pages are used and converted",
    needs=NEEDS,
    backend="guest_memfd",
    alone=True,
)
def slots_beside(tools: Toolbox) -> None:
    memory = watched_memory(tools, 4 * GIB, SIZE)
    beside = tools.memory(memory.vm, 5 * GIB, SIZE)
    with Watch(memory.vm.cpu, memory.gpa) as watch:
        for _ in tools.enough(30):
            tools.tried(watch.during(beside.delete), INSIDE)
            check(
                watch.after(watch.rounds) == PRIVATE_WORD, "a page beside a slot that was deleted"
            )
            memory.set_shared(0, PAGE)
            tools.tried(watch.during(beside.create), INSIDE)
            check(watch.after(watch.rounds) == SHARED_WORD, "a page beside a slot that was made")
            memory.set_private(0, PAGE)
            check(watch.after(watch.rounds) == PRIVATE_WORD, "a page beside a slot that was made")


@case(
    "RC3",
    "a deleted slot is gone for a vCPU that never leaves the guest",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"state": ("private", "shared")},
    alone=True,
)
def slot_deletion(tools: Toolbox, state: str) -> None:
    memory = watched_memory(tools, 4 * GIB, SIZE)
    if state == "shared":
        memory.set_shared(0, SIZE)
    for _ in tools.enough(5):
        outcome = run_until_exit(tools, memory, PAGE)
        if state == "private":
            wanted = (ATTRIBUTE, memory.gpa + PAGE, PAGE)
            check(
                outcome.fault == wanted,
                "the exit of a private page whose slot was deleted is not KVM_EXIT_MEMORY_FAULT "
                "with that page",
                str(outcome),
            )
        else:
            check(
                outcome.reason == lib.KVM_EXIT_MMIO,
                "the exit of a shared page whose slot was deleted is not KVM_EXIT_MMIO",
                str(outcome),
            )
        memory.create()


def run_until_exit(tools: Toolbox, memory: Memory, offset: int) -> Outcome:
    """Delete the slot under a vCPU that reads a page in it; the exit that it gets."""
    watch = Watch(memory.vm.cpu, memory.gpa + offset, stop_at_exit=True)
    with watch:
        tools.tried(watch.during(memory.delete), INSIDE)
        rounds = watch.rounds
        watch.join(10)
    check(
        watch.outcome is not None,
        "after a slot had been deleted, a vCPU that stayed in the guest went on to read it",
    )
    # A round that was under way may end.
    check(
        watch.rounds <= rounds + 1,
        "after the deletion of a slot had returned, a vCPU that stayed in the guest still read it "
        "(TLB flush missing)",
        f"{watch.rounds - rounds} times",
    )
    assert watch.outcome is not None
    return watch.outcome


@case(
    "RC9",
    "a guest_memfd that is closed is gone for a vCPU that never leaves the guest",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"slots": (1, 4)},
    alone=True,
)
def file_closed(tools: Toolbox, slots: int) -> None:
    vm = tools.private_vm()
    for attempt in tools.enough(1):
        memory = tools.memory(vm, 4 * GIB + attempt * SIZE, SIZE, slots=slots)
        memory.set_private(0, SIZE)
        close_file(tools, memory)


def close_file(tools: Toolbox, memory: Memory) -> None:
    gpa = memory.gpa + SIZE - PAGE
    with Watch(memory.vm.cpu, gpa, stop_at_exit=True) as watch:
        tools.tried(watch.during(memory.file.close), INSIDE)
        rounds = watch.rounds
        watch.join(10)
    outcome = watch.outcome
    check(
        outcome is not None,
        "after a guest_memfd had been closed, a vCPU that stayed in the guest went on to read it",
    )
    check(
        watch.rounds <= rounds + 1,
        "after a guest_memfd had been closed, a vCPU that stayed in the guest still read it (TLB "
        "flush missing)",
        f"{watch.rounds - rounds} times",
    )
    check(
        outcome is not None and outcome.fault == (ATTRIBUTE, gpa, PAGE),
        "the exit of a private page whose guest_memfd was closed is not KVM_EXIT_MEMORY_FAULT "
        "with that page",
        str(outcome),
    )


@case(
    "RC10",
    "a fault that waits for its shared page while the page becomes private maps the private one",
    needs=("private_memory", "native_guests"),
    backend="guest_memfd",
    vary={"gpa": (512 * KIB, 4 * GIB)},
)
def held_fault(tools: Toolbox, gpa: int) -> None:
    memory = watched_memory(tools, gpa, SIZE)
    vm, page = memory.vm, 5 * PAGE
    address = memory.shared.address + page
    for _ in range(8):
        memory.set_shared(page, PAGE)
        memory.shared.discard(page, PAGE)
        with ThreadPoolExecutor(1) as pool, HeldPage(address) as held:
            read = pool.submit(vm.cpu.read, gpa + page)
            held.wait()
            tools.tried(True, "faults waited while their page was converted")
            memory.set_private(page, PAGE)
            held.fill(SHARED_WORD.to_bytes(8, "little"))
            value = read.result()
        check(
            value == PRIVATE_WORD,
            "a fault that was under way during a conversion mapped the page of the other side "
            "(stale-fault check missing)",
            f"the guest reads {value:#x}",
        )


# So many pages that a vCPU faults while they change, however the system divides its CPUs.
_LONG = GIB


@case(
    "RC11",
    "while a large range changes no huge page is mapped over its ends",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"end": ("first", "last")},
    alone=True,
)
def huge_page_over_an_end(tools: Toolbox, end: str) -> None:
    vm = tools.private_vm()
    gpa = 5 * GIB
    memory = tools.memory(vm, gpa, HUGE, backing="thp")
    for offset in range(0, HUGE, PAGE):
        memory.shared.view[offset : offset + 8] = SHARED_WORD.to_bytes(8, "little")
    # A vCPU uses the one page of the block that is not in the range.
    outside, inside = (0, PAGE) if end == "first" else (HUGE - PAGE, 0)
    start = gpa + PAGE if end == "first" else gpa + HUGE - PAGE - _LONG
    change = vm.vm.set_memory_attributes
    for attempt in tools.enough(1):
        if attempt:
            change(start, _LONG, 0)
        with Watch(vm.cpu, gpa + outside) as watch:
            tools.tried(watch.during(change, start, _LONG, ATTRIBUTE), INSIDE)
            check(
                watch.after(watch.rounds) == SHARED_WORD,
                "a shared page beside a large private range",
            )
        vm.cpu.expect_zero(
            gpa + inside,
            HUGE - PAGE,
            f"private pages of the {end} block of a range, which a vCPU used while the range "
            "became private (a huge page was mapped over the end of the range meanwhile)",
            PAGE,
        )


@case(
    "RC12",
    "while a large range over two slots changes no fault maps what was there before",
    needs=NEEDS,
    backend="guest_memfd",
    combinations=(
        {"what": "to private", "slot": "first"},
        {"what": "to shared", "slot": "second"},
        {"what": "punch", "slot": "first"},
        {"what": "punch", "slot": "second"},
    ),
    alone=True,
)
def fault_meanwhile(tools: Toolbox, what: str, slot: str) -> None:
    vm = tools.private_vm()
    lead = _LONG - SIZE if what != "punch" else 64 * MIB
    # Both slots are at the end of the range, which is what changes last.
    gpa = 4 * GIB + _LONG - SIZE
    memory = tools.memory(vm, gpa, SIZE, slots=2, file_offset=lead)
    page = PAGE if slot == "first" else SIZE - 2 * PAGE
    for offset in range(0, SIZE, PAGE):
        memory.shared.view[offset : offset + 8] = SHARED_WORD.to_bytes(8, "little")
    start, size = gpa + SIZE - _LONG, _LONG
    if what == "to private":
        expected = 0
    else:
        vm.vm.set_memory_attributes(start, size, ATTRIBUTE)
        expected = SHARED_WORD
    if what == "punch":
        for _ in tools.enough(1):
            memory.file.allocate(0, lead)
            with Watch(vm.cpu, gpa + page, routines.COUNT) as watch:
                watch.after(2000)
                before = watch.rounds
                tools.tried(watch.during(memory.file.punch, 0, lead + SIZE), INSIDE)
                counted, rounds = watch.after(watch.rounds), watch.rounds
            check(
                counted <= rounds - before + 1,
                f"a fault in the {slot} of two slots during a large punch mapped the page that was "
                "being given back (the fault must wait)",
                f"it had counted to {counted}, {rounds - before} of it since the punch",
            )
        return
    old, new = (0, ATTRIBUTE) if what == "to private" else (ATTRIBUTE, 0)
    change = vm.vm.set_memory_attributes
    for attempt in tools.enough(1):
        if attempt:
            change(start, size, old)
        with Watch(vm.cpu, gpa + page) as watch:
            tools.tried(watch.during(change, start, size, new), INSIDE)
            value = watch.after(watch.rounds)
        check(
            value == expected,
            f"a fault in the {slot} of two slots while a large range changed {what} mapped the "
            "other side (the fault must wait)",
            f"the guest reads {value:#x}",
        )
