"""What else in the kernel has to do with memory that converts in place: exits, accounts."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

from pyvmm.kvm.mapping import Mapping
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.accounts import left_behind, lines, meminfo
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.capabilities import hypercall_routine
from pyvmm.validate.kit.case import GIB, HUGE, MIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, check, errno_name, expect
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.in_place import MAPPED, MMAP, InPlace, set_attributes
from pyvmm.validate.kit.known import MMIO_THEN_PRIVATE, Known
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.memory_group import MemoryGroup
from pyvmm.validate.kit.patterns import HOST, PRIVATE
from pyvmm.validate.kit.policy import bind_to_node_0
from pyvmm.validate.kit.race import in_threads
from pyvmm.validate.kit.references import Pipe
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("in_place",)
BACKEND = "in_place"
GPA, PAGES = 4 * GIB, 8
SIZE = PAGES * PAGE
# As many leave more than noise if each of them leaves 128 bytes.
_THOUSANDS = 5_000


def new_memory(tools: Toolbox, cpus: int = 1, **more: int) -> InPlace:
    return InPlace(tools, tools.private_vm(cpus), GPA, SIZE, **more)


@case(
    "IP62",
    "without a slot a page is shared: MMIO, whatever the state of its page in the file",
    needs=NEEDS,
    backend=BACKEND,
)
def without_a_slot(tools: Toolbox) -> None:
    memory = new_memory(tools, flags=MMAP)
    memory.vm.cpu.expect_mmio(GPA + SIZE, "behind a private slot")
    memory.delete()
    for page in (0, PAGES - 1):
        memory.vm.cpu.expect_mmio(GPA + page * PAGE, "a private page whose slot was deleted")
    memory.to_shared(0, SIZE)
    memory.vm.cpu.expect_mmio(GPA + PAGE, "a shared page whose slot was deleted")


@case(
    "IP63",
    "a private page that had no slot before is memory as soon as it has one",
    needs=NEEDS,
    backend=BACKEND,
    vary={"state": ("private", "shared")},
)
def mmio_before(tools: Toolbox, state: str) -> None:
    memory = new_memory(tools, flags=MMAP if state == "private" else MAPPED)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.delete()
    memory.vm.cpu.expect_mmio(GPA, f"a {state} page whose slot was deleted")
    memory.create()
    outcome = memory.vm.cpu.run(routines.READ[8], rdi=GPA)
    if state == "private" and outcome.fault == (0, GPA, PAGE):
        raise Known(MMIO_THEN_PRIVATE, "a private page that was MMIO before its slot came exits")
    if outcome.reason != lib.KVM_EXIT_HLT:
        raise CheckFailed(f"a {state} page whose slot was made again: the guest got {outcome}")
    memory.expect_guest(0, SIZE, PRIVATE, f"{state} pages whose slot was made again")


@case(
    "IP64",
    "ordinary memory in the place of the slot is shared, as the host sees it",
    needs=NEEDS,
    backend=BACKEND,
)
def ordinary_memory_instead(tools: Toolbox) -> None:
    memory = new_memory(tools, flags=MMAP)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.delete()
    side = tools.shared_side(GPA, SIZE)
    side.fill(GPA, 0, SIZE, HOST)
    vm = memory.vm
    slot = vm.new_slot()
    vm.vm.set_user_memory_region(slot, GPA, SIZE, side.address)
    vm.cpu.expect_filled(GPA, SIZE, HOST, "ordinary memory in the place of a private slot")
    vm.vm.set_user_memory_region(slot, GPA, 0, side.address)
    memory.create()
    memory.expect_guest(0, SIZE, PRIVATE, "private pages that were ordinary memory meanwhile")


@case(
    "IP65",
    "when its file is closed a page exits with EFAULT, and is not called private",
    needs=NEEDS,
    backend=BACKEND,
    vary={
        "state": ("private", "shared"),
        "mapped": (True, False),
        "address": ("the mapping", "another"),
    },
)
def file_closed(tools: Toolbox, state: str, mapped: bool, address: str) -> None:
    # Where the slot does not have the mapping's address, unmapping that takes nothing away.
    more = {"address": tools.keep(Mapping(SIZE)).address} if address == "another" else {}
    memory = new_memory(tools, flags=MAPPED if state == "shared" else MMAP, **more)
    memory.guest_fill(0, SIZE, PRIVATE)
    if mapped:  # the mapping is a reference
        memory.file.close()
        memory.expect_guest(0, SIZE, PRIVATE, f"{state} pages whose file is mapped still")
    memory.close_file()
    for page in (PAGES - 1, 0):
        memory.vm.cpu.prepare(routines.READ[8], rdi=GPA + page * PAGE)
        memory.vm.cpu.expect_fault(GPA + page * PAGE, f"a {state} page of a closed file", flags=0)
    memory.delete()
    memory.vm.cpu.expect_mmio(GPA, "a page of a closed file without its slot")


@case(
    "IP66",
    "vCPUs ask for conversions by hypercall, each of its part: contents stay on both sides",
    needs=(*NEEDS, "hypercall_exit"),
    backend=BACKEND,
    combinations=(
        *({"slots": 1, "cpus": cpus, "block": 16} for cpus in (1, 2)),
        *({"slots": 3, "cpus": 2, "block": block} for block in (16, HUGE // PAGE)),
    ),
)
def by_hypercall(tools: Toolbox, slots: int, cpus: int, block: int) -> None:
    """The ranges are those of the kernel's own test, whose block is 2 MiB."""
    pages = block + 2
    vm = tools.private_vm(cpus)
    call = hypercall_routine(vm)
    assert call is not None
    memory = InPlace(tools, vm, GPA, cpus * pages * PAGE, slots=slots)
    host_tag, guest_tag = HOST, PRIVATE

    def ask(cpu: int, offset: int, size: int, private: bool) -> None:
        chosen = vm.cpus[cpu]
        chosen.prepare(
            call,
            rax=lib.KVM_HC_MAP_GPA_RANGE,
            rbx=GPA + offset,
            rcx=size // PAGE,
            rdx=private << 4,
        )
        outcome = chosen.enter()
        if outcome.reason != lib.KVM_EXIT_HYPERCALL:
            raise CheckFailed(f"a hypercall of a guest that converts in place gives {outcome}")
        gpa, count, attributes = (int(each) for each in chosen.vcpu.kvm_run.hypercall.args[0:3])
        # KVM has changed nothing by itself.
        convert = memory.to_private if attributes >> 4 & 1 else memory.to_shared
        convert(gpa - GPA, count * PAGE)
        chosen.answer(0)
        expect(int(chosen.finish("after a hypercall").rax), 0, "what the hypercall returns")

    def work(cpu: int) -> None:
        start = cpu * pages * PAGE
        for first, count in ((0, 1), (0, block), (1, 1), (1, block), (block, 1)):
            offset, size = start + first * PAGE, count * PAGE
            memory.expect_states_of(offset, size, False, "before a hypercall")
            memory.guest_fill(offset, size, guest_tag + cpu, cpu)
            ask(cpu, offset, size, True)
            memory.expect_guest(offset, size, guest_tag + cpu, "pages asked to be private", cpu)
            memory.expect_refused(offset, size, "pages asked to be private")
            memory.guest_fill(offset, size, guest_tag + 8 + cpu, cpu)
            ask(cpu, offset, size, False)
            memory.expect_host(offset, size, guest_tag + 8 + cpu, "pages asked to be shared")

    in_threads(work, cpus)
    memory.fill(0, memory.size, host_tag)
    memory.expect_guest(0, memory.size, host_tag, "pages after conversions by hypercall")


@case(
    "IP67",
    "pages are used once: a conversion takes no memory, a punch gives it back in either state",
    needs=NEEDS,
    backend=BACKEND,
    alone=True,
)
def used_once(tools: Toolbox) -> None:
    size = 32 * MIB
    memory = InPlace(tools, tools.private_vm(), GPA, size)

    def changed(call: Callable[[], object]) -> int:
        before = meminfo()["Unevictable"]
        call()
        return meminfo()["Unevictable"] - before

    near = size // 4
    for what, call, wanted in (
        ("allocating shared pages", lambda: memory.allocate(0, size), size),
        ("a conversion to private", lambda: memory.to_private(0, size), 0),
        ("a guest that uses private pages", lambda: memory.vm.cpu.fill(GPA, size, 1, PAGE), 0),
        ("a conversion to shared", lambda: memory.to_shared(0, size), 0),
        ("a punch of shared pages", lambda: memory.punch(0, size), -size),
        ("a conversion of pages that are not there", lambda: memory.to_private(0, size), 0),
        (
            "a host that tries to read private pages that are not there",
            lambda: memory.expect_refused(0, size, "private pages that are not there"),
            0,
        ),
        ("allocating private pages", lambda: memory.allocate(0, size), size),
        ("a punch of private pages", lambda: memory.punch(0, size), -size),
    ):
        seen = changed(call)
        if abs(seen - wanted) > near:  # others use memory too: once more, from the beginning
            memory.punch(0, size)
            raise CheckFailed(
                f"{what} changes memory in use by another amount (Unevictable of /proc/meminfo)",
                f"by {seen} bytes, expected about {wanted}",
            )


@case(
    "IP68",
    "nothing is left of a file whose pages were of both states, however it ends",
    needs=NEEDS,
    backend=BACKEND,
    vary={"ending": ("file first", "VM first", "mapped last", "EAGAIN last")},
    alone=True,
)
def left(tools: Toolbox, ending: str) -> None:
    pages = 64

    def once() -> None:
        with Toolbox("left") as own:
            vm: GuestVm = own.private_vm()
            memory = InPlace(own, vm, GPA, pages * PAGE)
            memory.fill(0, 4 * PAGE, HOST)
            for page in range(0, pages, 4):
                memory.to_private(page * PAGE, 2 * PAGE)
            memory.guest_fill(0, pages * PAGE, PRIVATE)
            if ending == "file first":
                memory.close_file()
            elif ending == "VM first":
                vm.close()
                memory.to_shared(0, pages * PAGE)
            elif ending == "mapped last":
                memory.file.close()
                vm.close()
            else:
                with Pipe() as pipe:
                    check(pipe.hold(memory.address + 2 * PAGE), "vmsplice of a shared page")
                    answer = memory.ask(0, pages * PAGE, True)
                    expect(errno_name(answer.error), "EAGAIN", "a page in a pipe")

    def work() -> None:
        for _ in range(4):
            once()

    work()
    grown = left_behind(work, lines(), lambda line: line.noise, 3)
    names = ", ".join(line.name for line in grown)
    check(not grown, f"something is left of files that converted in place ({names})", f"{grown}")


@case(
    "IP69",
    "a pattern of states costs its memory control group what it costs the kernel",
    needs=NEEDS,
    backend=BACKEND,
    alone=True,
)
def charged(tools: Toolbox) -> None:
    """Told, not judged: upstream's tree of states is not charged to anybody."""
    with MemoryGroup() as group:
        memory = InPlace(tools, tools.private_vm(), GPA, 16 * MIB)
        with group.joined():
            slab, before = meminfo()["Slab"], group.current
            for page in range(0, 4096, 2):
                memory.to_private(page * PAGE, PAGE)
            grown, charged = meminfo()["Slab"] - slab, group.current - before
        tools.say(f"{grown >> 10} KiB of Slab, {charged >> 10} KiB charged")
        memory.to_private(0, memory.size)
    check(
        meminfo()["Slab"] - slab < max(grown // 2, 2 * MIB),
        "states that are equal again keep the memory of when they were not",
    )


@case(
    "IP70",
    "pre-faulting maps pages of either state, and outside slots is ENOENT",
    needs=(*NEEDS, "pre_fault", "statistics"),
    backend=BACKEND,
    vary={"state": ("private", "shared", "both")},
)
def pre_faulted(tools: Toolbox, state: str) -> None:
    memory = new_memory(tools, flags=MAPPED if state == "shared" else MMAP)
    if state == "both":
        memory.to_shared(2 * PAGE, 3 * PAGE)
    wanted = memory.states()
    cpu = memory.vm.cpu
    cpu.read(0x9000)
    before = memory.vm.mapped_pages()
    for _ in range(3):
        left, error = pre_fault(cpu, GPA, SIZE + 2 * PAGE)
        if error != errno.EINTR:
            break
    expect((left, errno_name(error)), (2 * PAGE, "ENOENT"), "bytes left, and errno")
    expect(memory.vm.mapped_pages() - before, PAGES, f"pages mapped, {state}")
    taken = cpu.counter("pf_taken")
    memory.expect_guest_zero(0, SIZE, f"pre-faulted pages, {state}")
    check(cpu.counter("pf_taken") - taken < PAGES, "pre-faulted pages fault once more")
    memory.expect_states(wanted, "pre-faulted pages")


@case(
    "IP71",
    "the guest gets pages of 4 KiB only, whatever it asks for and the file is advised",
    needs=(*NEEDS, "statistics"),
    backend=BACKEND,
)
def small_pages(tools: Toolbox) -> None:
    vm = tools.private_vm()
    memory = InPlace(tools, vm, GPA, 2 * HUGE)
    assert memory.mapping is not None
    advice = ctypes.CDLL(None).madvise
    advice(ctypes.c_void_p(memory.address), ctypes.c_size_t(memory.size), 14)  # MADV_HUGEPAGE
    for private in (False, True):
        if private:
            memory.to_private(0, memory.size)
        before = vm.mapped_pages()
        vm.cpu.fill(GPA, memory.size, PRIVATE, PAGE)
        large = vm.counter("pages_2m") + vm.counter("pages_1g")
        name = "private" if private else "shared"
        expect(large, 0, f"large pages of a guest in {name} memory")
        seen = vm.mapped_pages() - before
        check(seen >= memory.size // PAGE, f"a guest's {name} pages are mapped as larger ones")


@case(
    "IP72",
    "conversions by the thousand, refused or not, and files with states leave nothing",
    needs=NEEDS,
    backend=BACKEND,
    vary={"what": ("refused conversions", "conversions", "closed files", "files with a policy")},
    alone=True,
    deadline_s=240.0,
)
def by_the_thousand(tools: Toolbox, what: str) -> None:
    """What one of them leaves is too little to show: a node of the tree of states."""
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE)
    memory.fill(0, SIZE, HOST)
    wanted = "EAGAIN" if what == "refused conversions" else "success"

    def convert() -> None:
        seen = errno_name(memory.ask(PAGE, 2 * PAGE, True).error)
        expect(seen, wanted, f"errno of one of many {what}")
        memory.to_shared(PAGE, 2 * PAGE)

    def close() -> None:
        with memory.vm.vm.create_guest_memfd(SIZE, MAPPED) as file:
            answer = set_attributes(file.fileno(), PAGE, 2 * PAGE, ATTRIBUTE)
            if what == "files with a policy":
                with file.map() as mapping:
                    for page in (1, 3, 5, 7):  # each is a node in the file's tree of policies
                        bind_to_node_0(mapping.address + page * PAGE, PAGE)
        expect(errno_name(answer.error), wanted, "errno of a conversion in one of many files")

    def work() -> None:
        for _ in range(_THOUSANDS):
            if "files" in what:
                close()
            else:
                convert()

    with Pipe() as pipe:
        if what == "refused conversions":
            check(pipe.hold(memory.address + 2 * PAGE), "vmsplice of a shared page")
        work()
        grown = left_behind(work, lines(), lambda line: line.noise, 3)
    names = ", ".join(line.name for line in grown)
    check(not grown, f"something is left of {what} by the thousand ({names})", f"{grown}")
