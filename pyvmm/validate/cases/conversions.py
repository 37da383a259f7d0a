"""Explicit conversions: KVM_SET_MEMORY_ATTRIBUTES, fallocate and punch, and what both sides see.

Ranges are (offset, size) in memory of 2 MiB + 12 KiB, so that there is a page on either
side of most of them. What may be stale is always read before anything else faults.
"""

from __future__ import annotations

from pyvmm.validate.kit.case import GIB, HUGE, KIB, PAGE, case
from pyvmm.validate.kit.check import check
from pyvmm.validate.kit.memory import BACKINGS, Memory
from pyvmm.validate.kit.patterns import HOST, LATER, PRIVATE, SHARED
from pyvmm.validate.kit.race import Overlaps, in_threads
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = HUGE + 3 * PAGE
RANGES = ((0, PAGE), (0, HUGE), (PAGE, PAGE), (PAGE, HUGE), (HUGE, PAGE))
BASES = (512 * KIB, 4 * GIB)


def new_memory(tools: Toolbox, gpa: int = 4 * GIB, size: int = SIZE) -> Memory:
    """Memory of a new VM, all shared, mapped by the guest, which wrote SHARED everywhere."""
    memory = tools.memory(tools.private_vm(), gpa, size)
    memory.guest_fill(0, size, SHARED)
    return memory


@case(
    "PC1",
    "each page has a shared and a private side, and neighbours keep theirs; no fallocate",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": BASES, "range": RANGES},
)
def explicit(tools: Toolbox, gpa: int, range: tuple[int, int]) -> None:
    offset, size = range
    memory = tools.memory(tools.private_vm(), gpa, SIZE)
    memory.fill(0, SIZE, HOST)
    memory.expect_guest(0, SIZE, HOST, "shared memory that the host wrote")
    memory.guest_fill(0, SIZE, SHARED)
    memory.expect_host(0, SIZE, SHARED, "shared memory that the guest wrote")

    memory.set_private(offset, size)
    memory.expect_guest_zero(offset, size, "new private pages")
    memory.guest_fill(offset, size, PRIVATE)
    memory.expect_host(0, SIZE, SHARED, "the shared side while the guest writes private pages")
    memory.fill(offset, size, HOST)
    memory.expect_guest(offset, size, PRIVATE, "private pages while the host writes its side")
    expect_neighbours(memory, offset, size, SHARED)

    memory.set_shared(offset, size)
    memory.expect_guest(offset, size, HOST, "pages that are shared again")
    expect_neighbours(memory, offset, size, SHARED)


def expect_neighbours(memory: Memory, offset: int, size: int, tag: int) -> None:
    """Everything before and behind a range still has the pattern."""
    end = offset + size
    if offset:
        memory.expect_guest(0, offset, tag, "pages before the converted range")
    if end < memory.size:
        memory.expect_guest(end, memory.size - end, tag, "pages behind the converted range")


@case(
    "PC2",
    "conversions that allocate the new side and give the old one back",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": BASES, "range": RANGES},
)
def allocate_and_punch(tools: Toolbox, gpa: int, range: tuple[int, int]) -> None:
    offset, size = range
    memory = new_memory(tools, gpa)
    memory.allocate(offset, size)
    memory.set_private(offset, size)
    memory.expect_guest_zero(offset, size, "private pages that fallocate made")
    memory.shared.discard(offset, size)
    memory.expect_guest_zero(offset, size, "private pages after the shared side was discarded")
    memory.guest_fill(offset, size, PRIVATE)
    memory.allocate(offset, size)
    memory.expect_guest(offset, size, PRIVATE, "private pages after a second fallocate")

    memory.to_shared(offset, size)
    memory.expect_guest_zero(offset, size, "pages that are shared again, the old content discarded")
    memory.set_private(offset, size)
    memory.expect_guest_zero(offset, size, "pages that are private again after a punch")
    expect_neighbours(memory, offset, size, SHARED)


@case(
    "PC3",
    "odd pages back to shared inside a private range",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": BASES, "step": (1, 2, 3)},
)
def odd_pages(tools: Toolbox, gpa: int, step: int) -> None:
    size = 48 * PAGE
    memory = new_memory(tools, gpa, size)
    memory.to_private(0, size)
    memory.guest_fill(0, size, PRIVATE)
    shared = [page for page in range(1, 48, 2) if (page // 2) % step == 0]
    for page in shared:
        memory.to_shared(page * PAGE, PAGE)
    for page in shared:
        memory.expect_guest_zero(page * PAGE, PAGE, "an odd page that is shared again")
    for page in shared:
        memory.fill(page * PAGE, PAGE, HOST)
    for page in range(48):
        tag, what = (HOST, "a shared page") if page in shared else (PRIVATE, "a private page")
        memory.expect_guest(page * PAGE, PAGE, tag, f"{what} among the other kind")


@case(
    "PC4",
    "a whole range back to shared in one call, then all of it punched",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": BASES},
)
def whole_range_back(tools: Toolbox, gpa: int) -> None:
    memory = new_memory(tools, gpa)
    for offset, size in RANGES[:3]:
        memory.set_private(offset, size)
        memory.guest_fill(offset, size, PRIVATE)
    memory.set_shared(0, SIZE)
    memory.expect_guest(0, SIZE, SHARED, "the shared side, kept while pages were private")
    memory.punch(0, SIZE)
    memory.expect_guest(0, SIZE, SHARED, "the shared side after the private one was punched")
    memory.set_private(0, SIZE)
    memory.expect_guest_zero(0, SIZE, "the private side, read again after the punch")


@case(
    "PC5",
    "all pages punched while they are private read zero",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": BASES, "times": (1, 8)},
)
def punch_everything(tools: Toolbox, gpa: int, times: int) -> None:
    memory = new_memory(tools, gpa)
    memory.set_private(0, SIZE)
    for _ in range(times):
        memory.guest_fill(0, SIZE, PRIVATE)
        memory.punch(0, SIZE)
        memory.expect_guest_zero(0, SIZE, "private pages after a punch")
    memory.expect_host(0, SIZE, SHARED, "the shared side after private pages were punched")


@case(
    "PC6",
    "a punched range reads zero from its first page to its last, its neighbours are intact",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"gpa": BASES, "range": (*RANGES[2:], (3 * PAGE, 5 * PAGE), (HUGE - PAGE, 2 * PAGE))},
)
def punch_range(tools: Toolbox, gpa: int, range: tuple[int, int]) -> None:
    offset, size = range
    memory = new_memory(tools, gpa)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    # Every word of the pages on either side.
    cpu, beside = memory.vm.cpu, [memory.gpa + offset - PAGE, memory.gpa + offset + size]
    for gpa in beside:
        cpu.fill(gpa, PAGE, PRIVATE, 8)
    memory.punch(offset, size)
    memory.expect_guest_zero(offset + size - PAGE, PAGE, "the last page of a punched range")
    memory.expect_guest_zero(offset, size, "a punched range")
    for gpa in beside:
        cpu.expect_filled(gpa, PAGE, PRIVATE, "a page beside a punched range", 8)
    expect_neighbours(memory, offset, size, PRIVATE)


@case(
    "PC7",
    "an attribute change reaches the first and the last page of a range and no other",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={
        "pages": ((1, 1), (1, 2), (2, 5), (0, 7), (63, 2), (62, 64), (0, 512), (511, 2), (513, 2)),
        "to": ("private", "shared"),
    },
)
def edges(tools: Toolbox, pages: tuple[int, int], to: str) -> None:
    first, count = pages
    last = first + count - 1
    memory = new_memory(tools)
    if to == "shared":
        memory.set_private(0, SIZE)
        memory.guest_fill(0, SIZE, PRIVATE)
    old, new = (SHARED, 0) if to == "private" else (PRIVATE, SHARED)
    change = memory.set_private if to == "private" else memory.set_shared
    change(first * PAGE, count * PAGE)
    # Each is mapped and suspect: the ends first, for a fault may repair its neighbours.
    for page, name in ((last, "last"), (first, "first")):
        what = f"the {name} page of a range that became {to}"
        if new:
            memory.expect_guest(page * PAGE, PAGE, new, what)
        else:
            memory.expect_guest_zero(page * PAGE, PAGE, what)
    for page, name in ((first - 1, "before"), (last + 1, "behind")):
        if 0 <= page < SIZE // PAGE:
            memory.expect_guest(page * PAGE, PAGE, old, f"the page {name} a range that became {to}")


@case(
    "PC8",
    "vCPUs convert and use ranges of their own at the same time",
    needs=("private_memory", "two_cpus"),
    backend="guest_memfd",
    combinations=(
        {"slots": 1, "cpus": 2},
        {"slots": 1, "cpus": 4},
        {"slots": 4, "cpus": 2},
        {"slots": 4, "cpus": 4},
    ),
)
def disjoint_ranges(tools: Toolbox, slots: int, cpus: int) -> None:
    each = HUGE + PAGE
    vm = tools.private_vm(cpus)
    memory = tools.memory(vm, 4 * GIB, each * cpus, slots=slots)
    beside = Overlaps(tools)

    def work(cpu: int) -> None:
        start = cpu * each
        for offset, size in ((0, PAGE), (PAGE, 15 * PAGE), (HUGE - PAGE, 2 * PAGE)):
            at = start + offset
            beside(memory.guest_fill, at, size, SHARED + cpu, cpu)
            beside(memory.to_private, at, size)
            memory.expect_guest_zero(at, size, "a vCPU's new private pages", cpu)
            beside(memory.guest_fill, at, size, PRIVATE + cpu, cpu)
            memory.expect_guest(at, size, PRIVATE + cpu, "a vCPU's private pages", cpu)
            beside(memory.to_shared, at, size)
            memory.expect_guest_zero(at, size, "a vCPU's pages that are shared again", cpu)

    in_threads(work, cpus)


@case(
    "PC9",
    "after the VM is closed its guest_memfd can be punched and allocated as before",
    needs=("private_memory",),
    backend="guest_memfd",
)
def after_the_vm(tools: Toolbox) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    vm.close()
    memory.punch(0, SIZE)
    memory.allocate(0, SIZE)
    memory.punch(PAGE, PAGE)


@case(
    "PC10",
    "conversions with each kind of memory behind the shared side",
    needs=("private_memory",),
    backend="guest_memfd",
    combinations=[
        {"backing": backing, "slots": slots, "cpus": cpus}
        for backing in BACKINGS
        for slots, cpus in ((1, 1), (1, 4), (4, 4))
    ],
)
def backings(tools: Toolbox, backing: str, slots: int, cpus: int) -> None:
    size = 2 * HUGE
    vm = tools.private_vm(cpus)
    memory = tools.memory(vm, 4 * GIB, size, backing=backing, slots=slots)
    memory.fill(0, size, HOST)
    for cpu in range(cpus):
        memory.expect_guest(0, size, HOST, f"shared memory ({backing})", cpu)
    for offset, length in RANGES:
        last = cpus - 1
        memory.to_private(offset, length)
        memory.expect_guest_zero(offset, length, f"private pages beside {backing}", last)
        memory.guest_fill(offset, length, PRIVATE, last)
        memory.expect_guest(offset, length, PRIVATE, f"private pages beside {backing}")
        behind = offset + length
        memory.expect_guest(behind, size - behind, HOST, f"{backing} behind private pages", last)
        memory.to_shared(offset, length)
        memory.expect_guest_zero(offset, length, f"discarded {backing} pages", last)
        memory.fill(offset, length, HOST)
        memory.expect_guest(offset, length, HOST, f"{backing} pages that are shared again")


@case(
    "PC11",
    "a change over several slots reaches the last page of each and the first of the next",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"slots": (2, 4), "to": ("private", "shared")},
)
def over_slots(tools: Toolbox, slots: int, to: str) -> None:
    size = 16 * PAGE
    memory = tools.memory(tools.private_vm(), 4 * GIB, size, slots=slots, file_offset=PAGE)
    memory.guest_fill(0, size, SHARED)
    if to == "shared":
        memory.set_private(0, size)
        memory.guest_fill(0, size, PRIVATE)
    old, change = (SHARED, memory.set_private) if to == "private" else (PRIVATE, memory.set_shared)
    # All pages but the first and the last.
    change(PAGE, size - 2 * PAGE)
    borders = [slot.gpa - memory.gpa for slot in memory.slots[1:]]
    for at in (*(border - PAGE for border in borders), *borders, PAGE, size - 2 * PAGE):
        what = f"a page beside a slot's border, in a range that became {to}"
        if to == "private":
            memory.expect_guest_zero(at, PAGE, what)
        else:
            memory.expect_guest(at, PAGE, SHARED, what)
    for at in (0, size - PAGE):
        memory.expect_guest(at, PAGE, old, f"a page outside a range of several slots, made {to}")


@case(
    "CV1",
    "what is not discarded comes back, what is discarded does not",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"discard": ("nothing", "private", "shared", "both")},
)
def stale_content(tools: Toolbox, discard: str) -> None:
    size = 16 * PAGE
    memory = new_memory(tools, size=size)
    for _ in range(3):
        memory.guest_fill(0, size, SHARED)
        memory.set_private(0, size)
        if discard in ("shared", "both"):
            memory.shared.discard(0, size)
        memory.guest_fill(0, size, PRIVATE)
        memory.set_shared(0, size)
        if discard in ("private", "both"):
            memory.punch(0, size)
        if discard in ("shared", "both"):
            memory.expect_guest_zero(0, size, "the discarded shared side")
        else:
            memory.expect_guest(0, size, SHARED, "the shared side that was kept")
        memory.set_private(0, size)
        if discard in ("private", "both"):
            memory.expect_guest_zero(0, size, "the punched private side")
        else:
            memory.expect_guest(0, size, PRIVATE, "the private side that was kept")
        memory.set_shared(0, size)


@case(
    "CV2",
    "recycled dirty pages are zero when they become private",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"by": ("fault", "fallocate", "prefault")},
)
def recycled(tools: Toolbox, by: str) -> None:
    size, rounds = 64 * PAGE, 40
    if by == "prefault":
        tools.need("pre_fault")
    memory = new_memory(tools, size=size)
    memory.set_private(0, size)
    cpu = memory.vm.cpu
    for _ in range(rounds):
        if by == "fallocate":
            memory.allocate(0, size)
        if by == "prefault":
            _pre_fault(memory, size)
        # Every byte of every page, and dirty again.
        cpu.expect_zero(memory.gpa, size, f"private pages made by {by} from recycled ones", 8)
        cpu.fill(memory.gpa, size, PRIVATE, 8)
        memory.punch(0, size)


def _pre_fault(memory: Memory, size: int) -> None:
    left, gpa = size, memory.gpa
    while left:
        left = memory.vm.cpu.vcpu.pre_fault_memory(gpa, left)
        gpa = memory.gpa + size - left


@case(
    "CV3",
    "discarding the stale side changes nothing on the live one, before and after it is used",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"live": ("private", "shared"), "order": ("before", "after")},
)
def discard_order(tools: Toolbox, live: str, order: str) -> None:
    size = 32 * PAGE
    memory = new_memory(tools, size=size)
    memory.set_private(0, size)
    memory.guest_fill(0, size, PRIVATE)
    if live == "shared":
        memory.set_shared(0, size)
    stale = memory.punch if live == "shared" else memory.shared.discard
    tag = LATER
    if order == "before":
        stale(0, size)
    memory.guest_fill(0, size, tag)
    if order == "after":
        stale(4 * PAGE, 8 * PAGE)
        stale(0, size)
    memory.expect_guest(0, size, tag, f"the live {live} side after the other was discarded")


@case(
    "CV4",
    "a conversion to the state that a page already has keeps its contents",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"state": ("private", "shared")},
)
def idempotent(tools: Toolbox, state: str) -> None:
    size = 16 * PAGE
    memory = new_memory(tools, size=size)
    again = memory.set_private if state == "private" else memory.set_shared
    again(4 * PAGE, 4 * PAGE)
    memory.guest_fill(4 * PAGE, 4 * PAGE, LATER)
    again(4 * PAGE, 4 * PAGE)
    memory.expect_guest(4 * PAGE, 4 * PAGE, LATER, f"pages made {state} twice")
    again(0, size)
    memory.expect_guest(4 * PAGE, 4 * PAGE, LATER, f"pages made {state} again with others")


@case(
    "CV7",
    "a range in which one page has the other state already, or still, is converted throughout",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"odd": (0, 1, 7, 14, 15), "to": ("private", "shared")},
)
def one_odd_page(tools: Toolbox, odd: int, to: str) -> None:
    size = 16 * PAGE
    memory = new_memory(tools, size=size)
    memory.set_private(0, size)
    memory.guest_fill(0, size, PRIVATE)
    there, back, tag = memory.set_private, memory.set_shared, PRIVATE
    if to == "shared":
        there, back, tag = back, there, SHARED
    # All pages but one have the state that is asked for.
    there(0, size)
    back(odd * PAGE, PAGE)
    there(0, size)
    memory.expect_guest(odd * PAGE, PAGE, tag, f"the one page of a range that was not {to}")
    memory.expect_guest(0, size, tag, f"a range made {to} that was so but for one page")
    # One page has it.
    back(0, size)
    there(odd * PAGE, PAGE)
    there(0, size)
    memory.expect_guest(0, size, tag, f"a range made {to} of which one page was so")


@case(
    "CV5",
    "accesses of every width see the same bytes, also across the edge of two states",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"width": (1, 2, 4, 8)},
)
def widths(tools: Toolbox, width: int) -> None:
    memory = new_memory(tools, size=4 * PAGE)
    cpu, gpa = memory.vm.cpu, memory.gpa
    memory.set_private(PAGE, PAGE)
    value = 0x8877665544332211 & (1 << 8 * width) - 1
    for offset in (PAGE, 2 * PAGE - width, PAGE - width // 2, 2 * PAGE - width // 2):
        cpu.write(gpa + offset, value, width)
        cpu.expect_read(gpa + offset, value, f"a word of {width} bytes", width)
    if width > 1:
        # Half of the bytes lie in the shared page before.
        low = value & (1 << 4 * width) - 1
        seen = int.from_bytes(memory.shared.view[PAGE - width // 2 : PAGE], "little")
        check(seen == low, f"a write of {width} bytes from shared to private left {seen:#x} shared")


@case(
    "CV6",
    "a page that goes to and fro many times never shows old contents",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"backing": ("anonymous", "shmem"), "gpa": BASES},
)
def to_and_fro(tools: Toolbox, backing: str, gpa: int) -> None:
    memory = tools.memory(tools.private_vm(), gpa, 8 * PAGE, backing=backing)
    cpu = memory.vm.cpu
    for index, page in enumerate(tools.random.choices(range(8), k=100)):
        at = memory.gpa + page * PAGE + 8
        memory.to_private(page * PAGE, PAGE)
        cpu.expect_read(at, 0, "a page that became private")
        cpu.write(at, PRIVATE + index)
        cpu.expect_read(at, PRIVATE + index, "a private page")
        memory.to_shared(page * PAGE, PAGE)
        cpu.expect_read(at, 0, "a page that became shared")
        cpu.write(at, SHARED + index)
        check(
            memory.shared.word(page * PAGE + 8) == SHARED + index,
            "the host does not see what the guest wrote to a page that became shared",
        )
