"""Implicit conversions: the guest touches a page through one of two views, and the exit converts.

A page is reached through a private and a shared view; the access says what it wants, as
with TDX's shared bit. The same cases run on every backend: the guest protocol is the same.
The names are those of the tests that were posted with the RFC: private or shared memory
(PM, SM), private or shared access (PAT, SAT), and the host converts between two accesses.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyvmm.errors import UnsupportedError
from pyvmm.guest.real_mode import REGION_GPA, REGION_SIZE, SHARED_VIEW_GPA
from pyvmm.kvm.exits import MemoryErrorExit
from pyvmm.machine import Machine
from pyvmm.memory.backends import BACKENDS
from pyvmm.native import lib
from pyvmm.page_states import PageState
from pyvmm.validate.kit.capabilities import need_of
from pyvmm.validate.kit.case import PAGE, case
from pyvmm.validate.kit.check import CheckFailed, Missing, check, expect
from pyvmm.validate.kit.toolbox import Toolbox

PRIVATE_GPA, SHARED_GPA = REGION_GPA, SHARED_VIEW_GPA
_MEASURE, _EXIT = lib.PORT_MEASURE, lib.PORT_EXIT
_GPA, _PAGES = lib.PORT_DOORBELL_GPA, lib.PORT_DOORBELL_PAGES
_DO, _RESULT = lib.PORT_DOORBELL_RING, lib.PORT_DOORBELL_RESULT
PAGES = {"first": 0, "middle": 17, "last": REGION_SIZE // PAGE - 1}


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Access(NamedTuple):
    """A 32-bit access of the guest; a read (``value`` None) reports what it saw."""

    gpa: int
    value: int | None = None


def read(gpa: int) -> Access:
    return Access(gpa)


def write(gpa: int, value: int) -> Access:
    return Access(gpa, value)


def program(accesses: Iterable[Access | bytes]) -> bytes:
    """Real-mode code that does these accesses one after the other, then passes."""
    code = b""
    for access in accesses:
        if isinstance(access, bytes):
            code += access
            continue
        segment, offset = access.gpa >> 4 & 0xF000, access.gpa & 0xFFFF
        code += b"\xb8" + struct.pack("<H", segment) + b"\x8e\xc0"  # mov $segment, %ax; %es
        if access.value is None:
            code += b"\x66\x26\xa1" + struct.pack("<H", offset)  # mov %es:offset, %eax
            code += b"\xba" + struct.pack("<H", _MEASURE) + b"\x66\xef"  # out %eax, %dx
        else:
            # movl $value, %es:offset
            code += b"\x66\x26\xc7\x06" + struct.pack("<HI", offset, access.value)
    return code + b"\x31\xc0\xe7\xf4\xf4"  # xor %ax, %ax; out %ax, $0xf4; hlt


def doorbell(gpa: int, pages: int, command: int) -> bytes:
    """Ask for a conversion, and report the result."""
    code = b""
    for port, value in ((_GPA, gpa), (_PAGES, pages), (_DO, command)):
        code += b"\xba" + struct.pack("<H", port)
        code += b"\x66\xb8" + struct.pack("<I", value) + b"\x66\xef"
    code += b"\xba" + struct.pack("<H", _RESULT) + b"\x66\xed"
    return code + b"\xba" + struct.pack("<H", _MEASURE) + b"\x66\xef"


def hypercall(gpa: int, pages: int, private: bool) -> bytes:
    """KVM_HC_MAP_GPA_RANGE by vmmcall, and report rax."""
    number = int(lib.KVM_HC_MAP_GPA_RANGE)
    moves = (
        (0xB8, number),
        (0xBB, gpa),
        (0xB9, pages),
        (0xBA, lib.KVM_MAP_GPA_RANGE_ENCRYPTED * private),
    )
    code = b"".join(struct.pack("<BBI", 0x66, opcode, value) for opcode, value in moves)
    return code + b"\x0f\x01\xd9" + b"\xba" + struct.pack("<H", _MEASURE) + b"\x66\xef"


class Run(NamedTuple):
    values: tuple[int, ...]
    errors: list[MemoryErrorExit]
    private: list[tuple[int, int]]
    machine: Machine


def run(
    tools: Toolbox,
    backend: str,
    accesses: Iterable[Access | bytes],
    *,
    private: Iterable[int] = (),
    fill: int = 0,
) -> Run:
    """Run the accesses. ``private`` pages are made so before; ``fill`` is what shared ones hold."""
    errors: list[MemoryErrorExit] = []

    def convert(error: MemoryErrorExit, vcpu: int) -> bool:
        errors.append(error)
        return True

    try:
        machine = tools.keep(
            Machine(program(accesses), backend=backend, policy=convert, kvm=tools.kvm)
        )
    except UnsupportedError as error:
        raise Missing(str(error)) from None
    if fill:
        machine.memory.write(SHARED_GPA, struct.pack("<I", fill) * (REGION_SIZE // 4))
    for page in private:
        machine.memory.convert(PRIVATE_GPA + page * PAGE, PAGE, PageState.PRIVATE)
    report = machine.run(deadline_s=20)
    if not report.passed:
        raise CheckFailed(f"the guest's accesses: {report.reason}")
    return Run(report.measures, errors, machine.memory.regions[0].private_ranges(), machine)


def expect_errors(seen: list[MemoryErrorExit], *wanted: tuple[int, PageState]) -> None:
    """The exits, in order: page and state; each is for one page."""
    found = [(error.gpa, error.wanted.name) for error in seen]
    expect(found, [(gpa, state.name) for gpa, state in wanted], "exits (GPA, wanted state)")
    check(all(error.size == PAGE for error in seen), "an exit is not for one page")


def on_every_backend(id: str, title: str, **vary: Iterable[object]) -> Decorator:
    """The case once for each backend; its capability is the one that the backend needs."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for backend in BACKENDS:
            values = {"on": (backend,), **vary}
            case(id, title, needs=(need_of(backend),), backend=backend, vary=values)(function)
        return function

    return register


@on_every_backend("PMPAT", "private memory, private access: no exit", page=PAGES)
def private_private(tools: Toolbox, on: str, page: str) -> None:
    at = PRIVATE_GPA + PAGES[page] * PAGE
    seen = run(tools, on, [read(at), write(at, 0x1234), read(at)], private=[PAGES[page]])
    expect(seen.values, (0, 0x1234), "what the guest read")
    expect_errors(seen.errors)
    expect(seen.private, [(at, PAGE)], "private ranges")


@on_every_backend(
    "PMSAT", "private memory, shared access: an exit, and the page is punched", page=PAGES
)
def private_shared(tools: Toolbox, on: str, page: str) -> None:
    number = PAGES[page]
    at, shared = PRIVATE_GPA + number * PAGE, SHARED_GPA + number * PAGE
    accesses: list[Access | bytes] = [
        write(at, 0x1234),
        read(shared + 8),
        write(shared, 0x77),
        read(shared),
    ]
    seen = run(tools, on, accesses, private=[number], fill=0)
    expect(seen.values, (0, 0x77), "what the guest read")
    expect_errors(seen.errors, (shared, PageState.SHARED))
    expect(seen.private, [], "private ranges")
    expect(seen.machine.memory.read(shared, 4), b"\x77\0\0\0", "what the host sees")


@on_every_backend("SMSAT", "shared memory, shared access: no exit, the host sees it", page=PAGES)
def shared_shared(tools: Toolbox, on: str, page: str) -> None:
    shared = SHARED_GPA + PAGES[page] * PAGE
    seen = run(tools, on, [read(shared), write(shared + 4, 0x99), read(shared + 4)], fill=0x5151)
    expect(seen.values, (0x5151, 0x99), "what the guest read")
    expect_errors(seen.errors)
    expect(seen.machine.memory.read(shared + 4, 4), b"\x99\0\0\0", "what the host sees")


@on_every_backend(
    "SMPAT", "shared memory, private access: an exit, and the page is allocated", page=PAGES
)
def shared_private(tools: Toolbox, on: str, page: str) -> None:
    number = PAGES[page]
    at = PRIVATE_GPA + number * PAGE
    seen = run(tools, on, [read(at + 8), write(at, 0x1234), read(at)], fill=0x5151)
    expect(seen.values, (0, 0x1234), "what the guest read")
    expect_errors(seen.errors, (at, PageState.PRIVATE))
    expect(seen.private, [(at, PAGE)], "private ranges")


@on_every_backend("PSAT", "the host makes a private page shared between two accesses")
def host_to_shared(tools: Toolbox, on: str) -> None:
    at, shared = PRIVATE_GPA + 3 * PAGE, SHARED_GPA + 3 * PAGE
    accesses: list[Access | bytes] = [
        write(at, 0x1234),
        doorbell(at, 1, 1),
        read(shared),
        write(shared, 0x55),
        read(shared),
    ]
    seen = run(tools, on, accesses)
    expect(seen.values, (0, 0, 0x55), "what the guest read")
    expect_errors(seen.errors, (at, PageState.PRIVATE))
    expect(seen.private, [], "private ranges")


@on_every_backend("SPAT", "the host makes a shared page private between two accesses")
def host_to_private(tools: Toolbox, on: str) -> None:
    at, shared = PRIVATE_GPA + 3 * PAGE, SHARED_GPA + 3 * PAGE
    accesses: list[Access | bytes] = [
        write(shared, 0x55),
        doorbell(shared, 1, 2),
        read(at),
        write(at, 0x1234),
        read(at),
    ]
    seen = run(tools, on, accesses)
    expect(seen.values, (0, 0, 0x1234), "what the guest read")
    expect_errors(seen.errors)
    expect(seen.private, [(at, PAGE)], "private ranges")


@on_every_backend("PSPAHCT", "private, shared and private again by hypercall")
def by_hypercall(tools: Toolbox, on: str) -> None:
    if not BACKENDS[on].hypercall:
        raise Missing(f"hypercalls that convert: the {on} backend has doorbells")
    at, shared = PRIVATE_GPA + 3 * PAGE, SHARED_GPA + 3 * PAGE
    accesses: list[Access | bytes] = [
        hypercall(at, 2, True),
        read(at),
        write(at, 0x1234),
        hypercall(at, 1, False),
        read(shared),
        write(shared, 0x55),
        hypercall(shared, 1, True),
        read(at),
        hypercall(at, 0xFFFFFFFF, True),
        hypercall(0x80000, 1, True),
        hypercall(at, 1, False),
    ]
    seen = run(tools, on, accesses)
    wrong = (1 << 32) - errno.EINVAL
    expect(seen.values, (0, 0, 0, 0, 0, 0, wrong, wrong, 0), "what the guest read")
    expect_errors(seen.errors)
    expect(seen.private, [(at + PAGE, PAGE)], "private ranges")


@on_every_backend(
    "IM1", "to and fro through both views: each change one exit, each first read zero"
)
def to_and_fro(tools: Toolbox, on: str) -> None:
    accesses: list[Access | bytes] = []
    wanted = []
    expected: list[int] = []
    for index in range(40):
        page = index % 4
        view, state = PRIVATE_GPA, PageState.PRIVATE
        if index // 4 % 2:
            view, state = SHARED_GPA, PageState.SHARED
        at = view + page * PAGE
        accesses += [read(at + 0x10), write(at + 0x10, 0x1000 + index), read(at + 0x10)]
        expected += [0, 0x1000 + index]
        wanted.append((at, state))
    seen = run(tools, on, accesses)
    expect(seen.values, tuple(expected), "what the guest read")
    expect_errors(seen.errors, *wanted)


@on_every_backend("IM2", "pages beside those that are converted keep state and contents")
def neighbours(tools: Toolbox, on: str) -> None:
    accesses: list[Access | bytes] = [
        write(PRIVATE_GPA + page * PAGE, 0x100 + page) for page in range(8)
    ]
    accesses += [write(SHARED_GPA + page * PAGE, 0x200 + page) for page in range(8, 16)]
    accesses += [read(SHARED_GPA + 3 * PAGE), read(PRIVATE_GPA + 11 * PAGE)]
    accesses += [read(PRIVATE_GPA + page * PAGE) for page in range(8) if page != 3]
    accesses += [read(SHARED_GPA + page * PAGE) for page in range(8, 16) if page != 11]
    seen = run(tools, on, accesses)
    kept = [0x100 + page for page in range(8) if page != 3]
    kept += [0x200 + page for page in range(8, 16) if page != 11]
    expect(seen.values, (0, 0, *kept), "what the guest read")
    wanted = [(PRIVATE_GPA + page * PAGE, PageState.PRIVATE) for page in range(8)]
    wanted += [
        (SHARED_GPA + 3 * PAGE, PageState.SHARED),
        (PRIVATE_GPA + 11 * PAGE, PageState.PRIVATE),
    ]
    expect_errors(seen.errors, *wanted)


@on_every_backend("IM3", "the doorbell converts ranges, and refuses what is no range of the region")
def doorbells(tools: Toolbox, on: str) -> None:
    to_shared, to_private = 1, 2
    refused = (
        (PRIVATE_GPA + 1, 1, to_private),
        (PRIVATE_GPA, 0, to_private),
        (PRIVATE_GPA, REGION_SIZE // PAGE + 1, to_private),
        (PRIVATE_GPA + REGION_SIZE - PAGE, 2, to_shared),
        (PRIVATE_GPA, 0xFFFFFFFF, to_private),
        (0x80000, 1, to_private),
        (0, 1, to_private),
        (PRIVATE_GPA, 1, 3),
        (PRIVATE_GPA, 1, 0),
    )
    accesses: list[Access | bytes] = [doorbell(PRIVATE_GPA + 2 * PAGE, 4, to_private)]
    accesses += [write(PRIVATE_GPA + page * PAGE, page) for page in range(2, 6)]
    accesses += [doorbell(*row) for row in refused]
    accesses += [doorbell(SHARED_GPA + 3 * PAGE, 1, to_shared)]
    accesses += [read(PRIVATE_GPA + page * PAGE) for page in (2, 4, 5)]
    accesses += [read(SHARED_GPA + 3 * PAGE)]
    seen = run(tools, on, accesses)
    wrong = (1 << 32) - errno.EINVAL
    expect(seen.values, (0, *[wrong] * len(refused), 0, 2, 4, 5, 0), "what the guest read")
    expect_errors(seen.errors)
    expect(
        seen.private,
        [(PRIVATE_GPA + 2 * PAGE, PAGE), (PRIVATE_GPA + 4 * PAGE, 2 * PAGE)],
        "private ranges",
    )
