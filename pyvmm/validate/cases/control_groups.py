"""Memory control groups: who pays for private memory, and what becomes of whoever cannot."""

from __future__ import annotations

import ctypes
import errno
import signal
from collections.abc import Callable

from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.system import Kvm
from pyvmm.native import lib
from pyvmm.validate.kit import child
from pyvmm.validate.kit.accounts import open_vms
from pyvmm.validate.kit.case import GIB, MIB, PAGE, case
from pyvmm.validate.kit.check import Missing, check, expect
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.in_place import InPlace
from pyvmm.validate.kit.memory import Memory
from pyvmm.validate.kit.memory_group import MemoryGroup
from pyvmm.validate.kit.patterns import HOST, PRIVATE
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("private_memory",)
BACKEND = "guest_memfd"
SIZE = 16 * MIB
# What a group is charged for besides: page tables, what each CPU has charged in advance.
BESIDES = 3 * MIB

_Use = Callable[[Memory], None]


def _by_host(memory: Memory) -> None:
    memory.allocate(0, memory.size)


def _by_guest(memory: Memory) -> None:
    memory.guest_fill(0, memory.size, 1)


# mman.h's
ADVICES = {"MADV_PAGEOUT": 21, "MADV_SOFT_OFFLINE": 101}
_libc = ctypes.CDLL(None, use_errno=True)

BY: dict[str, _Use] = {"host": _by_host, "guest": _by_guest}


@case(
    "CG1",
    "private pages are charged to the memory control group of who makes them, until they are gone",
    needs=NEEDS,
    backend=BACKEND,
    vary={"by": tuple(BY)},
    alone=True,
)
def charged(tools: Toolbox, by: str) -> None:
    with MemoryGroup() as group:
        memory = tools.memory(tools.private_vm(), 4 * GIB, SIZE)
        memory.set_private(0, SIZE)
        with group.joined():
            before = group.current
            BY[by](memory)
            made = group.current - before
            memory.punch(0, SIZE)
            left = group.current - before
        tools.say(f"{made >> 10} of {SIZE >> 10} KiB charged, {left >> 10} KiB left")
        detail = f"{SIZE} bytes: {made} charged, {left} after the punch"
        check(abs(made - SIZE) < BESIDES, "private pages are not charged as what they are", detail)
        check(left < BESIDES, "private pages that were punched are charged still", detail)


@case(
    "CG2",
    "who makes more private pages than its control group may have is killed; nothing is left",
    needs=NEEDS,
    backend=BACKEND,
    vary={"by": tuple(BY)},
    alone=True,
)
def over_the_limit(tools: Toolbox, by: str) -> None:
    with MemoryGroup() as group:
        pid = child.start(lambda: _overdraw(group, BY[by]))
        status = child.end_of(pid)
        expect(status, -signal.SIGKILL, "the end of a process over its control group's limit")
        check(group.killed == 1, "a process over its control group's limit, not counted as killed")
        left = group.current
        check(
            left < BESIDES,
            "private pages of a process that was killed are charged still",
            f"{left}",
        )
    expect(open_vms(pid), 0, "VMs when the process that had one was killed")


@case(
    "CG3",
    "pages that convert in place are charged once, whatever their state, until they are punched",
    needs=("in_place",),
    backend="in_place",
    vary={"made_by": ("fallocate", "host", "guest")},
    alone=True,
)
def charged_once(tools: Toolbox, made_by: str) -> None:
    charges = []
    with MemoryGroup() as group:
        memory = InPlace(tools, tools.private_vm(), 4 * GIB, SIZE)
        made: dict[str, Callable[[], object]] = {
            "fallocate": lambda: memory.allocate(0, SIZE),
            "host": lambda: [memory.host.write(at, b"x") for at in range(0, SIZE, PAGE)],
            "guest": lambda: memory.vm.cpu.fill(4 * GIB, SIZE, 1, PAGE),
        }
        with group.joined():
            before = group.current
            steps: tuple[Callable[[], object], ...] = (
                made[made_by],
                lambda: memory.to_private(0, SIZE),
                lambda: memory.guest_fill(0, SIZE, 1),
                lambda: memory.to_shared(0, SIZE),
                lambda: memory.punch(0, SIZE),
            )
            for step in steps:
                step()
                charges.append(group.current - before)
    words = ", ".join(f"{charge >> 10}" for charge in charges)
    tools.say(f"{words} KiB charged in the states of {SIZE >> 10} KiB")
    wanted = (SIZE, SIZE, SIZE, SIZE, 0)
    off = [abs(seen - right) > BESIDES for seen, right in zip(charges, wanted, strict=True)]
    check(not any(off), "pages that convert in place are not charged once until punched", words)


@case(
    "CG4",
    "the kernel reclaims no private page: contents and charge stay",
    needs=NEEDS,
    backend=BACKEND,
    vary={"by": tuple(BY)},
    alone=True,
)
def not_reclaimed(tools: Toolbox, by: str) -> None:
    """What a guest writes is dirty, what the host allocates is not."""
    with MemoryGroup() as group:
        memory = tools.memory(tools.private_vm(), 4 * GIB, SIZE)
        memory.set_private(0, SIZE)
        with group.joined():
            before = group.files
            BY[by](memory)
            group.reclaim(SIZE)
            left = group.files - before
        if by == "guest":
            memory.expect_guest(0, SIZE, 1, "private pages that were to be reclaimed")
        check(abs(left - SIZE) < BESIDES, "private pages were reclaimed", f"{left} of {SIZE} left")


@case(
    "CG5",
    "the kernel neither reclaims nor moves a page that converts in place, whatever its state",
    needs=("in_place",),
    backend="in_place",
    vary={"by": ("memory.reclaim", "MADV_PAGEOUT", "MADV_SOFT_OFFLINE")},
    alone=True,
)
def not_reclaimed_in_place(tools: Toolbox, by: str) -> None:
    """Nor does it put the contents elsewhere, which no guest's mapping would follow."""
    half = SIZE // 2
    with MemoryGroup() as group, group.joined():
        # The slot lies over other memory: no MMU notifier takes what the host loses from the guest.
        elsewhere = tools.keep(Mapping(SIZE)).address
        memory = InPlace(tools, tools.private_vm(), 4 * GIB, SIZE, address=elsewhere)
        memory.guest_fill(0, SIZE, PRIVATE)
        memory.to_private(half, half)
        memory.expect_host(0, half, PRIVATE, "shared pages before they were to be reclaimed")
        if by == "memory.reclaim":
            group.reclaim(SIZE)
        else:
            assert memory.mapping is not None
            advice = ctypes.c_int(ADVICES[by])
            # Each page for itself: at the first that cannot be had the call ends.
            for offset in range(0, 8 * PAGE, PAGE):
                address = ctypes.c_void_p(memory.mapping.address + offset)
                refused = _libc.madvise(address, ctypes.c_size_t(PAGE), advice)
                if refused and ctypes.get_errno() in (errno.EPERM, errno.EINVAL):
                    raise Missing(f"{by}: CONFIG_MEMORY_FAILURE, and root")
        what = f"pages that were to be reclaimed ({by})"
        memory.expect_host(0, half, PRIVATE, f"shared {what}")
        memory.expect_guest(0, SIZE, PRIVATE, what)
        memory.fill(0, half, HOST)
        memory.expect_guest(0, half, HOST, f"what the host wrote to {what}")


def _overdraw(group: MemoryGroup, use: _Use) -> int:
    """What a child does: 0 if all that memory can be had."""
    group.join()
    group.limit(group.current + 2 * SIZE)
    with Kvm() as kvm:
        vm = GuestVm(kvm, lib.KVM_X86_SW_PROTECTED_VM, 1)
        memory = Memory(vm, 4 * GIB, 4 * SIZE)
        memory.set_private(0, memory.size)
        use(memory)
    return 0
