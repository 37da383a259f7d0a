"""The state that a guest_memfd keeps of each page, and what is in the page meanwhile.

A page is private or shared from the file's creation on, whether it is there or not. Its contents
outlive each conversion. The host shows what the state is: it cannot reach a private page.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.native import lib
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, KIB, PAGE, case
from pyvmm.validate.kit.check import check, errno_of, expect
from pyvmm.validate.kit.in_place import INIT_SHARED, MAPPED, MMAP, InPlace
from pyvmm.validate.kit.patterns import HOST, LATER, PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("in_place",)
BACKEND = "in_place"
GPA = 4 * GIB
# Numbers of pages that end in, at and behind a word of a bitmap.
LENGTHS = (1, 64, 65, 130)


def new_memory(tools: Toolbox, pages: int = 8, gpa: int = GPA, **more: int) -> InPlace:
    return InPlace(tools, tools.private_vm(), gpa, pages * PAGE, **more)


@case(
    "IP12",
    "a new file is private from its first page to its last, or shared with INIT_SHARED",
    needs=NEEDS,
    backend=BACKEND,
    vary={"flags": (MMAP, MAPPED), "pages": LENGTHS},
)
def new_file(tools: Toolbox, flags: int, pages: int) -> None:
    memory = new_memory(tools, pages, flags=flags)
    private = not flags & INIT_SHARED
    memory.expect_states([private] * pages, f"a new file with flags {flags:#x}")
    memory.expect_guest_zero(0, memory.size, "a new file, for the guest")
    memory.guest_fill(0, memory.size, PRIVATE)
    if private:
        memory.expect_refused(0, memory.size, "a new file's private pages that a guest used")
        memory.to_shared(0, memory.size)
    memory.expect_host(0, memory.size, PRIVATE, "what a guest wrote to a new file")


@case(
    "IP13",
    "without MMAP the guest's shared pages are the file's too, not the host memory of the slot",
    needs=NEEDS,
    backend=BACKEND,
    vary={"flags": (0, INIT_SHARED)},
)
def without_mmap(tools: Toolbox, flags: int) -> None:
    vm = tools.private_vm()
    size = 8 * PAGE
    side = tools.shared_side(GPA, size)
    side.fill(GPA, 0, size, HOST)
    memory = InPlace(tools, vm, GPA, size, flags=flags, address=side.address)
    check(errno_of(lambda: memory.file.map().close()) != 0, "a file without MMAP can be mapped")
    memory.expect_guest_zero(0, size, "new pages of a file without MMAP")
    private = not flags
    for tag in (SHARED, PRIVATE, LATER):
        memory.guest_fill(0, size, tag)
        private = not private
        (memory.to_private if private else memory.to_shared)(0, size)
        memory.expect_guest(0, size, tag, "converted pages of a file without MMAP")
    side.expect_filled(GPA, 0, size, HOST, "host memory of a slot whose pages are the file's")


@case(
    "IP14",
    "contents stay, from the host to the guest and back, whatever the state was at first",
    needs=NEEDS,
    backend=BACKEND,
    vary={"flags": (MMAP, MAPPED), "gpa": (512 * KIB, GPA)},
)
def contents(tools: Toolbox, flags: int, gpa: int) -> None:
    memory = new_memory(tools, 4, gpa, flags=flags)
    size = memory.size
    if flags & INIT_SHARED:
        memory.fill(0, size, HOST)
        memory.expect_guest(0, size, HOST, "shared pages that the host wrote")
        memory.guest_fill(0, size, SHARED)
        memory.expect_host(0, size, SHARED, "shared pages that the guest wrote")
    else:
        memory.expect_refused(0, size, "pages that are private from the start")
        memory.expect_guest_zero(0, size, "new private pages")
        memory.guest_fill(0, size, SHARED)
        memory.to_shared(0, size)
        memory.expect_host(0, size, SHARED, "pages that the guest wrote while they were private")
    for _ in range(2):
        memory.to_private(0, size)
        memory.expect_guest(0, size, SHARED, "pages that became private")
        memory.expect_refused(0, size, "pages that became private")
        memory.guest_fill(0, size, PRIVATE)
        memory.to_shared(0, size)
        memory.expect_host(0, size, PRIVATE, "pages that became shared")
        memory.expect_guest(0, size, PRIVATE, "pages that became shared")
        memory.fill(0, size, HOST)
        memory.expect_guest(0, size, HOST, "pages that the host wrote when they were shared again")
        memory.guest_fill(0, size, SHARED)


@case(
    "IP15",
    "only the page that is asked for changes, and all pages keep what they hold",
    needs=NEEDS,
    backend=BACKEND,
    vary={"flags": (MMAP, MAPPED)},
)
def one_page(tools: Toolbox, flags: int) -> None:
    memory = new_memory(tools, 4, flags=flags)
    memory.guest_fill(0, memory.size, SHARED)
    was = not flags & INIT_SHARED
    there, back = memory.to_private, memory.to_shared
    if was:
        there, back = back, there
    for page in (3, 2, 1, 0):
        there(page * PAGE, PAGE)
        memory.expect_states([(each == page) != was for each in range(4)], "one page converted")
        memory.expect_guest(0, memory.size, SHARED, "pages of which one was converted")
        for each in range(4):
            if (each == page) == was:
                memory.expect_host(each * PAGE, PAGE, SHARED, "a page of which one was converted")
        back(page * PAGE, PAGE)
        memory.expect_states([was] * 4, "one page converted there and back")


# First page and pages of a range: at, before and over what a word of a bitmap holds.
_OF_THE_FIRST_WORD = ((0, 1), (0, 64), (0, 65), (1, 63), (31, 2), (63, 1), (63, 2))
_OF_OTHER_WORDS = ((64, 1), (64, 64), (62, 68), (127, 2), (128, 2), (129, 1), (0, 130), (1, 128))
_AT_BORDERS = _OF_THE_FIRST_WORD + _OF_OTHER_WORDS


@case(
    "IP16",
    "a range changes from its first page to its last and no other, at any border",
    needs=NEEDS,
    backend=BACKEND,
    vary={"to": ("private", "shared")},
)
def borders(tools: Toolbox, to: str) -> None:
    private = to == "private"
    memory = new_memory(tools, 130, flags=MAPPED if private else MMAP)
    there, back = memory.to_private, memory.to_shared
    if not private:
        there, back = back, there
    for first, count in _AT_BORDERS:
        there(first * PAGE, count * PAGE)
        wanted = [(first <= page < first + count) == private for page in range(130)]
        memory.expect_states(
            wanted, f"{count} pages from page {first} of their file that became {to}"
        )
        back(first * PAGE, count * PAGE)
        memory.expect_states([not private] * 130, f"pages that became {to} and were put back")


@case(
    "IP17",
    "ranges beside each other, over each other and inside each other give what each asked for",
    needs=NEEDS,
    backend=BACKEND,
)
def neighbours(tools: Toolbox) -> None:
    memory = new_memory(tools, 24)
    wanted = [False] * 24
    # Equal neighbours, a gap that closes, a hole that opens, a range that swallows all of it.
    for first, end, private in (
        (4, 8, True),
        (8, 12, True),
        (0, 4, True),
        (16, 20, True),
        (12, 16, True),
        (9, 10, False),
        (6, 7, False),
        (7, 9, False),
        (5, 21, True),
        (5, 6, False),
        (20, 24, False),
        (23, 24, True),
        (0, 24, False),
    ):
        (memory.to_private if private else memory.to_shared)(first * PAGE, (end - first) * PAGE)
        wanted[first:end] = [private] * (end - first)
        text = f"pages {first} to {end - 1} that became {'private' if private else 'shared'}"
        memory.expect_states(wanted, f"{text} beside others")


@case(
    "IP18",
    "random ranges one after the other: each page is what was last asked for, and keeps its bytes",
    needs=NEEDS,
    backend=BACKEND,
    vary={"pages": (70, 200)},
)
def random_ranges(tools: Toolbox, pages: int) -> None:
    memory = new_memory(tools, pages, slots=3)
    memory.fill(0, memory.size, HOST)
    wanted = [False] * pages
    for _ in range(12):
        asked = []
        for _ in range(6):
            first = tools.random.randrange(pages)
            end = tools.random.randrange(first, pages) + 1
            private = tools.random.random() < 0.5
            (memory.to_private if private else memory.to_shared)(first * PAGE, (end - first) * PAGE)
            wanted[first:end] = [private] * (end - first)
            asked.append((first, end, private))
        memory.expect_states(wanted, "random ranges that were converted", f"{asked}")
    memory.expect_guest(0, memory.size, HOST, "pages that were converted at random")


@case(
    "IP19",
    "every other page private in a large file, then all of it in one call",
    needs=NEEDS,
    backend=BACKEND,
    vary={"to": ("private", "shared"), "pages": (512,)},
)
def alternating(tools: Toolbox, to: str, pages: int) -> None:
    memory = new_memory(tools, pages)
    memory.guest_fill(0, memory.size, SHARED)
    for page in range(1, pages, 2):
        memory.to_private(page * PAGE, PAGE)
    memory.expect_states([page % 2 == 1 for page in range(pages)], "every other page private")
    (memory.to_private if to == "private" else memory.to_shared)(0, memory.size)
    memory.expect_states([to == "private"] * pages, "pages converted at once")
    memory.expect_guest(0, memory.size, SHARED, "pages converted at once")
    # From its first page to its last, one by one.
    undo = memory.to_shared if to == "private" else memory.to_private
    for page in (0, pages - 1):
        undo(page * PAGE, PAGE)
    ends = [page in (0, pages - 1) for page in range(pages)]
    memory.expect_states([each != (to == "private") for each in ends], "the file's first and last")


@case(
    "IP20",
    "a conversion before a page's first use holds: it reads zero, in the new state",
    needs=NEEDS,
    backend=BACKEND,
    vary={"to": ("private", "shared"), "user": ("guest", "host", "fallocate", "pre-fault")},
)
def before_use(tools: Toolbox, to: str, user: str) -> None:
    memory = new_memory(tools, 4, flags=MAPPED if to == "private" else MMAP)
    size = memory.size
    (memory.to_private if to == "private" else memory.to_shared)(0, size)
    wanted = [to == "private"] * 4
    if user == "fallocate":
        memory.allocate(0, size)
    elif user == "pre-fault":
        tools.need("pre_fault")
        memory.vm.cpu.read(0x9000)
        expect(pre_fault(memory.vm.cpu, GPA, size), (0, 0), "bytes left and errno of a pre-fault")
    elif user == "host":
        memory.expect_states(wanted, f"pages that became {to} before their first use")
    memory.expect_guest_zero(0, size, f"pages that became {to} before their first use")
    memory.expect_states(wanted, f"pages that became {to} before their first use")
    if to == "shared":
        memory.expect_host_zero(0, size, "pages that became shared before their first use")


@case(
    "IP21",
    "a range of which few pages are there converts as a whole, and these keep what they hold",
    needs=NEEDS,
    backend=BACKEND,
    vary={"there": ((0,), (7,), (2, 3, 6))},
)
def few_there(tools: Toolbox, there: tuple[int, ...]) -> None:
    memory = new_memory(tools)
    for page in there:
        memory.fill(page * PAGE, PAGE, HOST)
    memory.to_private(0, memory.size)
    memory.expect_states([True] * 8, "a range of which few pages are there")

    def expect_pages(pages: Iterable[int], what: str) -> None:
        for page in pages:
            if page in there:
                memory.expect_guest(page * PAGE, PAGE, HOST, f"{what} that was there")
            else:
                memory.expect_guest_zero(page * PAGE, PAGE, f"{what} that was not there")

    expect_pages(range(8), "a private page")
    for page in range(8):
        memory.to_shared(page * PAGE, PAGE)
        memory.expect_states([each > page for each in range(8)], "pages made shared one by one")
    expect_pages(range(8), "a page made shared again")


@case(
    "IP22",
    "a punch frees pages of either state, for the guest and the host, and leaves the state",
    needs=NEEDS,
    backend=BACKEND,
    combinations=[
        {"state": state, "punch": punch}
        for state in ("private", "shared")
        for punch in ((0, 8), (0, 1), (2, 6))
    ],
)
def punched(tools: Toolbox, state: str, punch: tuple[int, int]) -> None:
    first, count = punch
    memory = new_memory(tools)
    memory.fill(0, memory.size, HOST)
    if state == "private":
        memory.to_private(0, memory.size)
    memory.guest_fill(0, memory.size, PRIVATE)
    start, size = first * PAGE, count * PAGE
    memory.punch(start, size)
    # Each is mapped still if it was forgotten; the last first, for a fault may repair others.
    what = f"{state} pages that were punched"
    if state == "shared":
        memory.expect_host_zero(start + size - PAGE, PAGE, what)
    memory.expect_guest_zero(start + size - PAGE, PAGE, what)
    memory.expect_guest_zero(start, size, what)
    for page in range(8):
        if not first <= page < first + count:
            memory.expect_guest(page * PAGE, PAGE, PRIVATE, f"{state} pages beside a punch")
    memory.expect_states([state == "private"] * 8, f"{state} pages, one of which was punched")
    memory.allocate(0, memory.size)
    memory.expect_states([state == "private"] * 8, f"{state} pages after fallocate")
    memory.to_shared(0, memory.size)
    memory.expect_host_zero(start, size, f"{what}, shared")
    memory.guest_fill(0, memory.size, LATER)
    memory.expect_host(0, memory.size, LATER, f"{what} and written again")


@case(
    "IP23",
    "pages that others used are zero at their first use, in either state",
    needs=NEEDS,
    backend=BACKEND,
    combinations=(
        {"flags": MMAP, "user": "guest"},
        {"flags": MMAP, "user": "pre-fault"},
        {"flags": MAPPED, "user": "guest"},
        {"flags": MAPPED, "user": "host"},
    ),
)
def recycled(tools: Toolbox, flags: int, user: str) -> None:
    memory = new_memory(tools, 32, flags=flags)
    size = memory.size
    for _ in range(4):
        memory.guest_fill(0, size, PRIVATE)
        memory.punch(0, size)
        memory.allocate(0, size)
        if user == "host":
            memory.expect_host_zero(0, size, "recycled pages that the host uses first")
        elif user == "pre-fault":
            tools.need("pre_fault")
            expect(pre_fault(memory.vm.cpu, GPA, size), (0, 0), "left and errno of a pre-fault")
        memory.expect_guest_zero(0, size, f"recycled pages that the {user} uses first")


@case(
    "IP24",
    "the state belongs to the file: slots that come, go and change places find it",
    needs=NEEDS,
    backend=BACKEND,
)
def slots_come_and_go(tools: Toolbox) -> None:
    memory = new_memory(tools)
    memory.fill(0, memory.size, HOST)
    memory.to_private(2 * PAGE, 3 * PAGE)
    wanted = [2 <= page < 5 for page in range(8)]
    memory.delete()
    memory.expect_states(wanted, "pages whose slot was deleted")
    memory.to_private(7 * PAGE, PAGE)
    memory.to_shared(2 * PAGE, PAGE)
    wanted[7], wanted[2] = True, False
    memory.expect_states(wanted, "pages converted while there is no slot")
    memory.gpa += GIB
    memory.create()
    memory.expect_states(wanted, "pages whose slot was made again elsewhere")
    memory.vm.cpu.expect_filled(
        memory.gpa, memory.size, HOST - GIB, "pages whose slot was made again elsewhere"
    )


@case(
    "IP25",
    "two files of a VM have states of their own",
    needs=NEEDS,
    backend=BACKEND,
    vary={"vms": (1, 2)},
)
def two_files(tools: Toolbox, vms: int) -> None:
    one = new_memory(tools)
    vm = one.vm if vms == 1 else tools.private_vm()
    other = InPlace(tools, vm, GPA + GIB, one.size)
    for memory in (one, other):
        memory.fill(0, memory.size, HOST)
    one.to_private(0, one.size)
    other.expect_states([False] * 8, "another file's pages")
    other.to_private(PAGE, PAGE)
    one.to_shared(0, one.size)
    other.expect_states([page == 1 for page in range(8)], "another file's pages")
    for memory in (one, other):
        memory.expect_guest(0, memory.size, HOST, "pages of two files")
    other.punch(0, other.size)
    one.expect_host(0, one.size, HOST, "a file's pages when another's were punched")


@case(
    "IP26",
    "what has the state already costs nothing: no page is unmapped, and the answer is success",
    needs=(*NEEDS, "statistics"),
    backend=BACKEND,
    vary={"state": ("private", "shared")},
)
def already(tools: Toolbox, state: str) -> None:
    memory = new_memory(tools, flags=MAPPED if state == "private" else MMAP)
    convert = memory.to_private if state == "private" else memory.to_shared
    # By pieces, which are one range of the same state afterwards.
    for first, count in ((4, 4), (0, 3), (3, 1)):
        convert(first * PAGE, count * PAGE)
    memory.guest_fill(0, memory.size, PRIVATE)
    mapped, flushes = memory.vm.mapped_pages(), memory.vm.counter("remote_tlb_flush_requests")
    for _ in range(4):
        convert(0, memory.size)
        convert(PAGE, 2 * PAGE)
    expect(memory.vm.mapped_pages(), mapped, f"pages mapped after requests for {state} again")
    seen = memory.vm.counter("remote_tlb_flush_requests") - flushes
    expect(seen, 0, f"TLB flushes of requests for {state} again")


@case(
    "IP27",
    "a conversion unmaps the guest's pages in every slot of its range, and no others",
    needs=(*NEEDS, "statistics"),
    backend=BACKEND,
    vary={"to": ("private", "shared"), "slots": (1, 3)},
)
def unmapped(tools: Toolbox, to: str, slots: int) -> None:
    vm = tools.private_vm()
    size = 16 * PAGE
    # The slots do not lie over the file's mapping: no MMU notifier does the work.
    side = tools.shared_side(GPA, size)
    flags = MAPPED if to == "private" else MMAP
    memory = InPlace(
        tools, vm, GPA, size, flags=flags, slots=slots, file_offset=3 * PAGE, address=side.address
    )
    private = to == "private"
    for first, count in ((0, 16), (15, 1), (0, 1), (3, 10), (4, 8)):
        memory.guest_fill(0, size, PRIVATE)
        before = vm.mapped_pages()
        (memory.to_private if private else memory.to_shared)(first * PAGE, count * PAGE)
        gone = before - vm.mapped_pages()
        what = f"a change of {count} pages to {to}"
        check(gone >= count, f"{what} leaves guest pages mapped", f"{count - gone} of them")
        check(gone <= count, f"{what} unmaps others too", f"{gone - count} of them")
        memory.expect_guest(0, size, PRIVATE, f"pages after {what}")
        (memory.to_shared if private else memory.to_private)(0, size)


@case(
    "IP28",
    "no slot is dirty-logged, read-only, moved or bound to a range that is bound",
    needs=NEEDS,
    backend=BACKEND,
)
def slot_rules(tools: Toolbox) -> None:
    memory = new_memory(tools)
    vm, fd = memory.vm.vm, memory.file.fileno()
    file_flag = lib.KVM_MEM_GUEST_MEMFD

    def make(slot: int, gpa: int, flags: int, offset: int = 0) -> int:
        return errno_of(
            lambda: vm.set_user_memory_region2(
                slot, gpa, memory.size, memory.address, file_flag | flags, fd, offset
            )
        )

    number = memory.slots[0][0]
    memory.fill(0, memory.size, HOST)
    for name, wanted, seen in (
        ("read-only", (22,), make(9, GPA + GIB, lib.KVM_MEM_READONLY)),
        ("with dirty logging", (22,), make(9, GPA + GIB, lib.KVM_MEM_LOG_DIRTY_PAGES)),
        # EINVAL before Linux 7.2.
        ("over a file range that is bound", (17, 22), make(9, GPA + GIB, 0)),
        ("moved", (22,), make(number, GPA + GIB, 0)),
        ("past the end of the file", (22,), make(9, GPA + GIB, 0, PAGE)),
    ):
        check(seen in wanted, f"a slot {name}: errno {seen}, expected {wanted[0]}")
    log = errno_of(lambda: vm.get_dirty_log(number, memory.size // PAGE))
    expect(log, 2, "errno of KVM_GET_DIRTY_LOG of a slot that converts in place")
    memory.expect_guest(0, memory.size, HOST, "pages of a slot after calls that were refused")
