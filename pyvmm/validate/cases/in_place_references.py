"""To private while somebody holds a page: EAGAIN, which page it is, and nothing has changed."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import signal
import time
from contextlib import ExitStack

from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import child, routines
from pyvmm.validate.kit.beside import machine_time
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import EHWPOISON, Missing, check, errno_name, expect
from pyvmm.validate.kit.in_place import (
    INIT_SHARED,
    MARK,
    Answer,
    Flips,
    InPlace,
    raw_call,
    set_attributes,
)
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.patterns import HOST, PRIVATE
from pyvmm.validate.kit.race import again_and_again
from pyvmm.validate.kit.references import KINDS, Pipe
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("in_place",)
BACKEND = "in_place"
GPA, PAGES = 4 * GIB, 8
SIZE = PAGES * PAGE
# The memory is not at the beginning of its file.
OFFSET = 67 * PAGE
# Pages that fail, in the case of them beside conversions.
FAILING = 48
_MADV_HWPOISON = 100
_END_S = 40.0
_libc = ctypes.CDLL(None, use_errno=True)


def new_memory(tools: Toolbox, slots: int = 1) -> InPlace:
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE, slots=slots, file_offset=OFFSET)
    memory.fill(0, SIZE, HOST)
    return memory


def expect_busy(memory: InPlace, offset: int, size: int, page: int, what: str) -> None:
    """To private must be EAGAIN and name a page of the memory, by its offset in the file."""
    answer = memory.ask(offset, size, True)
    where = memory.file_offset + page * PAGE
    expect(errno_name(answer.error), "EAGAIN", f"errno of {what}")
    expect(answer.error_offset, where, f"error_offset of {what}, where a page of the file is held")


@case(
    "IP40",
    "a page that somebody holds makes its range EAGAIN: error_offset names it, nothing changes",
    needs=NEEDS,
    backend=BACKEND,
    combinations=(
        *({"kind": "vmsplice", "page": page} for page in (0, 3, 7)),
        {"kind": "io_uring", "page": 3},
        {"kind": "gup_test", "page": 3},
    ),
)
def held(tools: Toolbox, kind: str, page: int) -> None:
    memory = new_memory(tools)
    memory.expect_guest(0, SIZE, HOST, "shared pages")
    with KINDS[kind]() as reference:
        check(reference.hold(memory.address + page * PAGE), f"{kind} cannot hold a shared page")
        for _ in range(2):
            expect_busy(memory, 0, SIZE, page, "a range with a page that is held")
            memory.expect_states([False] * PAGES, "after EAGAIN")
            memory.expect_host(0, SIZE, HOST, "pages after EAGAIN")
            memory.expect_guest(0, SIZE, HOST, "pages after EAGAIN")
        for each in range(PAGES):
            if each == page:
                expect_busy(memory, each * PAGE, PAGE, page, "a page that is held")
            else:
                memory.to_private(each * PAGE, PAGE)
        memory.expect_states([each != page for each in range(PAGES)], "one by one, one held")
        memory.to_shared(0, SIZE)
        memory.expect_host(0, SIZE, HOST, "pages made shared while one is held")
    memory.to_private(0, SIZE)
    memory.expect_states([True] * PAGES, "when the page is let go")
    memory.expect_guest(0, SIZE, HOST, "pages of which one was held")


@case(
    "IP41",
    "of two pages that are held the first is named; what is before it converts alone",
    needs=NEEDS,
    backend=BACKEND,
    vary={"first": (0, 2, 5)},
)
def two_held(tools: Toolbox, first: int) -> None:
    memory = new_memory(tools, 2)
    with ExitStack() as stack:
        for page in (first, 6):
            pipe = stack.enter_context(Pipe())
            check(pipe.hold(memory.address + page * PAGE), "vmsplice of a shared page")
        expect_busy(memory, 0, SIZE, first, "a range with two pages that are held")
        memory.expect_states([False] * PAGES, "after EAGAIN with two pages that are held")
        if first:
            memory.to_private(0, first * PAGE)
        expect_busy(memory, 0, SIZE, first, "a range whose head is private already")
        memory.expect_states([page < first for page in range(PAGES)], "after EAGAIN")
        expect_busy(memory, (first + 1) * PAGE, SIZE - (first + 1) * PAGE, 6, "what is behind it")
    memory.to_private(0, SIZE)
    memory.expect_guest(0, SIZE, HOST, "pages of which two were held")


@case(
    "IP73",
    "in a large range a page that is held is found wherever it is, however few pages there are",
    needs=NEEDS,
    backend=BACKEND,
    vary={"there": ("all pages", "few pages")},
)
def far_in(tools: Toolbox, there: str) -> None:
    """The kernel looks at pages by the batch (31), and at the tree of them by nodes of 64."""
    pages = 4096
    memory = InPlace(tools, tools.private_vm(), GPA, pages * PAGE)
    if there == "all pages":
        memory.allocate(0, pages * PAGE)
    for page in (0, 14, 15, 30, 31, 32, 61, 62, 63, 64, 1000, pages - 1):
        memory.fill(page * PAGE, PAGE, HOST)
        with Pipe() as pipe:
            check(pipe.hold(memory.address + page * PAGE), "vmsplice of a shared page")
            expect_busy(memory, 0, pages * PAGE, page, "a large range with a page that is held")
            memory.expect_host(page * PAGE, PAGE, HOST, "a page of a large range, after EAGAIN")
    memory.to_private(0, pages * PAGE)
    memory.expect_guest(0, PAGE, HOST, "a large range of which no page is held any more")


@case(
    "IP74",
    "a page that somebody holds is EAGAIN when nobody has the file mapped any more, too",
    needs=NEEDS,
    backend=BACKEND,
    vary={"kind": ("vmsplice", "io_uring")},
)
def held_unmapped(tools: Toolbox, kind: str) -> None:
    memory = new_memory(tools)
    assert memory.mapping is not None
    with KINDS[kind]() as reference:
        check(reference.hold(memory.address + 3 * PAGE), f"{kind} cannot hold a shared page")
        memory.mapping.close()
        expect_busy(memory, 0, SIZE, 3, "a range without a mapping, with a page that is held")
        memory.expect_guest(0, SIZE, HOST, "pages after EAGAIN")
    memory.to_private(0, SIZE)
    memory.expect_guest(0, SIZE, HOST, "when the page is let go")


@case(
    "IP42",
    "to shared nobody's reference matters, nor one to a page outside the range",
    needs=NEEDS,
    backend=BACKEND,
)
def to_shared(tools: Toolbox) -> None:
    memory = new_memory(tools)
    memory.to_private(0, 4 * PAGE)
    with Pipe() as pipe:
        check(pipe.hold(memory.address + 4 * PAGE), "vmsplice of a shared page")
        for attempt in (memory.to_shared, memory.to_private, memory.to_shared):
            attempt(0, 4 * PAGE)
        memory.to_private(5 * PAGE, 3 * PAGE)
        memory.to_shared(0, SIZE)
        memory.expect_states([False] * PAGES, "made shared while a page is held")
    memory.expect_host(0, SIZE, HOST, "made shared while a page is held")


@case(
    "IP43",
    "a request that cannot be written to is EFAULT when there is an error_offset to tell",
    needs=NEEDS,
    backend=BACKEND,
)
def nowhere_to_tell(tools: Toolbox) -> None:
    memory = new_memory(tools)
    request = tools.keep(Mapping(PAGE))
    words = [OFFSET, SIZE, ATTRIBUTE, 0, MARK]
    request.view[:40] = bytes(ffi.buffer(ffi.new("uint64_t[5]", words)))
    fd = memory.file.fileno()
    with Pipe() as pipe:
        check(pipe.hold(memory.address), "vmsplice of a shared page")
        expect(errno_name(raw_call(fd, request.address)), "EAGAIN", "a request that can be written")
        seen = int.from_bytes(request.view[32:40], "little")
        expect(seen, OFFSET, "its error_offset")
        _libc.mprotect(ctypes.c_void_p(request.address), ctypes.c_size_t(PAGE), 1)
        expect(errno_name(raw_call(fd, request.address)), "EFAULT", "EAGAIN in a read-only request")
        memory.expect_states([False] * PAGES, "after a request that failed")
    expect(errno_name(raw_call(fd, request.address)), "success", "the same when nobody holds it")


@case(
    "IP44",
    "all fields of a request are what they were after EAGAIN, but for error_offset",
    needs=NEEDS,
    backend=BACKEND,
    vary={"preset": (0, MARK)},
)
def written_back(tools: Toolbox, preset: int) -> None:
    memory = new_memory(tools)
    request = ffi.new("uint64_t[16]", [OFFSET, SIZE, ATTRIBUTE, 0, preset])
    with Pipe() as pipe:
        check(pipe.hold(memory.address + 5 * PAGE), "vmsplice of a shared page")
        error = raw_call(memory.file.fileno(), int(ffi.cast("uintptr_t", request)))
    expect(errno_name(error), "EAGAIN", "a range with a page that is held")
    wanted = [OFFSET, SIZE, ATTRIBUTE, 0, OFFSET + 5 * PAGE, *[0] * 11]
    check(list(request) == wanted, "EAGAIN changes more of the request than error_offset")


@case(
    "IP45",
    "pages that a guest and the host use all the while are nobody's reference: no EAGAIN",
    needs=NEEDS,
    backend=BACKEND,
    vary={"first_use": ("by the guest", "by the host", "by fallocate")},
)
def in_use(tools: Toolbox, first_use: str) -> None:
    """New pages are in a CPU's batch on their way to the kernel's lists: that is a reference."""
    memory = new_memory(tools)
    for _ in range(8):
        memory.punch(0, SIZE)
        if first_use == "by the guest":
            memory.guest_fill(0, SIZE, PRIVATE)
        elif first_use == "by fallocate":
            memory.allocate(0, SIZE)
        else:
            memory.fill(0, SIZE, HOST)
        answer = memory.ask(0, SIZE, True)
        seen = errno_name(answer.error)
        expect(seen, "success", f"errno of a conversion of pages first used {first_use}")
        memory.to_shared(0, SIZE)


@case(
    "IP46",
    "a guest's faults hold no page: no conversion under a guest that faults is EAGAIN",
    needs=(*NEEDS, "two_cpus"),
    backend=BACKEND,
    vary={"by": ("guest", "pre-fault")},
    alone=True,
)
def under_faults(tools: Toolbox, by: str) -> None:
    # Nothing but the guest uses it, and it cannot be mapped.
    size = 64 * PAGE
    memory = InPlace(tools, tools.private_vm(2), GPA, size, flags=INIT_SHARED)
    cpu = memory.vm.cpus[1]
    if by == "pre-fault":
        tools.need("pre_fault")
        cpu.read(0x9000)

    made = [0]

    def fault() -> None:
        made[0] += 1
        if by == "pre-fault":  # nothing but faults
            pre_fault(cpu, GPA, size)
            return
        every = {"rdi": GPA, "rax": PRIVATE, "rsi": PAGE, "rcx": size // PAGE}
        cpu.prepare(routines.FILL, **every, r8=(1 << 64) - 1)
        while cpu.enter().error:  # a race that it lost
            pass

    busy: list[int] = []
    with again_and_again(fault):
        before = made[0]
        for _ in tools.enough(800, 2.5):
            busy.append(memory.ask(0, size, True).error)
            busy.append(memory.ask(0, size, False).error)
    tools.provoked(made[0] - before, f"times all pages faulted beside {len(busy)} conversions")
    check(
        not any(busy),
        "a conversion under a guest that faults fails: a fault holds a reference to its page",
        f"{sum(map(bool, busy))} of {len(busy)}: {', '.join(map(errno_name, set(busy) - {0}))}",
    )


@case(
    "IP47",
    "a poisoned page can be used by nobody, and its range is refused until it is punched",
    needs=NEEDS,
    backend=BACKEND,
    vary={"offset": (OFFSET, 16 * 1024 * GIB), "address": ("the mapping", "another")},
    alone=True,
)
def poisoned(tools: Toolbox, offset: int, address: str) -> None:
    """The exit tells what KVM takes the page's state for; the first pages of the file, which it
    could look at by mistake, are of the other state. Where the slot has the address of other
    memory the page does not leave the guest with the host's mapping, nor by a fork(2): that
    takes from a guest only what a process may have written to."""
    other = None
    if address == "another":
        other = tools.keep(Mapping(SIZE, protection=PROT_NONE)).address
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE, file_offset=offset, address=other)
    first = set_attributes(memory.file.fileno(), 0, SIZE, ATTRIBUTE)
    expect(first, Answer(0, MARK), "a conversion of the first pages of the file")
    memory.fill(0, SIZE, HOST)
    memory.expect_guest(0, SIZE, HOST, "pages of which none has failed")
    page = 3
    _expect_asked(child.run(lambda: _fail(memory, page)))
    try:
        check(memory.host.read(page * PAGE, 8) is None, "the host can read a poisoned page")
        for what in ("a poisoned page", "a poisoned page after a conversion was refused"):
            outcome = memory.vm.cpu.run(routines.READ[8], rdi=GPA + page * PAGE)
            seen = (outcome.error, outcome.reason)
            wanted = (EHWPOISON, lib.KVM_EXIT_MEMORY_FAULT)
            expect(seen, wanted, f"errno and reason of a guest's access to {what}")
            flags = outcome.fault.flags if outcome.fault else -1
            expect(flags, 0, f"flags of the exit of a guest's access to {what}, which is shared")
            expect_busy(memory, 0, SIZE, page, "a range with a poisoned page")
        wanted_states = [each == page for each in range(PAGES)]
        memory.expect_states(wanted_states, "pages that the host cannot read, of which one is bad")
        memory.expect_guest(0, page * PAGE, HOST, "pages before a poisoned one")
        memory.expect_guest((page + 1) * PAGE, 4 * PAGE, HOST, "pages behind a poisoned one")
    finally:
        memory.punch(0, SIZE)
    answer = memory.ask(0, SIZE, True)
    expect(answer, Answer(0, MARK), "a conversion when the poisoned page was punched")
    memory.expect_guest_zero(0, SIZE, "a range whose poisoned page was punched")


@case(
    "IP49",
    "a page fails while the host touches it and it is converted: nobody waits for ever",
    needs=(*NEEDS, "two_cpus"),
    backend=BACKEND,
    deadline_s=90,
    alone=True,
)
def poisoned_meanwhile(tools: Toolbox) -> None:
    """Who handles the failure has locked the page and wants to lock the file. A host's fault has
    locked the file, as a reader, and wants the page; a conversion waits for the fault.
    """
    ours, theirs = os.pipe()

    def report_them() -> int:
        with open(theirs, "wb") as told:
            pickle.dump(_pages_that_fail(tools), told)
        return 0

    # A process that waits for ever can only be left behind; so it has all that it waits for.
    pid = child.start(report_them)
    os.close(theirs)
    with open(ours, "rb") as told:
        check(_ends(pid), "who handles a page's failure beside conversions waits for ever")
        report = told.read()
    check(bool(report), "a process with pages that fail died")
    status, count, conversions = pickle.loads(report)
    check(status >= 0, "a process that has pages fail died", f"signal {-status}")
    _expect_asked(status)
    tools.provoked(count, f"conversions while {FAILING} pages failed")
    wrong = ", ".join(map(errno_name, sorted(conversions - {errno.EAGAIN})))
    check(not wrong, "a conversion beside a page that fails fails", wrong)


def _pages_that_fail(tools: Toolbox) -> tuple[int, int, set[int]]:
    """Let one page after the other fail while one thread touches it and one converts all.

    What :func:`_expect_asked` takes, and the conversions meanwhile: their number and errnos.
    """
    memory = InPlace(tools, tools.private_vm(), GPA, FAILING * PAGE)
    flips = Flips(memory)
    failing = mmap.mmap(-1, PAGE)  # its first byte says which page
    gate, opened = os.pipe()

    def fail_one_by_one() -> int:
        signal.signal(signal.SIGBUS, lambda *_: None)
        os.read(gate, 1)
        error = 0
        for page in range(FAILING):
            failing[0] = page
            error = _fail(memory, page)
            if error not in (0, errno.EBUSY):
                break
        return error

    pid = child.start(fail_one_by_one)

    def touch() -> None:
        memory.host.read(failing[0] * PAGE, 8)

    with again_and_again(touch), again_and_again(flips):
        before = flips.count
        os.write(opened, b"!")
        status = child.end_of(pid)
        count = flips.count - before
    memory.punch(0, memory.size)
    return status, count, flips.errors


def _ends(pid: int) -> bool:
    """Whether a process ends in this machine time; it is killed if not."""
    for _ in machine_time(_END_S):
        time.sleep(0.01)
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
    os.kill(pid, signal.SIGKILL)
    return False


def _fail(memory: InPlace, page: int) -> int:
    """Have a page fail: the errno. Whoever asks for it is told by SIGBUS, too.

    EFAULT says that the page is private at the moment.
    """
    assert memory.mapping is not None
    address = ctypes.c_void_p(memory.mapping.address + page * PAGE)
    while True:
        memory.host.write(page * PAGE, b"mapped")
        if not _libc.madvise(address, ctypes.c_size_t(PAGE), _MADV_HWPOISON):
            return 0
        if ctypes.get_errno() != errno.EFAULT:
            return ctypes.get_errno()


def _expect_asked(status: int) -> None:
    """Skip the case where a process that had pages fail ended so because it may not ask."""
    check(status != child.DIED, "a process whose page is to fail died")
    # A page that was in use has failed, too.
    if status > 0 and status != errno.EBUSY:
        name = errno_name(status)
        raise Missing(f"MADV_HWPOISON ({name}): CONFIG_MEMORY_FAILURE, and root")


@case(
    "IP48",
    "what a page's holder reads is what the page has: no copy is made for it",
    needs=NEEDS,
    backend=BACKEND,
)
def through_a_pipe(tools: Toolbox) -> None:
    memory = new_memory(tools)
    out, into = os.pipe()
    try:
        vec = (ctypes.c_uint64 * 2)(memory.address, PAGE)
        done = _libc.vmsplice(ctypes.c_int(into), ctypes.byref(vec), 1, 0)
        expect(done, PAGE, "what vmsplice of a shared page returns")
        memory.guest_fill(0, PAGE, PRIVATE)
        data = os.read(out, PAGE)
        expect(int.from_bytes(data[:8], "little"), PRIVATE + GPA, "what comes out of the pipe")
        memory.to_private(0, SIZE)
        memory.expect_guest(0, PAGE, PRIVATE, "a page that was in a pipe")
    finally:
        os.close(out)
        os.close(into)
