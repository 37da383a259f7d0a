"""Huge pages: KVM must not map one over pages of both states.

The shared side is made of transparent huge pages whose addresses equal their GPAs modulo
2 MiB, so that KVM does map 2 MiB at once where it may. The rest of a block is read before
the page in it that has the other state: a mapping that is too large would cover it.
"""

from __future__ import annotations

from pyvmm.native import lib
from pyvmm.validate.kit.case import GIB, HUGE, KIB, MIB, PAGE, case
from pyvmm.validate.kit.check import Missing, check, expect
from pyvmm.validate.kit.memory import ATTRIBUTE, Memory
from pyvmm.validate.kit.patterns import HOST, LATER, PRIVATE
from pyvmm.validate.kit.toolbox import Toolbox

PAGES = HUGE // PAGE
NEEDS = ("private_memory",)
BLOCKS = 3
# Where the memory begins: at a block, inside a block, and below 1 MiB.
BASES = (4 * GIB, 4 * GIB + 3 * PAGE, 512 * KIB)


def huge_memory(tools: Toolbox, gpa: int, slots: int = 1, file_offset: int = 0) -> Memory:
    memory = tools.memory(
        tools.private_vm(),
        gpa,
        BLOCKS * HUGE,
        backing="thp",
        slots=slots,
        file_offset=file_offset,
    )
    memory.fill(0, memory.size, HOST)
    return memory


def expect_mixed(memory: Memory, private: list[tuple[int, int]]) -> None:
    """``private`` ranges are fresh; all else is what the host wrote, and is read first."""
    at = 0
    for offset, size in [*private, (memory.size, 0)]:
        if offset > at:
            memory.expect_guest(at, offset - at, HOST, "shared pages of a block with both states")
        at = offset + size
    for offset, size in private:
        memory.expect_guest_zero(
            offset, size, "private pages of a block whose shared pages were mapped before"
        )
        memory.guest_fill(offset, size, PRIVATE)
    memory.expect_host(0, memory.size, HOST, "the shared side of a block with private pages")


@case(
    "HP1",
    "one private page in a block, at its start, in its middle, at its end",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"gpa": BASES, "page": (0, 1, 255, PAGES - 1, PAGES, 2 * PAGES - 4)},
)
def one_page(tools: Toolbox, gpa: int, page: int) -> None:
    memory = huge_memory(tools, gpa)
    memory.set_private(page * PAGE, PAGE)
    expect_mixed(memory, [(page * PAGE, PAGE)])


@case(
    "HP2",
    "private ranges that begin or end inside a block, of a block mapped before",
    needs=NEEDS,
    backend="guest_memfd",
    vary={
        "gpa": BASES[:2],
        "range": (
            (0, PAGE),
            (0, HUGE - PAGE),
            (PAGE, HUGE - PAGE),
            (PAGE, HUGE),
            (HUGE - PAGE, 2 * PAGE),
            (PAGE, 2 * HUGE),
            (HUGE, HUGE),
            (HUGE + PAGE, HUGE - PAGE),
        ),
    },
)
def ranges(tools: Toolbox, gpa: int, range: tuple[int, int]) -> None:
    memory = huge_memory(tools, gpa)
    memory.expect_guest(0, memory.size, HOST, "shared memory made of huge pages")
    memory.set_private(*range)
    expect_mixed(memory, [range])


@case(
    "HP3",
    "both states in one block, set before the slot was made and after it was made again",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"gpa": BASES, "page": (0, 7, PAGES - 1, PAGES + 1, 2 * PAGES + 4)},
)
def slot_made_later(tools: Toolbox, gpa: int, page: int) -> None:
    memory = huge_memory(tools, gpa)
    memory.delete()
    memory.set_private(page * PAGE, PAGE)
    memory.create()
    expect_mixed(memory, [(page * PAGE, PAGE)])
    memory.delete()
    memory.create()
    memory.expect_guest(0, page * PAGE, HOST, "shared pages before a private one, slot made again")
    memory.expect_guest(page * PAGE, PAGE, PRIVATE, "a private page, its slot made again")


@case(
    "HP4",
    "several slots on one file at offsets other than 0, with both states in their blocks",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"slots": (2, 4), "file_offset": (PAGE, HUGE + 5 * PAGE)},
)
def many_slots(tools: Toolbox, slots: int, file_offset: int) -> None:
    memory = huge_memory(tools, 4 * GIB + 16 * PAGE, slots, file_offset)
    private = [(5 * PAGE, PAGE), (HUGE - PAGE, 3 * PAGE), (2 * HUGE + PAGE, PAGE)]
    for offset, size in private:
        memory.set_private(offset, size)
    expect_mixed(memory, private)
    for offset, size in private:
        memory.expect_guest(offset, size, PRIVATE, "private pages in one of several slots")


@case(
    "HP5",
    "a block with both states becomes one of one state again, and right in every page",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"gpa": BASES[:2], "back_by": ("page", "range")},
)
def back_to_one_state(tools: Toolbox, gpa: int, back_by: str) -> None:
    memory = huge_memory(tools, gpa)
    pages = [1, 100, PAGES - 1]
    for page in pages:
        memory.set_private(page * PAGE, PAGE)
        memory.guest_fill(page * PAGE, PAGE, PRIVATE)
    if back_by == "range":
        memory.set_shared(0, HUGE)
    else:
        for page in pages:
            memory.set_shared(page * PAGE, PAGE)
    memory.expect_guest(0, memory.size, HOST, "blocks that are shared throughout again")
    memory.set_private(0, HUGE)
    memory.set_shared(PAGE, HUGE - 2 * PAGE)
    memory.expect_guest(PAGE, HUGE - 2 * PAGE, HOST, "the shared inside of a private block")
    memory.expect_guest_zero(0, PAGE, "the private first page of a block")


@case(
    "HP6",
    "a shared block of 2 MiB is mapped at once, one with a private page is not",
    needs=(*NEEDS, "statistics"),
    backend="guest_memfd",
    alone=True,
)
def large_mappings(tools: Toolbox) -> None:
    memory = huge_memory(tools, 4 * GIB)
    vm = memory.vm

    def mapped(tag: int) -> int:
        before = vm.counter("pages_2m")
        memory.guest_fill(0, HUGE, tag)
        return vm.counter("pages_2m") - before

    if mapped(HOST) <= 0:
        raise Missing("huge pages: KVM mapped none over a shared side made of them")
    memory.set_private(9 * PAGE, PAGE)
    memory.set_shared(10 * PAGE, PAGE)
    check(mapped(LATER) <= 0, "a block with a private page is mapped by one 2 MiB mapping")
    memory.expect_host(9 * PAGE, PAGE, HOST, "the shared side of a page that is private")
    memory.set_shared(9 * PAGE, PAGE)
    memory.shared.discard(0, HUGE)
    memory.fill(0, HUGE, HOST)
    memory.guest_fill(0, HUGE, LATER)
    memory.expect_host(0, HUGE, LATER, "a block that is shared throughout again")
    memory.set_private(9 * PAGE, PAGE)
    memory.set_shared(0, HUGE)
    check(
        mapped(HOST) > 0,
        "a block that is shared throughout again, by one call, is not mapped by one 2 MiB "
        "mapping any more",
    )


@case(
    "HP7",
    "host memory that lies otherwise in its blocks than the GPA is not mapped by huge pages",
    needs=NEEDS,
    backend="guest_memfd",
    combinations=(
        {"guest_memfd": False, "by": PAGE},
        {"guest_memfd": True, "by": PAGE},
        {"guest_memfd": True, "by": MIB},
    ),
)
def unaligned_address(tools: Toolbox, guest_memfd: bool, by: int) -> None:
    gpa, size = 4 * GIB, 2 * HUGE
    vm = tools.private_vm()
    shared = tools.shared_side(gpa, size + HUGE, "thp")
    # The pattern holds the GPA that the slot gives each page.
    shared.fill(gpa - by, 0, size + HUGE, HOST)
    file = tools.keep(vm.vm.create_guest_memfd(size))
    vm.vm.set_user_memory_region2(
        vm.new_slot(),
        gpa,
        size,
        shared.address + by,
        lib.KVM_MEM_GUEST_MEMFD if guest_memfd else 0,
        file.fileno(),
    )
    what = "shared memory whose host address and GPA lie otherwise in their blocks"
    vm.cpu.expect_filled(gpa, size, HOST, what, PAGE)
    vm.vm.set_memory_attributes(gpa + 9 * PAGE, PAGE, ATTRIBUTE)
    vm.vm.set_memory_attributes(gpa + 9 * PAGE, PAGE, 0)
    vm.cpu.expect_filled(gpa, size, HOST, f"{what}, after a page of it was private", PAGE)
    vm.vm.set_memory_attributes(gpa, HUGE, ATTRIBUTE)
    vm.vm.set_memory_attributes(gpa, HUGE, 0)
    vm.cpu.expect_filled(gpa, size, HOST, f"{what}, after a block of it was private", PAGE)


@case(
    "HP8",
    "dirty logging that begins and ends, wherever the slot lies in its block",
    needs=("guests",),
    vary={"offset": (0, PAGE, MIB, HUGE - PAGE), "backing": ("anonymous", "thp")},
)
def logging_comes_and_goes(tools: Toolbox, offset: int, backing: str) -> None:
    vm = tools.vm()
    # The guest maps whole blocks in its own page tables, beyond both ends of the slot.
    gpa, size, slot = 4 * GIB + offset, 2 * HUGE, vm.new_slot()
    shared = tools.shared_side(gpa, size, backing)
    for tag in (HOST, LATER, HOST):
        for flags in (lib.KVM_MEM_LOG_DIRTY_PAGES, 0):
            vm.vm.set_user_memory_region(slot, gpa, size, shared.address, flags)
            shared.fill(gpa, 0, size, tag)
            what = "memory whose logging has begun" if flags else "memory that is logged no more"
            vm.cpu.expect_filled(gpa, size, tag, what, PAGE)
            vm.cpu.fill(gpa, size, tag + 1, PAGE)
            for at in range(0, size, PAGE):
                seen = shared.word(at)
                check(seen == tag + 1 + gpa + at, f"{what}: the host does not see the guest's", "")


def _code(value: int) -> bytes:
    """``mov $value, %eax; hlt``, which fits into a word."""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xf4\xf4\xf4"


@case(
    "HP9",
    "code is fetched from the side that its page is on, whatever maps the rest of its block",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"gpa": BASES},
)
def code_in_a_block(tools: Toolbox, gpa: int) -> None:
    memory = huge_memory(tools, gpa)
    cpu = memory.vm.cpu
    beside, page = HUGE + 7 * PAGE, HUGE + 9 * PAGE
    for offset, value in ((beside, 1), (page, 2)):
        memory.shared.view[offset : offset + 8] = _code(value)

    def expect_code(offset: int, value: int, what: str) -> None:
        cpu.prepare(gpa + offset)
        expect(int(cpu.finish(what).rax), value, f"what ran: {what}")

    for offset, size in ((page, PAGE), (HUGE, HUGE)):
        expect_code(page, 2, "code in a shared page")
        memory.set_private(offset, size)
        cpu.write(gpa + page, int.from_bytes(_code(3), "little"))
        expect_code(page, 3, "code in a page that became private")
        memory.set_shared(offset, size)
        expect_code(beside, 1, "code beside a page that became shared again")
        expect_code(page, 2, "code in a page that became shared again")
        memory.set_private(offset, size)
        expect_code(page, 3, "code in a page that became private again, and was kept")
        memory.to_shared(offset, size)


@case(
    "HP10",
    "a mapping of 1 GiB covers no page of the other state, be it made by a change or by a slot",
    needs=(*NEEDS, "statistics"),
    backend="guest_memfd",
    alone=True,
)
def one_gib(tools: Toolbox) -> None:
    gpa, blocks = 4 * GIB, GIB // HUGE
    memory = tools.memory(tools.private_vm(), gpa, GIB, backing="gigantic")
    for block in range(blocks):
        memory.fill(block * HUGE, PAGE, HOST)
        memory.fill((block + 1) * HUGE - PAGE, PAGE, HOST)

    def expect_shared(block: int, what: str) -> None:
        """Read the first page and the last of a block, for which KVM may map 1 GiB."""
        for offset in (block * HUGE, (block + 1) * HUGE - PAGE):
            memory.expect_guest(offset, PAGE, HOST, f"shared pages of 1 GiB, {what}")

    expect_shared(1, "of which none is private")
    if not memory.vm.counter("pages_1g"):
        raise Missing("a mapping of 1 GiB: this CPU or this KVM makes none")
    # Inside a block: no block begins with it.
    kept = 7 * HUGE + 3 * PAGE
    memory.set_private(kept, PAGE)
    memory.guest_fill(kept, PAGE, PRIVATE)
    # At both ends and in the middle; a page, a block, and what lies in two.
    for offset, size in (
        (0, PAGE),
        (GIB - PAGE, PAGE),
        (GIB // 2 - PAGE, PAGE),
        (5 * HUGE, HUGE),
        (GIB // 2 - HUGE, 2 * HUGE),
        (9 * HUGE - PAGE, 2 * PAGE),
    ):
        for what in ("", ", in a slot that was made anew"):
            memory.set_private(offset, size)
            if what:
                memory.delete()
                memory.create()
            for block in (offset // HUGE - 1, (offset + size) // HUGE + 1, blocks // 3):
                expect_shared(block % blocks, f"of which some are private{what}")
            for at in (offset, offset + size - PAGE):
                memory.expect_guest_zero(at, PAGE, f"private pages of 1 GiB that is shared{what}")
            memory.expect_guest(kept, PAGE, PRIVATE, f"a private page of 1 GiB{what}")
            memory.set_shared(offset, size)
            memory.punch(offset, size)
            expect_shared(1, f"of which one is private{what}")
            memory.expect_guest(kept, PAGE, PRIVATE, f"the last private page of 1 GiB{what}")
    memory.set_shared(kept, PAGE)
    memory.delete()
    memory.create()
    expect_shared(1, "of which some were private")
    check(memory.vm.counter("pages_1g") > 0, "1 GiB that is shared again is mapped in pieces")
