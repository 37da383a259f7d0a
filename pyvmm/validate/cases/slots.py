"""Memslots over a guest_memfd: offsets, several slots on one file, slots deleted and made again."""

from __future__ import annotations

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, KIB, PAGE, case
from pyvmm.validate.kit.check import check, errno_of, expect_errno
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE


@case(
    "SL1",
    "a slot that starts inside its guest_memfd reaches the pages from there, and only those",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={
        "file_offset": (PAGE, 5 * PAGE, 64 * PAGE, 4 * GIB + 5 * PAGE, (1 << 44) + 5 * PAGE),
        "gpa": (512 * KIB, 4 * GIB),
    },
)
def file_offset(tools: Toolbox, file_offset: int, gpa: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, SIZE, file_offset=file_offset, file_size=file_offset + 2 * SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    # In the file's own offsets: before, behind, and exactly the slot's second page.
    memory.file.punch(0, file_offset)
    memory.file.punch(file_offset + SIZE, SIZE)
    memory.expect_guest(0, SIZE, PRIVATE, "pages of a slot after its file was punched around it")
    memory.file.punch(file_offset + PAGE, PAGE)
    memory.expect_guest_zero(PAGE, PAGE, "the page of a slot that was punched in its file")
    memory.expect_guest(0, PAGE, PRIVATE, "the page before the punched one")
    memory.expect_guest(2 * PAGE, SIZE - 2 * PAGE, PRIVATE, "the pages behind the punched one")
    memory.file.punch(file_offset + SIZE - PAGE, 2 * PAGE)
    memory.expect_guest_zero(SIZE - PAGE, PAGE, "the slot's last page, punched over its end")
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.file.punch(file_offset + PAGE, 1 << 44)
    memory.expect_guest_zero(PAGE, SIZE - PAGE, "pages punched from a slot's second to far behind")
    memory.expect_guest(0, PAGE, PRIVATE, "the page before a punch of 16 TiB")


@case(
    "SL2",
    "a punch over several slots of one file reaches each of them",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"slots": (2, 3, 4), "punch": ((0, 16), (3, 2), (3, 10), (7, 1), (8, 1), (15, 1), (4, 8))},
)
def punch_over_slots(tools: Toolbox, slots: int, punch: tuple[int, int]) -> None:
    first, count = punch
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE, slots=slots, file_offset=57 * PAGE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.punch(first * PAGE, count * PAGE)
    for page in range(first + count - 1, first - 1, -1):
        memory.expect_guest_zero(page * PAGE, PAGE, "a page punched over several slots")
    if first:
        memory.expect_guest(0, first * PAGE, PRIVATE, "pages before the punched ones")
    end = first + count
    if end < 16:
        memory.expect_guest(end * PAGE, SIZE - end * PAGE, PRIVATE, "pages behind the punched ones")


@case(
    "SL3",
    "slots whose order in the file is not that of their GPAs",
    needs=("private_memory",),
    backend="guest_memfd",
)
def crossed(tools: Toolbox) -> None:
    vm = tools.private_vm()
    file = tools.keep(vm.vm.create_guest_memfd(2 * SIZE))
    low = tools.memory(vm, 4 * GIB, SIZE, file=file, file_offset=SIZE)
    high = tools.memory(vm, 4 * GIB + SIZE, SIZE, file=file, file_offset=0)
    for memory in (low, high):
        memory.set_private(0, SIZE)
        memory.guest_fill(0, SIZE, PRIVATE)
    file.punch(SIZE, PAGE)
    low.expect_guest_zero(0, PAGE, "the low slot's first page, punched in the middle of the file")
    high.expect_guest(0, SIZE, PRIVATE, "the high slot, which was not punched")
    file.punch(0, SIZE)
    high.expect_guest_zero(0, SIZE, "the high slot, punched at the start of the file")
    low.expect_guest(PAGE, SIZE - PAGE, PRIVATE, "the low slot's other pages")


@case(
    "SL4",
    "a slot deleted and made again has its private pages still",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"times": (1, 20)},
)
def made_again(tools: Toolbox, times: int) -> None:
    memory = tools.memory(tools.private_vm(), 4 * GIB, SIZE)
    memory.guest_fill(0, SIZE, SHARED)
    memory.set_private(PAGE, 4 * PAGE)
    memory.guest_fill(PAGE, 4 * PAGE, PRIVATE)
    for _ in range(times):
        memory.delete()
        memory.create()
        memory.expect_guest(PAGE, 4 * PAGE, PRIVATE, "private pages of a slot made again")
        memory.expect_guest(0, PAGE, SHARED, "shared pages of a slot made again")
        memory.expect_guest(5 * PAGE, SIZE - 5 * PAGE, SHARED, "shared pages of a slot made again")


@case(
    "SL5",
    "a slot made again at another offset of its file shows other pages",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"shift": (1, 3, -2)},
)
def shifted(tools: Toolbox, shift: int) -> None:
    vm = tools.private_vm()
    file = tools.keep(vm.vm.create_guest_memfd(SIZE + 8 * PAGE))
    memory = tools.memory(vm, 4 * GIB, SIZE, file=file, file_offset=4 * PAGE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.delete()
    moved = tools.memory(vm, 4 * GIB, SIZE, file=file, file_offset=(4 + shift) * PAGE)
    cpu = vm.cpu
    for page in range(16):
        before = page + shift
        # The pattern holds the GPA that the page had when it was written.
        expected = PRIVATE + moved.gpa + before * PAGE if 0 <= before < 16 else 0
        cpu.expect_read(
            moved.gpa + page * PAGE, expected, "a page of a slot made again at another offset"
        )
    moved.punch(2 * PAGE, PAGE)
    cpu.expect_read(moved.gpa + 2 * PAGE, 0, "a page punched at the slot's new offset")


@case(
    "SL6",
    "a slot made again at another GPA: the old one is gone, the new one has the pages",
    needs=("private_memory",),
    backend="guest_memfd",
)
def other_gpa(tools: Toolbox) -> None:
    vm = tools.private_vm()
    file = tools.keep(vm.vm.create_guest_memfd(SIZE))
    old = tools.memory(vm, 4 * GIB, SIZE, file=file)
    old.set_private(0, SIZE)
    old.guest_fill(0, SIZE, PRIVATE)
    old.delete()
    new = tools.memory(vm, 5 * GIB, SIZE, file=file)
    new.set_private(0, SIZE)
    vm.cpu.prepare(routines.READ[8], rdi=old.gpa)
    vm.cpu.expect_fault(old.gpa, "a private page whose slot was deleted")
    vm.cpu.expect_read(new.gpa, PRIVATE + old.gpa, "the page at its new GPA")
    new.punch(0, SIZE)
    new.expect_guest_zero(0, SIZE, "pages punched after their slot moved")


@case(
    "SL9",
    "nothing of a deleted slot stays mapped, from its first page to its last",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"state": ("private", "shared"), "slots": (1, 4)},
)
def deleted(tools: Toolbox, state: str, slots: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE, slots=slots)
    if state == "private":
        memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.delete()
    borders = [slot.gpa - memory.gpa for slot in memory.slots]
    # Pages that may be left over first: what follows maps nothing new.
    for offset in (SIZE - PAGE, 0, *(at - PAGE for at in borders[1:]), *borders, 7 * PAGE):
        gpa = memory.gpa + offset
        if state == "shared":
            vm.cpu.expect_mmio(gpa, "a shared page whose slot was deleted")
        else:
            vm.cpu.prepare(routines.READ[8], rdi=gpa)
            vm.cpu.expect_fault(gpa, "a private page whose slot was deleted")


@case(
    "SL7",
    "a file's range is free again when its slot is deleted, and taken while it is there",
    needs=("private_memory",),
    backend="guest_memfd",
    # Page 64 begins a node of the tree in which the kernel keeps bindings.
    vary={"slots": (1, 4), "first_page": (0, 49, 64)},
)
def binding(tools: Toolbox, slots: int, first_page: int) -> None:
    vm = tools.private_vm()
    offset = first_page * PAGE
    memory = tools.memory(vm, 4 * GIB, SIZE, slots=slots, file_offset=offset)

    def bind_again() -> int:
        def bind() -> None:
            tools.memory(vm, 5 * GIB, SIZE, file=memory.file, file_offset=offset).delete()

        return errno_of(bind)

    check(bind_again() != 0, "a file's range can be bound to a second slot")
    memory.delete()
    check(bind_again() == 0, "a file's range is still bound after its slot was deleted")
    memory.create()
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    check(bind_again() != 0, "a file's range can be bound to a second slot")


@case(
    "SL8",
    "the highest slot numbers and a slot of one page work like the others",
    needs=("private_memory",),
    backend="guest_memfd",
)
def slot_numbers(tools: Toolbox) -> None:
    vm = tools.private_vm()
    count = vm.vm.check_extension(lib.KVM_CAP_NR_MEMSLOTS)
    for number in (1, 255, 256, count - 1):
        memory = tools.memory(vm, 4 * GIB + number * SIZE, PAGE, first_slot=number)
        memory.guest_fill(0, PAGE, SHARED)
        memory.set_private(0, PAGE)
        memory.expect_guest_zero(0, PAGE, "a private page in a slot with a high number")
        memory.guest_fill(0, PAGE, PRIVATE)
        memory.punch(0, PAGE)
        memory.expect_guest_zero(0, PAGE, "a punched page in a slot with a high number")


@case(
    "SL10",
    "a deleted slot leaves the others of its file bound to their pages",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"slot": (0, 1, 3), "file_offset": (0, 60 * PAGE)},
)
def beside_deleted(tools: Toolbox, slot: int, file_offset: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, 4 * GIB, SIZE, slots=4, file_offset=file_offset)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    gone = memory.slots[slot]
    others = [each for each in memory.slots if each != gone]
    vm.vm.set_user_memory_region2(gone.number, gone.gpa, 0, 0)
    # Unmapped, so that the guest's faults show what the kernel knows of the other slots.
    memory.set_shared(0, SIZE)
    memory.set_private(0, SIZE)
    for each in others:
        what = "pages of a slot beside a deleted one of its file"
        memory.expect_guest(each.gpa - memory.gpa, each.size, PRIVATE, what)
    for each in others:
        at = each.gpa - memory.gpa
        for offset in (at, at + each.size - PAGE):
            memory.punch(offset, PAGE)
            what = "a punched page of a slot beside a deleted one of its file"
            memory.expect_guest_zero(offset, PAGE, what)

        def bind(offset: int = each.file_offset) -> None:
            tools.memory(vm, 5 * GIB, PAGE, file=memory.file, file_offset=offset)

        check(errno_of(bind) != 0, "a page of a slot beside a deleted one can be bound again")


@case(
    "SL11",
    "a file's ranges side by side can be bound in any order",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"order": ("ascending", "descending", "middle last")},
)
def side_by_side(tools: Toolbox, order: str) -> None:
    vm = tools.private_vm()
    shared = tools.shared_side(4 * GIB, SIZE)
    file = tools.keep(vm.vm.create_guest_memfd(SIZE))
    first = {"ascending": (0, 1, 2, 3), "descending": (3, 2, 1, 0), "middle last": (0, 3, 1, 2)}
    quarter = SIZE // 4
    vm.vm.set_memory_attributes(4 * GIB, SIZE, ATTRIBUTE)
    for index in first[order]:
        at = index * quarter

        def bind(at: int = at) -> None:
            vm.vm.set_user_memory_region2(
                vm.new_slot(),
                4 * GIB + at,
                quarter,
                shared.address + at,
                lib.KVM_MEM_GUEST_MEMFD,
                file.fileno(),
                at,
            )

        expect_errno(bind, 0, "binding a file's range beside one that is bound")
        vm.cpu.fill(4 * GIB + at, quarter, PRIVATE)
    vm.cpu.expect_filled(4 * GIB, SIZE, PRIVATE, "slots side by side in their file")
