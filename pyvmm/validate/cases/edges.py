"""The edges of 32 and 64 bits, signed and unsigned, in the arguments of calls.

What must be refused is refused with the right errno and changes nothing; what is accepted does
what it says with all bits of its arguments. The right call is made too, so that no row passes
for another reason.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.calls import KEEP_SIZE, PUNCH_HOLE, Call, fallocate, vm_with_files
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import Missing, errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE
GPA = 4 * GIB
B31, B32, B63, B64 = 1 << 31, 1 << 32, 1 << 63, 1 << 64
EINVAL = errno.EINVAL


def hexadecimal(values: Iterable[int]) -> list[str]:
    return [f"{value:#x}" for value in values]


# The first page number that a slot cannot have so many of, and edges above it.
_SIZES = (B31 * PAGE, B32 * PAGE, (B32 + 16) * PAGE, 1 << 52, B63 - PAGE, B63, B64 - SIZE)


@case(
    "ED1",
    "a slot of 2^31 pages and more is EINVAL, with a file that is large enough",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"size": hexadecimal(_SIZES)},
)
def slot_size(tools: Toolbox, size: str) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, GPA, SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    file = tools.keep(vm.vm.create_guest_memfd(B63 - PAGE))
    call = Call(9, 6 * GIB, SIZE, PAGE, file.fileno(), B32 * PAGE)
    call.make(vm)
    call.delete(vm)
    call.size, call.offset = int(size, 16), 0
    expect_errno(lambda: call.make(vm), EINVAL, f"a slot of {size} bytes")
    plain = Call(9, 6 * GIB, int(size, 16), PAGE, 0, flags=0)
    expect_errno(lambda: plain.make(vm), EINVAL, f"a slot of {size} bytes without a file")
    memory.expect_guest(0, SIZE, PRIVATE, "memory in use after a slot that was refused")


# Offsets in a file of 2^63 - 4096 bytes, at which a slot of 16 pages can lie.
_OFFSETS = (B31 - PAGE, B32 - PAGE, B32, B31 * PAGE, B32 * PAGE - PAGE, B63 - PAGE - SIZE)
_BEHIND = (B63 - SIZE, B63 - PAGE, B63, B64 - PAGE, B64 - SIZE)


@case(
    "ED2",
    "a slot at an offset of its file beyond 32 bits has the pages from there",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"offset": hexadecimal(_OFFSETS)},
)
def file_offset(tools: Toolbox, offset: str) -> None:
    vm = tools.private_vm()
    at = int(offset, 16)
    memory = tools.memory(vm, GPA, SIZE, file_offset=at, file_size=B63 - PAGE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    # Pages that a truncated offset would take for those of the slot.
    for bits in (31, 32, 43, 44):
        low = at & (1 << bits) - 1
        if low + SIZE <= at:
            memory.file.punch(low, SIZE)
    memory.set_shared(0, SIZE)
    memory.set_private(0, SIZE)
    memory.expect_guest(0, SIZE, PRIVATE, "private pages after punches elsewhere in their file")
    memory.punch(PAGE, PAGE)
    memory.expect_guest_zero(PAGE, PAGE, "a punched page far in its file")
    for behind in _BEHIND:
        call = Call(9, 6 * GIB, SIZE, memory.shared.address, memory.file.fileno(), behind)
        expect_errno(lambda call=call: call.make(vm), EINVAL, f"offset {behind:#x}")  # type: ignore[misc]


@case(
    "ED3",
    "KVM_SET_MEMORY_ATTRIBUTES: a range that ends at 2^64 or wraps is EINVAL",
    needs=("private_memory",),
    backend="guest_memfd",
)
def attributes(tools: Toolbox) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, GPA, SIZE)
    memory.set_private(0, SIZE)
    memory.guest_fill(0, SIZE, PRIVATE)
    for gpa, size in (
        (B64 - PAGE, PAGE),
        (B64 - SIZE, SIZE),
        (B63, B63),
        (B63, B63 + PAGE),
        (GPA, B64 - GPA),
        (GPA, B64 - GPA + SIZE),
        (GPA, B64 - PAGE),
        (B64 - PAGE, B64 - PAGE),
    ):
        expect_errno(
            lambda gpa=gpa, size=size: vm.vm.set_memory_attributes(gpa, size, 0),  # type: ignore[misc]
            EINVAL,
            f"attributes of {size:#x} bytes from {gpa:#x}",
        )
    memory.expect_guest(0, SIZE, PRIVATE, "private pages after calls that were refused")


@case(
    "ED4",
    "KVM_SET_MEMORY_ATTRIBUTES reaches pages over each border of 31, 32 and 33 bits",
    needs=("private_memory",),
    backend="guest_memfd",
    vary={"border": (B31, B32, 2 * B32 - 4 * PAGE), "to": ("private", "shared")},
)
def attribute_borders(tools: Toolbox, border: int, to: str) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, border - 4 * PAGE, 8 * PAGE)
    memory.fill(0, 8 * PAGE, SHARED)
    memory.set_private(0, 8 * PAGE)
    memory.guest_fill(0, 8 * PAGE, PRIVATE)
    if to == "private":
        memory.set_shared(0, 8 * PAGE)
    # All but the first page and the last.
    vm.vm.set_memory_attributes(memory.gpa + PAGE, 6 * PAGE, ATTRIBUTE if to == "private" else 0)
    inside, outside = (PRIVATE, SHARED) if to == "private" else (SHARED, PRIVATE)
    for page in range(8):
        tag = inside if 1 <= page < 7 else outside
        memory.expect_guest(page * PAGE, PAGE, tag, f"pages around {border:#x}, some made {to}")


@case(
    "ED5",
    "KVM_CREATE_GUEST_MEMFD: sizes up to 2^63 - 4096 are what fstat says, others EINVAL",
    vary={"vm_type": (0, 1)},
)
def file_size(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    for size in (B31 - PAGE, B31, B32 - PAGE, B32, B32 + PAGE, B32 * PAGE, B63 - PAGE):
        with vm.create_guest_memfd(size) as file:
            expect(os.fstat(file.fileno()).st_size, size, "st_size")
    for size in (B63, B63 + PAGE, B64 - PAGE, B64 - SIZE, B63 - 1, B32 + 1):
        expect_errno(
            lambda size=size: vm.create_guest_memfd(size).close(),  # type: ignore[misc]
            EINVAL,
            f"a guest_memfd of {size:#x} bytes",
        )


@case(
    "ED6",
    "fallocate at the edges of 32, 63 and 64 bits",
    vary={"vm_type": (0, 1)},
)
def file_ranges(tools: Toolbox, vm_type: int) -> None:
    size = B32 + SIZE
    file = tools.keep(vm_with_files(tools, vm_type).create_guest_memfd(size))
    both = KEEP_SIZE | PUNCH_HOLE
    rows: tuple[tuple[int, int, int, int], ...] = (
        (0, KEEP_SIZE, B32 - PAGE, 2 * PAGE),
        (0, KEEP_SIZE, size - PAGE, PAGE),
        (EINVAL, KEEP_SIZE, size - PAGE, 2 * PAGE),
        (EINVAL, KEEP_SIZE, size, PAGE),
        (EINVAL, KEEP_SIZE, 2 * B32, PAGE),
        (EINVAL, KEEP_SIZE, B63 - 2 * PAGE, PAGE),
        (errno.EFBIG, KEEP_SIZE, B63 - PAGE, PAGE),
        (errno.EFBIG, KEEP_SIZE, PAGE, B63 - PAGE),
        (errno.EFBIG, both, B63 - PAGE, PAGE),
        (EINVAL, KEEP_SIZE, -PAGE, PAGE),
        (EINVAL, both, -PAGE, 2 * PAGE),
        (EINVAL, KEEP_SIZE, 0, -PAGE),
        (EINVAL, KEEP_SIZE, 0, -B63),
        (EINVAL, KEEP_SIZE, -B63, PAGE),
        (EINVAL, KEEP_SIZE, 0, 0),
        (0, both, size, B32),
        (0, both, B63 - 2 * PAGE, PAGE),
        (0, both, 0, B63 - PAGE),
    )
    for wanted, mode, offset, length in rows:
        seen = fallocate(file.fileno(), mode, offset, length)
        what = f"fallocate, mode {mode}, of {length:#x} bytes from {offset:#x}"
        expect(errno_name(seen), errno_name(wanted), what)


@case(
    "ED7",
    "KVM_PRE_FAULT_MEMORY: 64 bits of size and GPA, what is left to the byte",
    needs=("pre_fault",),
)
def pre_fault(tools: Toolbox) -> None:
    vm = tools.vm()
    shared = tools.shared_side(GPA, SIZE)
    vm.vm.set_user_memory_region(vm.new_slot(), GPA, SIZE, shared.address)
    vm.cpu.prepare(routines.HALT)
    request = ffi.new("struct kvm_pre_fault_memory *")

    def call(gpa: int, size: int) -> int:
        request.gpa, request.size, request.flags = gpa, size, 0
        return errno_of(lambda: vm.cpu.vcpu.ioctl("KVM_PRE_FAULT_MEMORY", request))

    for size in (B31, B32, B32 + PAGE, B32 * PAGE, 1 << 51):
        what = f"pre-faulting {size:#x} bytes, of which a slot has {SIZE:#x}"
        expect(errno_name(call(GPA, size)), "success", what)
        expect(int(request.size), size - SIZE, f"bytes left after {what}")
        expect(int(request.gpa), GPA + SIZE, f"GPA after {what}")
    for gpa, size in (
        (B64 - PAGE, PAGE),
        (B64 - SIZE, SIZE),
        (B63, B63),
        (GPA, B64 - GPA),
        (GPA, B64 - PAGE),
    ):
        what = f"pre-faulting {size:#x} bytes from {gpa:#x}"
        expect(errno_name(call(gpa, size)), "EINVAL", what)
        expect((int(request.gpa), int(request.size)), (gpa, size), f"what is left after {what}")


def _logged(tools: Toolbox) -> tuple[GuestVm, int]:
    """A VM with a slot of 200 pages whose pages 1, 64 and 199 are dirty, and the slot."""
    vm = tools.vm()
    shared = tools.shared_side(GPA, 200 * PAGE)
    slot = vm.new_slot()
    vm.vm.enable_cap(lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1)
    vm.vm.set_user_memory_region(slot, GPA, 200 * PAGE, shared.address, lib.KVM_MEM_LOG_DIRTY_PAGES)
    for page in (1, 64, 199):
        vm.cpu.write(GPA + page * PAGE, 1)
    return vm, slot


_DIRTY = {1, 64, 199}


@case(
    "ED8",
    "KVM_CLEAR_DIRTY_LOG: first page and number at the edges of 32 and 64 bits are EINVAL",
    needs=("guests",),
)
def clear_dirty_log(tools: Toolbox) -> None:
    vm, slot = _logged(tools)
    bits = ffi.new("char[]", b"\xff" * 4096)

    def clear(first: int, pages: int, slot: int = slot) -> None:
        request = ffi.new("struct kvm_clear_dirty_log *")
        request.slot, request.first_page, request.num_pages = slot, first, pages
        request.dirty_bitmap = bits
        vm.vm.ioctl("KVM_CLEAR_DIRTY_LOG", request)

    def dirty() -> set[int]:
        return set(vm.vm.get_dirty_log(slot, 200))

    expect(dirty(), _DIRTY, "dirty pages")
    for first, pages in (
        (1, 64),
        (63, 64),
        (0, 65),
        (0, 264),
        (256, 64),
        (128, 128),
        (0, B32 - 1),
        (0, B32 - 64),
        (0, B31),
        (64, B32 - 64),
        (192, B32 - 128),
        (B31, 64),
        (B32, 64),
        (B32 + 64, 64),
        (B63, 64),
        (B64 - 64, 64),
        (B64 - 64, 128),
        (B64 - 64, B32 - 64),
    ):
        expect_errno(
            lambda first=first, pages=pages: clear(first, pages),  # type: ignore[misc]
            EINVAL,
            f"KVM_CLEAR_DIRTY_LOG of {pages:#x} pages from {first:#x}",
        )
    for wrong in (slot | 2 << 16, slot | B31, slot | 0xFFFF0000, 0xFFFF, 32764):
        expect_errno(lambda wrong=wrong: clear(0, 64, wrong), EINVAL, f"slot {wrong:#x}")  # type: ignore[misc]
    expect(dirty(), _DIRTY, "dirty pages after calls that were refused")
    clear(64, 64)
    expect(dirty(), {1, 199}, "dirty pages after those from 64 to 127 were cleared")
    clear(192, 8)
    expect(dirty(), {1}, "dirty pages after the slot's last were cleared")
    vm.cpu.write(GPA + 199 * PAGE, 2)
    expect(dirty(), {1, 199}, "dirty pages after one was written again")


@case(
    "ED9",
    "KVM_CREATE_VCPU: a number beyond 31 bits is EINVAL, and takes no other's place",
)
def vcpu_numbers(tools: Toolbox) -> None:
    vm = tools.keep(tools.kvm.create_vm(0))
    most = vm.check_extension(lib.KVM_CAP_MAX_VCPU_ID)

    def create(number: int) -> Callable[[], None]:
        return lambda: os.close(vm.ioctl("KVM_CREATE_VCPU", number))

    for number in (most, most + 1, B31 - 1, B31, B32 - 1, B32, B32 + 1, B63, B63 + 1, B64 - 1):
        expect_errno(create(number), EINVAL, f"KVM_CREATE_VCPU with {number:#x}")
    for number in (0, 1, most - 1):
        expect_errno(create(number), 0, f"KVM_CREATE_VCPU with {number:#x}")
        expect_errno(create(number), errno.EEXIST, f"KVM_CREATE_VCPU with {number:#x} again")


@case(
    "ED10",
    "KVM_ENABLE_CAP: arguments and numbers beyond 32 bits are EINVAL, and enable nothing",
    vary={"capability": ("exit_hypercall", "manual_dirty_log_protect2", "halt_poll", "unknown")},
)
def enable_cap(tools: Toolbox, capability: str) -> None:
    vm = tools.keep(tools.kvm.create_vm(0))
    if capability == "unknown":
        for number in (B31 - 1, B31, B32 - 1, B31 | lib.KVM_CAP_EXIT_HYPERCALL):
            expect_errno(
                lambda number=number: vm.enable_cap(number, 0),  # type: ignore[misc]
                EINVAL,
                f"KVM_ENABLE_CAP of capability {number:#x}",
            )
        return
    number, right = {
        "exit_hypercall": (lib.KVM_CAP_EXIT_HYPERCALL, 1 << lib.KVM_HC_MAP_GPA_RANGE),
        "manual_dirty_log_protect2": (lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1),
        "halt_poll": (lib.KVM_CAP_HALT_POLL, 1000),
    }[capability]
    if not vm.check_extension(number):
        raise Missing(f"KVM_CAP_{capability.upper()}")
    for bit in range(32, 64):
        expect_errno(
            lambda bit=bit: vm.enable_cap(number, right | 1 << bit),  # type: ignore[misc]
            EINVAL,
            f"KVM_CAP_{capability.upper()} with bit {bit} too",
        )
    expect_errno(lambda: vm.enable_cap(number, right), 0, f"KVM_CAP_{capability.upper()}")
