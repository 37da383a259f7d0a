"""The host's side of memory that converts in place: every way to a private page is closed.

Touches, buffers of system calls, other processes' access, other mappings of the file in this and
other processes, and what mprotect(2), madvise(2) and mbind(2) may do to a mapping.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import time
from collections.abc import Callable

from pyvmm.kvm.mapping import PROT_NONE, PROT_READ_WRITE, Mapping
from pyvmm.native import lib
from pyvmm.validate.kit import child
from pyvmm.validate.kit.beside import RepeatedBeside
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import Missing, check, errno_name, expect
from pyvmm.validate.kit.in_place import MAPPED, MMAP, Flips, HostView, InPlace
from pyvmm.validate.kit.memory import ATTRIBUTE, touch
from pyvmm.validate.kit.patterns import HOST, PRIVATE
from pyvmm.validate.kit.policy import (
    MPOL_BIND,
    MPOL_DEFAULT,
    bind_to_node_0,
    mode_of,
    node_of,
)
from pyvmm.validate.kit.references import OwnMemory, Pipe, of_process
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("in_place",)
BACKEND = "in_place"
GPA, PAGES = 4 * GIB, 8
SIZE = PAGES * PAGE
SIGBUS = 7
_libc = ctypes.CDLL(None, use_errno=True)
# So often a call must have ended during a conversion, for one to have been at the right place.
_MEETINGS = 300
_MOVE = 3  # MREMAP_MAYMOVE | MREMAP_FIXED
_MADV_POPULATE_WRITE = 23


def new_memory(tools: Toolbox, **more: int) -> InPlace:
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE, **more)
    if more.get("flags", MAPPED) == MAPPED:
        memory.fill(0, SIZE, HOST)
    return memory


@case(
    "IP30",
    "a touch of a private page is SIGBUS, of a shared one beside it not",
    needs=NEEDS,
    backend=BACKEND,
    combinations=(
        *({"access": access, "was": "mapped"} for access in ("read", "write")),
        {"access": "read", "was": "never touched"},
        {"access": "write", "was": "allocated"},
    ),
)
def touched(tools: Toolbox, access: str, was: str) -> None:
    memory = new_memory(tools, flags=MAPPED if was == "mapped" else MMAP)
    if was == "allocated":
        memory.allocate(0, SIZE)
    memory.to_private(2 * PAGE, 3 * PAGE)
    memory.to_shared(0, 2 * PAGE)
    memory.to_shared(5 * PAGE, PAGE)
    write = access == "write"
    for page, wanted in ((1, 0), (2, SIGBUS), (4, SIGBUS), (5, 0)):
        seen = touch(memory.address + page * PAGE + 8, write)
        name = "private" if wanted else "shared"
        expect(seen, wanted, f"signal of a {access} of a {name} page by the host")


@case(
    "IP31",
    "no system call reaches a private page, and all reach a shared one",
    needs=NEEDS,
    backend=BACKEND,
    vary={
        "way": (
            "read",
            "write",
            "/proc/self/mem",
            "process_vm_readv",
            "process_vm_writev",
            "vmsplice",
            "O_DIRECT",
        )
    },
)
def system_calls(tools: Toolbox, way: str) -> None:
    memory = new_memory(tools)
    view, address, own = memory.host, memory.address, tools.keep(OwnMemory())
    calls: dict[str, Callable[[int], bool]] = {
        "read": lambda at: view.write(at, b"x" * 8),
        "write": lambda at: view.read(at, 8) is not None,
        "/proc/self/mem": lambda at: own.reaches(address + at),
        "process_vm_readv": lambda at: of_process(address + at, write=False),
        "process_vm_writev": lambda at: of_process(address + at, write=True),
        "vmsplice": lambda at: _spliced(tools, address + at),
        "O_DIRECT": lambda at: _direct(tools, address + at),
    }
    reaches = calls[way]
    check(reaches(PAGE), f"{way} does not reach a shared page")
    for _ in range(2):
        memory.to_private(0, 4 * PAGE)
        memory.guest_fill(0, 4 * PAGE, PRIVATE)
        for page, wanted in ((0, False), (3, False), (4, True)):
            check(
                reaches(page * PAGE) == wanted,
                f"{way} reaches a private page"
                if not wanted
                else f"{way} does not reach a shared page beside private ones",
            )
        memory.expect_guest(0, 4 * PAGE, PRIVATE, f"private pages that {way} was tried on")
        memory.to_shared(0, 4 * PAGE)
        check(reaches(PAGE), f"{way} does not reach a page that is shared again")


def _spliced(tools: Toolbox, address: int) -> bool:
    with Pipe() as pipe:
        return pipe.hold(address)


def _direct(tools: Toolbox, address: int) -> bool:
    """Write a page to a file past the page cache, where some file system here can."""
    for folder in (".", "/var/tmp", "/tmp"):
        path = os.path.join(folder, f".pyvmm-direct-{os.getpid()}")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        except OSError:
            continue
        try:
            os.unlink(path)
            done = _libc.pwrite(
                fd, ctypes.c_void_p(address), ctypes.c_size_t(PAGE), ctypes.c_int64(0)
            )
            if done == PAGE:
                return True
            if ctypes.get_errno() == errno.EFAULT:
                return False
        finally:
            os.close(fd)
    raise Missing("a file system that takes O_DIRECT")


@case(
    "IP32",
    "pages that became private are gone from a child's mapping too, and back with their contents",
    needs=NEEDS,
    backend=BACKEND,
    vary={"process": ("forked", "sent the descriptor")},
)
def other_process(tools: Toolbox, process: str) -> None:
    """The child says what it reads of each page, each time that it is asked."""
    memory = new_memory(tools)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def answer() -> int:
            ours.close()
            _answer(theirs, memory, process)
            return 0

        pid = child.start(answer)
        theirs.close()
        try:
            if process != "forked":
                socket.send_fds(ours, [b"x"], [memory.file.fileno()])

            def readable() -> list[bool]:
                ours.send(b"?")
                told = ours.recv(PAGES)
                check(2 not in told, f"a page that a process ({process}) can only read, or write")
                return [bool(each) for each in told]

            expect(readable(), [True] * PAGES, f"pages that a process ({process}) can read")
            memory.to_private(0, 6 * PAGE)
            memory.guest_fill(0, 6 * PAGE, PRIVATE)
            wanted = [page >= 6 for page in range(PAGES)]
            expect(readable(), wanted, f"pages that a process ({process}) can read")
            memory.expect_states([not each for each in wanted], "pages that are private")
            memory.to_shared(0, SIZE)
            expect(readable(), [True] * PAGES, f"pages that a process ({process}) can read")
            memory.expect_guest(0, 6 * PAGE, PRIVATE, "pages that another process mapped")
            ours.send(b"!")
            expect(int.from_bytes(ours.recv(8), "little"), PRIVATE + GPA, "what it reads then")
            memory.expect_host(PAGE, 5 * PAGE, PRIVATE, "pages that another process mapped")
        finally:
            ours.close()
            child.end_of(pid)


def _answer(theirs: socket.socket, memory: InPlace, process: str) -> None:
    address = memory.address
    if process != "forked":
        _, (fd, *_), _, _ = socket.recv_fds(theirs, 1, 1)
        mapping = Mapping(SIZE, fd=fd)
        address = mapping.address
    view = HostView(address)
    while request := theirs.recv(1):
        if request == b"?":
            # Writing what was read: the page is mapped for both afterwards.
            pages = [view.read(page * PAGE, 8) for page in range(PAGES)]
            written = [
                view.write(page * PAGE, data or b"not read") for page, data in enumerate(pages)
            ]
            readable = [data is not None for data in pages]
            theirs.send(bytes(readable if readable == written else [2] * PAGES))
        else:
            theirs.send(view.read(0, 8) or bytes(8))


@case(
    "IP33",
    "every mapping of the file is emptied: two of all of it, and one of a part at another offset",
    needs=NEEDS,
    backend=BACKEND,
    vary={"file_offset": (0, 70 * PAGE)},
)
def several_mappings(tools: Toolbox, file_offset: int) -> None:
    memory = new_memory(tools, file_offset=file_offset)
    second = tools.keep(memory.file.map(file_offset))
    part = tools.keep(memory.file.map(file_offset + 3 * PAGE, 2 * PAGE))
    views = [
        (name, first, count, tools.keep(HostView(address)))
        for name, first, count, address in (
            ("the first mapping", 0, PAGES, memory.address),
            ("a second mapping", 0, PAGES, second.address),
            ("a mapping of a part", 3, 2, part.address),
        )
    ]

    def expect_views(private: range, what: str) -> None:
        for name, first, count, view in views:
            for page in range(first, first + count):
                word = view.word((page - first) * PAGE)
                if page in private:
                    check(word is None, f"{name} shows a page that is private ({what})")
                else:
                    wanted = HOST + GPA + page * PAGE
                    expect(word, wanted, f"a shared page in {name} ({what})")

    expect_views(range(0), "at first")
    for first, count in ((0, PAGES), (3, 1), (4, 1), (0, 4), (4, 4)):
        memory.to_private(first * PAGE, count * PAGE)
        expect_views(range(first, first + count), "after a conversion")
        memory.to_shared(first * PAGE, count * PAGE)
        expect_views(range(0), "shared again")


@case(
    "IP34",
    "mprotect, mremap and a new mapping open no private page, and are allowed",
    needs=NEEDS,
    backend=BACKEND,
)
def protections(tools: Toolbox) -> None:
    memory = new_memory(tools)
    assert memory.mapping is not None

    def protect(protection: int) -> None:
        failed = _libc.mprotect(
            ctypes.c_void_p(memory.address), ctypes.c_size_t(SIZE), ctypes.c_int(protection)
        )
        check(failed == 0, "mprotect of a mapping of a guest_memfd fails")

    for protection in (mmap.PROT_READ, PROT_NONE):
        protect(protection)
        memory.to_private(0, 4 * PAGE)
        protect(PROT_READ_WRITE)
        memory.expect_refused(0, 4 * PAGE, "private pages after mprotect")
        memory.expect_host(4 * PAGE, 4 * PAGE, HOST, "shared pages after mprotect")
        memory.to_shared(0, SIZE)
        memory.expect_host(0, SIZE, HOST, "shared pages after mprotect")
    memory.to_private(0, 4 * PAGE)
    again = tools.keep(HostView(tools.keep(memory.file.map()).address))
    check(again.read(PAGE, 8) is None, "a new mapping shows a page that is private")
    check(again.word(4 * PAGE) == HOST + GPA + 4 * PAGE, "a new mapping shows other contents")
    _moved_and_grown(tools, memory)


def _moved_and_grown(tools: Toolbox, memory: InPlace) -> None:
    """Pages 0 to 3 are private. Where ``small`` was nothing is left to be closed."""
    small, there = memory.file.map(0, 2 * PAGE), tools.keep(Mapping(SIZE, protection=PROT_NONE))
    _libc.mremap.restype = ctypes.c_void_p
    old, new = ctypes.c_void_p(small.address), ctypes.c_void_p(there.address)
    moved = _libc.mremap(old, ctypes.c_size_t(2 * PAGE), ctypes.c_size_t(SIZE), _MOVE, new)
    check(moved == there.address, f"mremap of a mapping: {errno_name(ctypes.get_errno())}")
    view = tools.keep(HostView(there.address))
    for private, convert in ((4, memory.to_private), (8, memory.to_private), (0, memory.to_shared)):
        convert(0, (private or PAGES) * PAGE)
        for page in range(PAGES):
            right = HOST + GPA + page * PAGE if page >= private else None
            what = f"page {page} of a mapping that was moved, with {private} private"
            expect(view.word(page * PAGE), right, what)


_ADVICE = {
    "WILLNEED": 3,
    "DONTNEED": 4,
    "FREE": 8,
    "HUGEPAGE": 14,
    "NOHUGEPAGE": 15,
    "COLD": 20,
    "PAGEOUT": 21,
    "POPULATE_READ": 22,
    "POPULATE_WRITE": 23,
    "DONTNEED_LOCKED": 24,
    "COLLAPSE": 25,
    "REMOVE": 9,
    "GUARD_INSTALL": 102,
}
_POPULATES = ("POPULATE_READ", "POPULATE_WRITE")


@case(
    "IP35",
    "no advice opens a private page, or changes one",
    needs=NEEDS,
    backend=BACKEND,
)
def advised(tools: Toolbox) -> None:
    memory = new_memory(tools)
    # A guard would close the mapping that is advised: look through another.
    view = tools.keep(HostView(tools.keep(memory.file.map()).address))
    memory.to_private(0, 4 * PAGE)
    memory.guest_fill(0, 4 * PAGE, PRIVATE)
    for advice, number in _ADVICE.items():

        def advise(offset: int, size: int, number: int = number) -> int:
            address = ctypes.c_void_p(memory.address + offset)
            failed = _libc.madvise(address, ctypes.c_size_t(size), ctypes.c_int(number))
            return ctypes.get_errno() if failed else 0

        error = advise(0, 4 * PAGE)
        if advice in _POPULATES:
            expect(errno_name(error), "EFAULT", f"MADV_{advice} of private pages")
            seen = errno_name(advise(4 * PAGE, PAGE))
            expect(seen, "success", f"MADV_{advice} of a shared page")
        if advice == "COLLAPSE":
            check(error != 0, "MADV_COLLAPSE of a guest_memfd succeeds")
        for page in range(PAGES):
            shows = view.read(page * PAGE, 8) is not None
            check(shows == (page >= 4), f"MADV_{advice} changes which pages the host can reach")
        if advice == "REMOVE" and not error:  # a punch, by another name
            memory.expect_guest_zero(0, 4 * PAGE, "private pages that MADV_REMOVE punched")
            memory.guest_fill(0, 4 * PAGE, PRIVATE)
        else:
            memory.expect_guest(0, 4 * PAGE, PRIVATE, f"private pages after MADV_{advice}")
        memory.expect_guest(4 * PAGE, 4 * PAGE, HOST, f"shared pages beside MADV_{advice}")


@case(
    "IP36",
    "locked and populated mappings: private pages stay out of reach, and conversions go through",
    needs=NEEDS,
    backend=BACKEND,
    vary={"how": ("mlock", "MAP_POPULATE", "mlockall of a later mapping")},
)
def locked(tools: Toolbox, how: str) -> None:
    memory = new_memory(tools)
    memory.to_private(0, 2 * PAGE)
    if how == "mlock":
        _libc.mlock(ctypes.c_void_p(memory.address), ctypes.c_size_t(SIZE))
    else:
        flags = mmap.MAP_SHARED | (0x8000 if how == "MAP_POPULATE" else 0x2000)  # or MAP_LOCKED
        address = lib.host_map(SIZE, PROT_READ_WRITE, flags, memory.file.fileno(), 0)
        check(bool(address), f"a mapping with {how} of private and shared pages fails")
        tools.on_close(lambda: lib.host_unmap(SIZE, address))
    memory.expect_states([page < 2 for page in range(PAGES)], f"pages of a mapping with {how}")
    memory.to_private(0, SIZE)
    memory.expect_refused(0, SIZE, f"private pages of a mapping with {how}")
    memory.to_shared(0, SIZE)
    memory.expect_host(0, SIZE, HOST, f"shared pages of a mapping with {how}")


def _page_map(address: int, size: int = SIZE, pid: int | str = "self") -> list[int]:
    """What a process has mapped at each page (Documentation/admin-guide/mm/pagemap.rst)."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        entries = os.pread(file.fileno(), size // PAGE * 8, address // PAGE * 8)
    return memoryview(entries).cast("Q").tolist()


@case(
    "IP37",
    "a memory policy holds over conversions, which move no page",
    needs=NEEDS,
    backend=BACKEND,
)
def policy(tools: Toolbox) -> None:
    memory = new_memory(tools)
    bind_to_node_0(memory.address + 3 * PAGE, 2 * PAGE)

    def frames() -> list[int]:
        return [entry & (1 << 55) - 1 for entry in _page_map(memory.address)]

    memory.punch(0, SIZE)
    memory.fill(0, SIZE, HOST)
    before = frames()
    for _ in range(3):
        memory.to_private(0, SIZE)
        memory.expect_guest(0, SIZE, HOST, "private pages with a memory policy")
        memory.to_shared(0, SIZE)
        memory.expect_host(0, SIZE, HOST, "shared pages with a memory policy")
    check(frames() == before, "a page moved when it was converted")
    expect(node_of(memory.address), 0, "node of a page that was converted")
    tail = tools.keep(memory.file.map(3 * PAGE, SIZE - 3 * PAGE))
    for start, address in ((0, memory.address), (3, tail.address)):
        for page in range(start, PAGES):
            right = MPOL_BIND if page in (3, 4) else MPOL_DEFAULT
            seen = mode_of(address + (page - start) * PAGE)
            expect(seen, right, f"policy of page {page} in a mapping from page {start} on")


@case(
    "IP75",
    "a conversion unmaps the pages of its range from the host, and no others",
    needs=NEEDS,
    backend=BACKEND,
)
def others_stay(tools: Toolbox) -> None:
    """Who uses what stays shared would fault on all of it again."""
    memory = new_memory(tools, file_offset=3 * PAGE)
    for first, count in ((0, 1), (PAGES - 1, 1), (2, 3)):
        inside = range(first, first + count)
        memory.fill(0, SIZE, HOST)
        wanted = [page not in inside for page in range(PAGES)]
        for to, convert in (("private", memory.to_private), ("shared", memory.to_shared)):
            convert(first * PAGE, count * PAGE)
            seen = [bool(entry >> 63) for entry in _page_map(memory.address)]
            what = f"a conversion to {to}"
            gone = sum(right > is_there for right, is_there in zip(wanted, seen, strict=True))
            check(not gone, f"{what} unmaps other pages from the host, too", f"{gone} pages")
            left = sum(is_there > right for right, is_there in zip(wanted, seen, strict=True))
            check(not left, f"{what} leaves pages of its range to the host", f"{left} pages")
        memory.fill(0, SIZE, HOST)
        memory.to_private(first * PAGE, count * PAGE)
        memory.to_shared(0, SIZE)
        seen = [bool(entry >> 63) for entry in _page_map(memory.address)]
        expect(
            seen, wanted, "pages that the host has when what was private became shared with them"
        )


@case(
    "IP76",
    "a page that the host is making when it becomes private is not left to the host",
    needs=(*NEEDS, "two_cpus"),
    backend=BACKEND,
    alone=True,
    deadline_s=120.0,
)
def made_meanwhile(tools: Toolbox) -> None:
    """A fault that has looked at the state and has no page yet has nothing that is in use."""
    memory = InPlace(tools, tools.private_vm(), GPA, PAGE)
    address, length = ctypes.c_void_p(memory.address), ctypes.c_size_t(PAGE)
    flips = Flips(memory, order=(0, ATTRIBUTE))
    left = busy = 0
    with RepeatedBeside(lambda: _libc.madvise(address, length, _MADV_POPULATE_WRITE)) as host:
        for _ in tools.enough(10_000, 40.0):
            if tools.races >= _MEETINGS:
                break
            before = host.made
            flips.errors.clear()
            flips(range(tools.random.randrange(200)))
            flips.expect_success("a host that makes pages", (errno.EAGAIN,))
            tools.tried(host.made > before, "times the host's call ended meanwhile")
            if flips.errors:
                busy += 1
                continue
            # What was under way has ended with the second call from now.
            before, until = host.made, time.monotonic() + 0.2
            while host.made < before + 2 and time.monotonic() < until:
                time.sleep(0)
            left += _page_map(memory.address, PAGE, host.pid)[0] >> 63
            memory.punch(0, PAGE)
        tools.say(f"{host.made:,} calls of the host, {busy} EAGAIN")
    check(
        left == 0,
        "a page that the host was making when it became private is mapped by the host",
        f"{left} times",
    )
