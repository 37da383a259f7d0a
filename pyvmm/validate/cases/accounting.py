"""What is left behind: pages, files, descriptors and VMs, counted where the kernel counts them.

A leak shows in no errno. Each thing is done many times, so that what is left of it stands
out from what other processes do meanwhile; and again, if it seems to be so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pyvmm.kvm.vm import Vm
from pyvmm.native import lib
from pyvmm.validate.kit.accounts import open_vms
from pyvmm.validate.kit.calls import Call
from pyvmm.validate.kit.case import GIB, MIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, Missing, check, errno_of
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.memory import Memory
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

_ATTEMPTS = 5


def meminfo(name: str) -> int:
    """A line of /proc/meminfo, in bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0]) << 10
    return 0


def descriptors() -> list[str]:
    """What this process's descriptors lead to."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return sorted(found)


def open_files() -> int:
    """How many files are open in the whole system."""
    try:
        return int(Path("/proc/sys/fs/file-nr").read_text(encoding="ascii").split()[0])
    except FileNotFoundError:
        raise Missing("/proc/sys/fs/file-nr (CONFIG_SYSCTL)") from None


def expect_files_back(work: Callable[[], None], most: int) -> None:
    """``work`` must leave none of this process's VMs, which every file of KVM's holds; and fewer
    than ``most`` open files, in one of several attempts: others come and go too."""
    vms = open_vms()
    work()  # the first fills caches
    # A VM that is left keeps its name, and the next one that would have it has none.
    check(open_vms() == vms, "open files are leaked (a VM is left in /sys/kernel/debug/kvm)")
    seen = []
    for _ in range(_ATTEMPTS):
        before = open_files()
        work()
        seen.append(open_files() - before)
        if seen[-1] < most:
            return
    raise CheckFailed("open files are leaked (/proc/sys/fs/file-nr grows)", f"by {seen}")


def expect_step(
    count: Callable[[], int],
    prepare: Callable[[], object],
    call: Callable[[], object],
    wanted: int,
    what: str,
) -> None:
    """``call`` must change ``count()`` by ``wanted``, give or take a quarter of it."""
    seen = []
    for _ in range(_ATTEMPTS):
        prepare()
        before = count()
        call()
        seen.append(count() - before)
        if abs(seen[-1] - wanted) <= abs(wanted) // 4:
            return
    raise CheckFailed(what, f"changed by {seen} bytes, expected about {wanted}")


def expect_no_growth(
    names: tuple[str, ...], call: Callable[[], object], limit: int, what: str
) -> None:
    """``call`` must leave each line of /proc/meminfo less than ``limit`` bytes above what it was.

    Once is enough: other processes come and go too, and the first call fills caches.
    """
    seen = []
    for _ in range(_ATTEMPTS):
        before = {name: meminfo(name) for name in names}
        call()
        grown = {name: meminfo(name) - before[name] for name in names}
        leaked = {name: size for name, size in grown.items() if size >= limit}
        if not leaked:
            return
        seen.append(leaked)
    grows = ", ".join(sorted({name for leaked in seen for name in leaked}))
    raise CheckFailed(f"{what} ({grows} of /proc/meminfo grows)", f"{seen}, limit {limit}")


SIZE = 128 * PAGE
TIMES = 24
# Machines that are used for next to nothing, in memory and in open files.
EMPTY, FEW = 80, 24
# Of a case that makes so many: each takes the kernel a while to end, on a busy system too.
_LONG_S = 240.0
# Half of the pages.
LEAK = SIZE * TIMES // 2

ENDINGS = ("file first", "VM first", "slot first", "punch", "vCPU last", "mapped twice")


@case(
    "AC1",
    "pages are given back whatever is closed first",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"ending": ENDINGS},
    alone=True,
    deadline_s=_LONG_S,
)
def pages_given_back(tools: Toolbox, ending: str) -> None:
    def use_and_close() -> None:
        for _ in range(TIMES):
            _use(GuestVm(tools.kvm, lib.KVM_X86_SW_PROTECTED_VM, 1), ending)

    expect_no_growth(
        ("Unevictable",), use_and_close, LEAK, f"guest_memfd pages are leaked, {ending}"
    )


def _use(vm: GuestVm, ending: str) -> None:
    memory = Memory(vm, 4 * GIB, SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    if ending == "mapped twice":
        memory.set_shared(0, SIZE)
        memory.set_private(0, SIZE)
        memory.guest_fill(0, SIZE, PRIVATE)
    if ending == "file first":
        memory.close()
        vm.close()
    elif ending == "slot first":
        memory.delete()
        memory.close()
        vm.close()
    elif ending == "vCPU last":
        vm.vm.close()
        memory.close()
        vm.close()
    else:
        if ending == "punch":
            memory.punch(0, SIZE)
        vm.close()
        memory.close()


@case(
    "AC2",
    "fallocate makes pages and a punch gives them back, as many as asked for",
    needs=("guest_memfd",),
    alone=True,
)
def allocation(tools: Toolbox) -> None:
    size = 32 * MIB
    vm = tools.keep(tools.kvm.create_vm(1 if tools.has_private_vm else 0))
    file = tools.keep(vm.create_guest_memfd(size))

    def allocate() -> None:
        file.allocate(0, size)

    def punch() -> None:
        file.punch(0, size)

    def unevictable() -> int:
        return meminfo("Unevictable")

    where = "(Unevictable of /proc/meminfo)"
    what = f"fallocate does not make the pages that it says it made {where}"
    expect_step(unevictable, punch, allocate, size, what)
    what = f"a punch does not give its pages back {where}"
    expect_step(unevictable, allocate, punch, -size, what)
    half = size // 2

    def punch_half() -> None:
        file.punch(half, half)

    def refill_half() -> None:
        allocate()
        punch_half()

    what = f"a punch of half the pages gives more or less back {where}"
    expect_step(unevictable, allocate, punch_half, -half, what)
    for name, offset in (("first", 0), ("second", half)):

        def allocate_half(offset: int = offset) -> None:
            file.allocate(offset, half)

        def leave_other_half(offset: int = offset) -> None:
            allocate()
            file.punch(offset, half)

        what = f"fallocate of the {name} half, while the other is present, does not make it {where}"
        expect_step(unevictable, leave_other_half, allocate_half, half, what)
    what = f"fallocate over present pages makes more than the missing ones {where}"
    expect_step(unevictable, refill_half, allocate, half, what)


@case(
    "AC3",
    "conversions that discard the stale side hold one page for each page",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"to": ("private", "shared")},
    alone=True,
)
def one_page_each(tools: Toolbox, to: str) -> None:
    size = 16 * MIB
    memory = tools.memory(tools.private_vm(), 4 * GIB, size, backing="shmem")

    def start() -> None:
        memory.to_shared(0, size)
        memory.guest_fill(0, size, SHARED)
        if to == "shared":
            memory.to_private(0, size)
            memory.guest_fill(0, size, PRIVATE)

    def convert() -> None:
        (memory.to_private if to == "private" else memory.to_shared)(0, size)
        memory.guest_fill(0, size, PRIVATE)

    def held() -> int:
        return meminfo("Shmem") + meminfo("Unevictable")

    grown: list[int] = []
    for _ in range(_ATTEMPTS):
        start()
        before = held()
        convert()
        grown.append(held() - before)
        if abs(grown[-1]) < size // 2:
            return
    raise CheckFailed(
        f"a conversion to {to} that discards the other side does not hold as many pages as "
        "before (Shmem and Unevictable of /proc/meminfo)",
        f"changed by {grown}",
    )


@case(
    "AC4",
    "no descriptor and no open file is left of a VM, a vCPU or a guest_memfd",
    needs=("guests",),
    vary={"refused": (False, True)},
    alone=True,
    deadline_s=_LONG_S,
)
def files(tools: Toolbox, refused: bool) -> None:
    kvm = tools.kvm  # it is open before anything is counted

    def work() -> None:
        for _ in range(FEW):
            vm = GuestVm(kvm, 1 if tools.has_private_vm else 0, 1)
            if vm.vm.has(lib.KVM_CAP_GUEST_MEMFD):
                _bind(vm, refused)
            vm.close()

    def watched() -> None:
        before = descriptors()
        work()
        after = descriptors()
        check(after == before, "descriptors are left open", str(set(after) - set(before)))

    expect_files_back(watched, FEW // 2)


def _bind(vm: GuestVm, refused: bool) -> None:
    """Bind a file to a slot; ``refused``: each way out of the call that holds the file by then."""
    file = vm.vm.create_guest_memfd(SIZE)
    good = Call(5, 4 * GIB, SIZE, vm.plain.address, file.fileno())
    if refused:
        for wrong in (
            replace(good, offset=PAGE),
            replace(good, gpa=0),
            replace(good, size=2 * SIZE),
            replace(good, slot=0),
            replace(good, fd=vm.vm.fileno()),
        ):
            check(errno_of(lambda wrong=wrong: wrong.make(vm)) != 0, "a wrong slot is accepted")  # type: ignore[misc]
        for size, flags in ((SIZE, 1 << 40), (1, 0)):
            errno_of(lambda size=size, flags=flags: vm.vm.create_guest_memfd(size, flags))  # type: ignore[misc]
        good.make(vm)
        bound = replace(good, slot=6, gpa=5 * GIB)
        check(errno_of(lambda: bound.make(vm)) != 0, "a file's range can be bound twice")
    else:
        good.make(vm)
    file.close()


@case(
    "AC5",
    "page tables and memory of closed VMs are given back",
    needs=("guests",),
    vary={"guest_memfd": (False, True)},
    alone=True,
    deadline_s=_LONG_S,
)
def kernel_memory(tools: Toolbox, guest_memfd: bool) -> None:
    if guest_memfd:
        tools.need("private_memory")

    def work() -> None:
        for _ in range(EMPTY):
            vm = GuestVm(tools.kvm, 1 if guest_memfd else 0, 1)
            memory = Memory(vm, 4 * GIB, 4 * PAGE) if guest_memfd else None
            vm.cpu.fill(4 * GIB if guest_memfd else 0x9000, PAGE, SHARED)
            vm.close()
            if memory is not None:
                memory.close()

    # A VM has at least four page-table pages, and its structure as much vmalloc memory.
    least = EMPTY // 2 * 4 * PAGE
    expect_no_growth(
        ("SecPageTables", "VmallocUsed"), work, least, "closed VMs leave kernel memory behind"
    )


@case(
    "AC8",
    "what a VM keeps of attributes is given back with it",
    needs=("private_memory",),
    backend="guest_memfd",
    alone=True,
    deadline_s=_LONG_S,
)
def attributes(tools: Toolbox) -> None:
    times, size = 8, GIB // 2

    def work() -> None:
        for _ in range(times):
            with tools.kvm.create_vm(lib.KVM_X86_SW_PROTECTED_VM) as vm:
                vm.set_memory_attributes(4 * GIB, size, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)

    # An attribute takes eight bytes and more.
    least = times // 2 * size // PAGE * 8
    expect_no_growth(("Slab",), work, least, "closed VMs leave their memory attributes behind")


@case(
    "AC6",
    "a guest_memfd holds its VM: both are gone when both are closed",
    needs=("private_memory",),
    backend="guest_memfd",
    alone=True,
)
def vm_pinned(tools: Toolbox) -> None:
    """The directory of a VM in debugfs goes with the last reference to it."""
    if not Path("/sys/kernel/debug/kvm").is_dir():
        raise Missing("/sys/kernel/debug/kvm: mount -t debugfs none /sys/kernel/debug")
    before = open_vms()
    vm = tools.private_vm()
    file = tools.keep(vm.vm.create_guest_memfd(SIZE))
    check(
        open_vms() == before + 1,
        "a new VM gets no directory in /sys/kernel/debug/kvm: is that of a closed VM there still?",
    )
    vm.close()
    check(open_vms() == before + 1, "a VM is gone while its guest_memfd is open")
    file.close()
    check(
        open_vms() == before,
        "a VM is there still after its guest_memfd was closed (reference leak)",
    )


@case(
    "AC7",
    "a descriptor that another program inherited keeps the pages, until that program ends",
    needs=("guest_memfd",),
    alone=True,
)
def inherited(tools: Toolbox) -> None:
    size = 32 * MIB

    def held() -> int:
        return meminfo("Unevictable")

    seen = []
    for _ in range(_ATTEMPTS):
        before = held()
        vm = tools.kvm.create_vm(1 if tools.has_private_vm else 0)
        file = vm.create_guest_memfd(size)
        file.allocate(0, size)
        # It ends when its standard input does.
        other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
        file.close()
        vm.close()
        kept = held() - before
        other.communicate()
        left = held() - before
        seen.append((kept, left))
        if kept > size // 2 and left < size // 4:
            return
    raise CheckFailed(
        "a guest_memfd that another program holds: its pages are gone too early, or not at all "
        "(Unevictable of /proc/meminfo)",
        f"(held by the program, left afterwards): {seen}",
    )


@case(
    "AC9",
    "fallocate of few pages at a time makes each of them, wherever in its file they are",
    needs=("guest_memfd",),
    vary={"pages": (1, 2), "offset": (0, 4 * GIB, 16 * 1024 * GIB)},
    alone=True,
)
def few_pages(tools: Toolbox, pages: int, offset: int) -> None:
    times, size, step = 1024, pages * PAGE, 2 * pages * PAGE
    vm = tools.keep(tools.kvm.create_vm(1 if tools.has_private_vm else 0))
    file = tools.keep(vm.create_guest_memfd(offset + times * step))

    def unevictable() -> int:
        return meminfo("Unevictable")

    def punch() -> None:
        file.punch(offset, times * step)

    def allocate() -> None:
        for at in range(offset, offset + times * step, step):
            file.allocate(at, size)

    def punch_each() -> None:
        for at in range(offset, offset + times * step, step):
            file.punch(at, size)

    what = f"fallocate of {pages} pages at a time, from {offset:#x} of its file on,"
    where = "(Unevictable of /proc/meminfo)"
    expect_step(unevictable, punch, allocate, times * size, f"{what} does not make as many {where}")
    before = unevictable()
    if offset:
        file.punch(0, offset)
    moved = before - unevictable() > times * size // 2
    check(not moved, f"{what} makes them elsewhere {where}")
    what = what.replace("fallocate", "a punch")
    expect_step(
        unevictable, allocate, punch_each, -times * size, f"{what} does not free as many {where}"
    )


@case(
    "AC10",
    "a slot that is refused because the file is another VM's leaves no open file and no VM",
    needs=("memory2", "guest_memfd"),
    alone=True,
)
def other_vm_file(tools: Toolbox) -> None:
    vm_type = 1 if tools.has_private_vm else 0
    # The kernel counts in steps of 32 for each CPU.
    vms, files = 4, 64

    def bind(vm: Vm, fd: int) -> None:
        vm.set_user_memory_region2(5, 4 * GIB, SIZE, 0, lib.KVM_MEM_GUEST_MEMFD, fd)

    def work() -> None:
        for _ in range(vms):
            with tools.kvm.create_vm(vm_type) as vm, tools.kvm.create_vm(vm_type) as other:
                for _ in range(files):
                    file = other.create_guest_memfd(SIZE)
                    refused = errno_of(partial(bind, vm, file.fileno()))
                    file.close()
                    check(refused != 0, "a slot with another VM's file is accepted")

    expect_files_back(work, vms * files // 2)
