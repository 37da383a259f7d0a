"""Conversions in place while others use, pin, punch, delete or close the memory, or convert it.

Each case counts what it provoked. A guest that loses a race gets KVM_EXIT_MEMORY_FAULT with the
state of before, and is entered again.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, MIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, check, errno_name
from pyvmm.validate.kit.in_place import MAPPED, Flips, HostView, InPlace
from pyvmm.validate.kit.patterns import PRIVATE
from pyvmm.validate.kit.race import again_and_again
from pyvmm.validate.kit.references import OwnMemory, Pipe
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.watch import INSIDE, Watch

NEEDS = ("in_place", "two_cpus")
WATCHED = (*NEEDS, "native_guests")
BACKEND = "in_place"
GPA, PAGES = 4 * GIB, 8
SIZE = PAGES * PAGE
_SHORT_S = 1.5


def new_memory(tools: Toolbox, size: int = SIZE, **more: int) -> InPlace:
    return InPlace(tools, tools.private_vm(2), GPA, size, **more)


@case(
    "IP50",
    "the host writes all the while: no write lands in a page after to-private has returned",
    needs=NEEDS,
    backend=BACKEND,
    vary={"by": ("a system call", "/proc/self/mem")},
    alone=True,
)
def host_writes(tools: Toolbox, by: str) -> None:
    memory = new_memory(tools)
    page, stop = 3 * PAGE, threading.Event()
    counts = [0, 0]  # writes that were refused, and that were not
    # Two mappings: whoever unmaps one must unmap both.
    own = tools.keep(OwnMemory())
    views = [memory.host, tools.keep(HostView(tools.keep(memory.file.map()).address))]

    def write() -> None:
        while not stop.is_set():
            for view in views:
                if by == "a system call":
                    reached = view.write(page, b"\x5c" * 8)
                else:
                    reached = own.reaches(view.address + page, b"\x5c" * 8)
                counts[reached] += 1

    def went_on(before: list[int], reached: bool) -> None:
        """Wait until a write since ``before`` was refused, or was not."""
        until = time.monotonic() + 0.2
        while counts[reached] == before[reached] and time.monotonic() < until:
            time.sleep(0)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    busy = landed = 0
    try:
        for round_ in tools.enough(60, _SHORT_S):
            before = list(counts)
            went_on(before, True)
            answer = memory.ask(0, SIZE, True)
            if answer.error == errno.EAGAIN:
                busy += 1
                continue
            check(answer.error == 0, f"a conversion beside writes: {errno_name(answer.error)}")
            value = 0x1000 + round_
            memory.vm.cpu.write(GPA + page, value)
            went_on(before, False)
            landed += memory.vm.cpu.read(GPA + page) != value
            memory.to_shared(0, SIZE)
            tools.tried(
                counts[0] > before[0] and counts[1] > before[1],
                "rounds had writes before and after the conversion",
            )
    finally:
        stop.set()
        writer.join()
    check(
        landed == 0,
        f"the host's write by {by} lands in a page that is private (a mapping or a reference "
        "outlives the conversion)",
        f"{landed} times",
    )
    tools.say(f"{counts[1]:,} writes, {counts[0]:,} refused, {busy} EAGAIN")


@case(
    "IP51",
    "pins race with conversions: either EAGAIN, or the pin is refused, never both a success",
    needs=NEEDS,
    backend=BACKEND,
    alone=True,
)
def pins(tools: Toolbox) -> None:
    """The page is the first of many: a kernel that unmaps it last leaves time for the pin."""
    size, rounds, both = 8 * MIB, 100, 0
    memory = new_memory(tools, size)
    memory.allocate(0, size)
    start, done = threading.Barrier(2), threading.Barrier(2)
    until = time.monotonic() + 2 * _SHORT_S
    going, took_s = [True], [0.0]
    pinned: list[tuple[bool, int, int]] = []  # whether, and when the call began and ended

    def hold() -> None:
        for _ in range(rounds):
            delay_s = tools.random.random() * took_s[0]
            with Pipe() as pipe:
                start.wait()
                # A loop would keep the other thread waiting for Python.
                time.sleep(delay_s)
                began = time.monotonic_ns()
                pinned.append((pipe.hold(memory.address), began, time.monotonic_ns()))
                done.wait()
                done.wait()
            if not going[0]:
                return

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    while going[0] and len(pinned) < rounds:
        # The page is mapped, so that the pin is quick.
        memory.host.write(0, b"there")
        start.wait()
        began = time.monotonic_ns()
        answer = memory.ask(0, size, True)
        ended = time.monotonic_ns()
        going[0] = time.monotonic() < until
        done.wait()
        if not answer.error:
            took_s[0] = (ended - began) / 1e9
        is_held, pin_began, pin_ended = pinned[-1]
        what = f"a conversion beside a pin: {errno_name(answer.error)}"
        check(answer.error in (0, errno.EAGAIN), what)
        both += is_held and answer.error == 0
        tools.tried(pin_began < ended and pin_ended > began, "pins overlapped a conversion")
        memory.to_shared(0, size)
        goes_on = going[0]
        done.wait()
        if not goes_on:
            break
    holder.join()
    check(
        both == 0,
        "a page became private while somebody has a reference to it (unmapped after the check, "
        "or not checked at all)",
        f"{both} of {len(pinned)} times",
    )
    tools.say(f"{sum(each[0] for each in pinned)} of {len(pinned)} pins came first")


@case(
    "IP52",
    "two threads convert ranges that overlap, each its way: no range is a mixture",
    needs=NEEDS,
    backend=BACKEND,
    alone=True,
)
def opposite(tools: Toolbox) -> None:
    pages = 70
    memory = new_memory(tools, pages * PAGE)
    memory.guest_fill(0, memory.size, PRIVATE)
    barrier = threading.Barrier(2)
    failed: list[int] = []

    rounds = 40

    def to_shared() -> None:
        for _ in range(rounds):
            barrier.wait()
            failed.append(memory.ask(20 * PAGE, 50 * PAGE, False).error)
            barrier.wait()

    other = threading.Thread(target=to_shared, daemon=True)
    other.start()
    wins = [0, 0]
    for _ in range(rounds):
        barrier.wait()
        failed.append(memory.ask(0, 50 * PAGE, True).error)
        barrier.wait()
        states = memory.states()
        check(all(states[:20]), "pages that one of two threads made private are shared")
        check(not any(states[50:]), "pages that one of two threads made shared are private")
        both = set(states[20:50])
        check(len(both) == 1, "pages that two threads converted at once are of both states")
        wins[states[20]] += 1
        tools.tried(True, "conversions by two threads at once")
    other.join()
    check(not any(failed), "a conversion beside another fails", f"{set(failed)}")
    memory.expect_guest(0, memory.size, PRIVATE, "pages that two threads converted")
    tools.say(f"the one won {wins[0]}, the other {wins[1]} times")


@case(
    "IP53",
    "a vCPU that stays in the guest sees every write, whatever is converted under it",
    needs=WATCHED,
    backend=BACKEND,
    vary={"flags": (0, MAPPED)},
    alone=True,
)
def watched(tools: Toolbox, flags: int) -> None:
    memory = new_memory(tools, flags=flags)
    page = 2 * PAGE
    flips = Flips(memory)
    with Watch(memory.vm.cpu, GPA + page) as watch:
        for round_ in tools.enough(40, 2 * _SHORT_S):
            delay = range(tools.random.randrange(200))
            tools.tried(watch.during(flips, delay), INSIDE)
            value = 0x7700 + round_
            memory.vm.cpus[1].write(GPA + page, value)
            seen = watch.after(watch.rounds)
            check(
                seen == value,
                "a vCPU that stays in the guest reads another page than the file's after "
                "conversions",
                f"{seen:#x}",
            )
            if flags == MAPPED:
                seen_by_host = memory.host.word(page)
                check(seen_by_host == value, "the host and the guest see different pages")
    # Its exits were checked by the watch: the page, one page long, with the flag or without.
    flips.expect_success("a guest")
    tools.provoked(watch.lost_races, f"lost races in {flips.count:,} conversions")


@case(
    "IP54",
    "a punched page is gone for a vCPU that stays in the guest, in either state",
    needs=WATCHED,
    backend=BACKEND,
    vary={"state": ("private", "shared"), "slots": (1, 2)},
    alone=True,
)
def punched_under_a_guest(tools: Toolbox, state: str, slots: int) -> None:
    """Of two slots the guest uses the first one only, so that the other has nothing to flush."""
    memory = new_memory(tools, slots=slots)
    (memory.to_private if state == "private" else memory.to_shared)(0, SIZE)
    page = PAGE
    punched = (page, PAGE) if slots == 1 else (0, SIZE)
    with Watch(memory.vm.cpu, GPA + page, routines.COUNT) as watch:
        for _ in tools.enough(20, 2 * _SHORT_S):
            watch.after(watch.rounds + 200)
            before = watch.rounds
            tools.tried(watch.during(memory.punch, *punched), INSIDE)
            value = watch.after(watch.rounds)
            check(
                value <= watch.rounds - before + 1,
                f"after a punch of a {state} page had returned, a vCPU that stayed in the guest "
                "still used it (zap or TLB flush missing)",
                f"it had counted to {value}",
            )


@case(
    "IP55",
    "conversions beside another call on the same memory: both end well, and memory is sound",
    needs=NEEDS,
    backend=BACKEND,
    vary={"beside": ("punch", "fallocate", "slots", "pre-fault", "mappings", "a guest")},
    alone=True,
)
def beside(tools: Toolbox, beside: str) -> None:
    memory = new_memory(tools, slots=2)
    vm = memory.vm
    flips = Flips(memory)

    def map_and_touch() -> None:
        with memory.file.map() as mapping, HostView(mapping.address) as view:
            view.read(0, 8)

    def run_guest() -> None:
        vm.cpus[1].prepare(
            routines.FILL, rdi=GPA, rax=PRIVATE, rsi=PAGE, rcx=PAGES, r8=(1 << 64) - 1
        )
        while (outcome := vm.cpus[1].enter()).error:
            if outcome.fault is None:
                raise CheckFailed("a guest beside conversions got another exit", str(outcome))

    def pre_fault_all() -> None:
        _, error = pre_fault(vm.cpus[1], GPA, SIZE)
        if error not in (0, errno.EFAULT, errno.EAGAIN):
            raise CheckFailed(f"KVM_PRE_FAULT_MEMORY beside conversions: {errno_name(error)}")

    calls: dict[str, tuple[Callable[[], None], ...]] = {
        "punch": (lambda: memory.punch(0, SIZE),),
        "fallocate": (lambda: memory.allocate(0, SIZE), lambda: memory.punch(0, SIZE)),
        "slots": (memory.delete, memory.create),
        "pre-fault": (pre_fault_all,),
        "mappings": (map_and_touch,),
        "a guest": (run_guest,),
    }
    if beside == "pre-fault":
        tools.need("pre_fault")
        vm.cpus[1].read(0x9000)
    made = [0]

    def counting(call: Callable[[], None]) -> Callable[[], None]:
        def make() -> None:
            call()
            made[0] += 1

        return make

    with again_and_again(*map(counting, calls[beside])):
        for _ in tools.enough(150, _SHORT_S):
            before = made[0]
            flips(range(tools.random.randrange(300)))
            tools.tried(made[0] != before, f"pairs of conversions beside {beside}")
    # A host's touch holds its page for a moment.
    flips.expect_success(beside, (errno.EAGAIN,) if beside == "mappings" else ())
    if beside == "slots":
        memory.delete()
        memory.create()
    memory.expect_states([False] * PAGES, f"after conversions beside {beside}")
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.expect_host(0, SIZE, PRIVATE, f"memory after conversions beside {beside}")
    memory.to_private(0, SIZE)
    memory.expect_guest(0, SIZE, PRIVATE, f"memory after conversions beside {beside}")
    memory.expect_refused(0, SIZE, f"memory after conversions beside {beside}")


@case(
    "IP56",
    "slots, file and VM are closed in the middle of conversions, and nothing is used after that",
    needs=NEEDS,
    backend=BACKEND,
    vary={"closed": ("file", "VM", "slots and file")},
    alone=True,
)
def closed_meanwhile(tools: Toolbox, closed: str) -> None:
    for _ in tools.enough(6, _SHORT_S):
        memory = new_memory(tools, slots=2)
        memory.guest_fill(0, SIZE, PRIVATE)
        fd = os.dup(memory.file.fileno())
        flips = Flips(memory, fd)
        made = threading.Event()

        def work(flips: Flips = flips, made: threading.Event = made, fd: int = fd) -> None:
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                flips()
                made.set()
            os.close(fd)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        made.wait()
        if closed == "file":
            memory.close_file()
        elif closed == "VM":
            memory.vm.close()
        else:
            memory.delete()
            memory.close_file()
        tools.tried(worker.is_alive(), f"closings of {closed} in the middle of conversions")
        worker.join()
        flips.expect_success(f"a closing of {closed}")
        memory.vm.close()


@case(
    "IP57",
    "a slot that is deleted under a vCPU gives MMIO, private page or not",
    needs=WATCHED,
    backend=BACKEND,
    vary={"state": ("private", "shared")},
    alone=True,
)
def slot_deleted(tools: Toolbox, state: str) -> None:
    memory = new_memory(tools)
    (memory.to_private if state == "private" else memory.to_shared)(0, SIZE)
    # A page that was MMIO once may be taken for shared still: each is asked for once.
    for page, _ in zip(range(PAGES), tools.enough(4, _SHORT_S), strict=False):
        gpa = GPA + page * PAGE
        watch = Watch(memory.vm.cpu, gpa, stop_at_exit=True)
        with watch:
            tools.tried(watch.during(memory.delete), INSIDE)
            watch.join(10)
        outcome = watch.outcome
        check(
            outcome is not None and outcome.reason == lib.KVM_EXIT_MMIO and not outcome.error,
            f"the exit of a {state} page whose slot was deleted is not KVM_EXIT_MMIO: a page "
            "without a slot is shared",
            str(outcome),
        )
        mmio = memory.vm.cpu.vcpu.kvm_run.mmio
        seen = (int(mmio.phys_addr), int(mmio.len), int(mmio.is_write))
        check(seen == (gpa, 8, 0), f"the MMIO exit of a {state} page", str(seen))
        memory.vm.cpu.answer(0)
        memory.create()


@case(
    "IP58",
    "a storm: two vCPUs and the host use pages that are converted at random; no byte is wrong",
    needs=NEEDS,
    backend=BACKEND,
    alone=True,
)
def storm(tools: Toolbox) -> None:
    """Each page has a writer of its own; all of them read what they wrote, in either state."""
    pages = 70
    memory = new_memory(tools, pages * PAGE, slots=2)
    stop = threading.Event()
    wrong: list[str] = []
    lost, refused, busy, done = [0, 0], [0], 0, 0

    def guest(index: int) -> None:
        cpu, value = memory.vm.cpus[index], 0
        while not stop.is_set():
            value += 1
            page = index + 2 + 4 * (value % 17)
            at = GPA + page * PAGE
            for routine in (routines.WRITE[8], routines.READ[8]):
                cpu.prepare(routine, rdi=at, rax=value)
                while (outcome := cpu.enter()).error:
                    fault = outcome.fault
                    if outcome.error != errno.EFAULT or fault is None or fault.gpa != at:
                        wrong.append(f"vCPU {index} got {outcome}")
                        return
                    lost[index] += 1
            if int(cpu.vcpu.get_regs().rax) != value:
                wrong.append(f"vCPU {index} reads another value than it wrote")
                return

    def host() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            at = 4 * (value % 17) * PAGE
            if not memory.host.write(at, value.to_bytes(8, "little")):
                refused[0] += 1
                continue
            seen = memory.host.word(at)
            if seen is not None and seen != value:
                wrong.append("the host reads another value than it wrote")
                return

    threads = [threading.Thread(target=guest, args=(at,), daemon=True) for at in range(2)]
    threads.append(threading.Thread(target=host, daemon=True))
    with ExitStack() as stack:
        for each in threads:
            each.start()
            stack.callback(each.join)
        stack.callback(stop.set)
        until = time.monotonic() + _SHORT_S
        while time.monotonic() < until and not wrong:
            first = tools.random.randrange(pages)
            count = tools.random.randrange(1, pages - first + 1)
            private = tools.random.random() < 0.5
            error = memory.ask(first * PAGE, count * PAGE, private).error
            done += 1
            busy += error == errno.EAGAIN
            if error not in (0, errno.EAGAIN) or (error and not private):
                wrong.append(f"a conversion fails: {errno_name(error)}")
    check(not wrong, f"under random conversions {wrong[0] if wrong else ''}")
    tools.provoked(
        done, f"conversions, {busy} EAGAIN, {sum(lost)} lost races, {refused[0]} writes refused"
    )


@case(
    "IP59",
    "while a large range converts, no fault maps what is being left, and the host none of it",
    needs=WATCHED,
    backend=BACKEND,
    alone=True,
)
def large(tools: Toolbox) -> None:
    size = 32 * MIB
    memory = new_memory(tools, size)
    memory.allocate(0, size)
    last = size - PAGE
    with Watch(memory.vm.cpu, GPA + last) as watch:
        for round_ in tools.enough(3, 2 * _SHORT_S):
            tools.tried(watch.during(memory.to_private, 0, size), INSIDE)
            memory.expect_refused(last, PAGE, "the last page of a large range")
            memory.vm.cpus[1].write(GPA + last, 0x900 + round_)
            check(watch.after(watch.rounds) == 0x900 + round_, "the last page of a large range")
            memory.to_shared(0, size)
            check(memory.host.word(last) == 0x900 + round_, "the last page of a large range")
