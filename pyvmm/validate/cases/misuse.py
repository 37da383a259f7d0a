"""What the kernel must refuse, and with which errno.

Each row is one change of a call that works; the call is made unchanged first and last, so
that no row passes for another reason, and memory in use must be untouched in the end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.kvm.memfd import Memfd
from pyvmm.native import lib
from pyvmm.validate.kit.calls import FILE, Call, dirty
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import Missing, errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.known import BOUND_RANGE_IS_EINVAL, Known
from pyvmm.validate.kit.memory import SharedSide
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 16 * PAGE
GPA = 4 * GIB
TAG = 0x33 << 48
TOP = 1 << 63
EINVAL, EEXIST, EBADF = errno.EINVAL, errno.EEXIST, errno.EBADF


@dataclass(frozen=True, slots=True)
class Scene:
    """What a row may use: a VM, a file that is free, one in use, and the call that works."""

    tools: Toolbox
    vm: GuestVm
    free: GuestMemfd
    used: GuestMemfd
    shared: SharedSide


def _null_fd(scene: Scene) -> int:
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    scene.tools.on_close(lambda: os.close(fd))
    return fd


def _memfd(scene: Scene) -> int:
    return scene.tools.keep(Memfd("not a guest_memfd", SIZE)).fileno()


def _other_vm(scene: Scene) -> int:
    vm = scene.tools.keep(scene.tools.kvm.create_vm(scene.vm.vm.vm_type))
    return scene.tools.keep(vm.create_guest_memfd(SIZE)).fileno()


def _slot_1(scene: Scene, **change: int) -> dict[str, int]:
    """The slot that is there already, as it was made but for ``change``."""
    made = {"slot": 1, "gpa": GPA, "address": scene.shared.address, "fd": scene.used.fileno()}
    return {**made, **change}


def _slot_2(scene: Scene) -> dict[str, int]:
    """A slot that was made without a file, and shall have one."""
    made = {"slot": 2, "gpa": GPA + 8 * SIZE, "address": scene.shared.address}
    Call(**made, size=SIZE, fd=-1, flags=0).make(scene.vm)
    return made


# What is wrong: how the call changes, and the errnos that are right.
Change = Callable[[Scene], dict[str, int]]
ROWS: dict[str, tuple[int, Change]] = {
    "fd -1": (EBADF, lambda scene: {"fd": -1}),
    "fd that is closed": (EBADF, lambda scene: {"fd": 1_000_000}),
    "fd of /dev/null": (EINVAL, lambda scene: {"fd": _null_fd(scene)}),
    "fd of a memfd": (EINVAL, lambda scene: {"fd": _memfd(scene)}),
    "fd of /dev/kvm": (EINVAL, lambda scene: {"fd": scene.tools.kvm.fileno()}),
    "fd of the VM": (EINVAL, lambda scene: {"fd": scene.vm.vm.fileno()}),
    "fd of a vCPU": (EINVAL, lambda scene: {"fd": scene.vm.cpu.vcpu.fileno()}),
    "fd of another VM's file": (EINVAL, lambda scene: {"fd": _other_vm(scene)}),
    "offset 1": (EINVAL, lambda scene: {"offset": 1}),
    "offset 512": (EINVAL, lambda scene: {"offset": 512}),
    "offset unaligned in the file": (EINVAL, lambda scene: {"offset": PAGE - 1, "size": PAGE}),
    "offset + size one page past the end": (EINVAL, lambda scene: {"offset": PAGE}),
    "size one page past the end": (EINVAL, lambda scene: {"size": SIZE + PAGE}),
    "offset at the end": (EINVAL, lambda scene: {"offset": SIZE, "size": PAGE}),
    "offset far past the end": (EINVAL, lambda scene: {"offset": 1 << 40}),
    "offset past 4 GiB": (EINVAL, lambda scene: {"offset": 1 << 32, "size": PAGE}),
    "offset negative": (EINVAL, lambda scene: {"offset": -PAGE}),
    "offset + size wrap to 0": (EINVAL, lambda scene: {"offset": -SIZE}),
    "offset 1 << 63": (EINVAL, lambda scene: {"offset": TOP}),
    "gpa unaligned": (EINVAL, lambda scene: {"gpa": GPA + 1}),
    "gpa half a page off": (EINVAL, lambda scene: {"gpa": GPA + PAGE // 2}),
    "gpa wraps": (EINVAL, lambda scene: {"gpa": -PAGE}),
    "gpa past 52 bits": (EINVAL, lambda scene: {"gpa": 1 << 52}),
    "gpa near the end of 64 bits": (EINVAL, lambda scene: {"gpa": -2 * SIZE}),
    "size unaligned": (EINVAL, lambda scene: {"size": PAGE + 1}),
    "size below a page": (EINVAL, lambda scene: {"size": 512}),
    "size negative": (EINVAL, lambda scene: {"size": -PAGE}),
    "address unaligned": (EINVAL, lambda scene: {"address": scene.shared.address + 8}),
    "address in the kernel's half": (EINVAL, lambda scene: {"address": TOP}),
    "address range reaches the kernel's half": (
        EINVAL,
        lambda scene: {"address": (1 << 57) - PAGE},
    ),
    "slot 32764": (EINVAL, lambda scene: {"slot": 32764}),
    "slot 32767": (EINVAL, lambda scene: {"slot": 32767}),
    "slot 65535": (EINVAL, lambda scene: {"slot": 0xFFFF}),
    "address space 2": (EINVAL, lambda scene: {"slot": 2 << 16 | 5}),
    "slot all ones": (EINVAL, lambda scene: {"slot": -1}),
    "flags LOG_DIRTY_PAGES too": (
        EINVAL,
        lambda scene: {"flags": FILE | lib.KVM_MEM_LOG_DIRTY_PAGES},
    ),
    "flags READONLY too": (EINVAL, lambda scene: {"flags": FILE | lib.KVM_MEM_READONLY}),
    "flags bit 3 too": (EINVAL, lambda scene: {"flags": FILE | 8}),
    "flags bit 31 too": (EINVAL, lambda scene: {"flags": FILE | 1 << 31}),
    "GPA of another slot": (EEXIST, lambda scene: {"gpa": GPA}),
    "GPA over another slot's end": (EEXIST, lambda scene: {"gpa": GPA + SIZE - PAGE}),
    "GPA over another slot's start": (EEXIST, lambda scene: {"gpa": GPA - SIZE + PAGE}),
    "GPA around another slot": (EEXIST, lambda scene: {"gpa": GPA + PAGE, "size": PAGE}),
    "file range that is bound": (EEXIST, lambda scene: {"fd": scene.used.fileno()}),
    "last page of a file range that is bound": (
        EEXIST,
        lambda scene: {"fd": scene.used.fileno(), "offset": SIZE - PAGE, "size": PAGE},
    ),
    "first page of a file range that is bound": (
        EEXIST,
        lambda scene: {"fd": scene.used.fileno(), "size": PAGE},
    ),
    "file range over the end of one that is bound": (
        EEXIST,
        lambda scene: {"fd": scene.used.fileno(), "offset": SIZE - PAGE, "size": 2 * PAGE},
    ),
    "another GPA for a slot that is there": (EINVAL, lambda scene: _slot_1(scene, gpa=6 * GIB)),
    "another size for a slot that is there": (EINVAL, lambda scene: _slot_1(scene, size=PAGE)),
    "another file for a slot that is there": (
        EINVAL,
        lambda scene: _slot_1(scene, fd=scene.free.fileno()),
    ),
    "another offset for a slot that is there": (EINVAL, lambda scene: _slot_1(scene, offset=SIZE)),
    "no file for a slot that has one": (EINVAL, lambda scene: _slot_1(scene, flags=0)),
    "a file for a slot that has none": (EINVAL, lambda scene: _slot_2(scene)),
    "a slot that is there made again as it is": (EINVAL, lambda scene: _slot_1(scene)),
    "logging for a slot with a file": (
        EINVAL,
        lambda scene: _slot_1(scene, flags=lib.KVM_MEM_LOG_DIRTY_PAGES),
    ),
    "size 0 for a slot that is not there": (EINVAL, lambda scene: {"size": 0}),
}


def set_scene(tools: Toolbox) -> tuple[Scene, Call]:
    vm = tools.private_vm() if tools.has_private_vm else tools.vm()
    shared = tools.shared_side(GPA, 4 * SIZE)
    # In the file of 2 * SIZE only the first half is bound.
    used = tools.keep(vm.vm.create_guest_memfd(2 * SIZE))
    free = tools.keep(vm.vm.create_guest_memfd(SIZE))
    Call(1, GPA, SIZE, shared.address, used.fileno()).make(vm)
    call = Call(5, GPA + 4 * SIZE, SIZE, shared.address + SIZE, free.fileno())
    return Scene(tools, vm, free, used, shared), call


_NEEDS = ("guests", "memory2", "bindable_guest_memfd")
_OF_THE_FILE = ("fd", "offset", "size one")


@case(
    "MR5",
    "a slot with a wrong descriptor, or an offset that its file does not have",
    needs=_NEEDS,
    combinations=[{"wrong": wrong} for wrong in ROWS if wrong.startswith(_OF_THE_FILE)],
)
@case(
    "MU1",
    "a slot with a guest_memfd that is wrong otherwise, or in use",
    needs=_NEEDS,
    combinations=[{"wrong": wrong} for wrong in ROWS if not wrong.startswith(_OF_THE_FILE)],
)
def region2(tools: Toolbox, wrong: str) -> None:
    scene, call = set_scene(tools)
    expected, change = ROWS[wrong]
    call.make(scene.vm)
    call.delete(scene.vm)
    if tools.has_private_vm:
        scene.vm.vm.set_memory_attributes(GPA, SIZE, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    scene.vm.cpu.fill(GPA, SIZE, TAG)
    changed = Call(call.slot, call.gpa, call.size, call.address, call.fd, call.offset, call.flags)
    for name, value in change(scene).items():
        setattr(changed, name, value)
    is_bound = "range that is bound" in wrong or "of one that is bound" in wrong
    seen = errno_of(lambda: changed.make(scene.vm))
    known = is_bound and seen == EINVAL
    if not known:
        what = f"KVM_SET_USER_MEMORY_REGION2 with {wrong}"
        expect(errno_name(seen), errno_name(expected), f"errno of {what}")
    scene.vm.cpu.expect_filled(GPA, SIZE, TAG, "memory in use after a call that was refused")
    expect_errno(lambda: call.make(scene.vm), 0, f"the right call, after one with {wrong}")
    call.delete(scene.vm)
    if known:
        raise Known(
            BOUND_RANGE_IS_EINVAL, "a range of a guest_memfd that is bound already is EINVAL"
        )


@case(
    "MU2",
    "the slot of the old ioctl: what is unaligned, wraps or overlaps",
    needs=("guests",),
    vary={
        "wrong": (
            "gpa unaligned",
            "size unaligned",
            "address unaligned",
            "gpa wraps",
            "overlap",
            "slot number",
            "another size",
            "another address",
            "deleted twice",
            "kernel address",
        )
    },
)
def region(tools: Toolbox, wrong: str) -> None:
    vm = tools.vm()
    shared = tools.shared_side(GPA, 2 * SIZE)
    address = shared.address
    good: dict[str, Any] = {"slot": 5, "gpa": GPA + SIZE, "size": SIZE, "address": address}
    vm.vm.set_user_memory_region(1, GPA, SIZE, address)
    vm.vm.set_user_memory_region(**good)
    vm.vm.set_user_memory_region(**{**good, "size": 0})
    rows: dict[str, tuple[int, list[dict[str, Any]]]] = {
        "gpa unaligned": (EINVAL, [{"gpa": GPA + SIZE + at} for at in (1, 8, 2048, PAGE - 1)]),
        "size unaligned": (EINVAL, [{"size": size} for size in (1, 512, PAGE - 1, PAGE + 1)]),
        "address unaligned": (EINVAL, [{"address": address + at} for at in (1, 8, PAGE - 1)]),
        "gpa wraps": (EINVAL, [{"gpa": (1 << 64) - PAGE}, {"gpa": (1 << 64) - SIZE + PAGE}]),
        "overlap": (EEXIST, [{"gpa": GPA}, {"gpa": GPA + SIZE - PAGE}, {"gpa": GPA - PAGE}]),
        "slot number": (EINVAL, [{"slot": 32764}, {"slot": 0xFFFF}, {"slot": 2 << 16 | 1}]),
        "another size": (EINVAL, [{"slot": 1, "gpa": GPA, "size": PAGE}]),
        "another address": (EINVAL, [{"slot": 1, "gpa": GPA, "address": address + PAGE}]),
        "deleted twice": (EINVAL, [{"size": 0}, {"slot": 77, "size": 0}]),
        "kernel address": (EINVAL, [{"address": TOP}, {"address": (1 << 64) - PAGE}]),
    }
    vm.cpu.fill(GPA, SIZE, TAG)
    expected, changes = rows[wrong]
    for change in changes:
        expect_errno(
            lambda change=change: vm.vm.set_user_memory_region(**{**good, **change}),  # type: ignore[misc]
            expected,
            f"KVM_SET_USER_MEMORY_REGION with {wrong}",
        )
    vm.cpu.expect_filled(GPA, SIZE, TAG, "memory in use after calls that were refused")
    vm.vm.set_user_memory_region(**good)


@case(
    "MU3",
    "VM types that /dev/kvm does not announce are EINVAL, those it announces work",
)
def vm_types(tools: Toolbox) -> None:
    announced = tools.kvm.check_extension(lib.KVM_CAP_VM_TYPES) | 1
    for number in range(8):
        if number > 1 and announced >> number & 1:
            continue  # SEV and TDX need more than a call
        expect_errno(
            lambda number=number: tools.kvm.create_vm(number).close(),  # type: ignore[misc]
            0 if announced >> number & 1 else EINVAL,
            f"KVM_CREATE_VM of type {number}",
        )
    for number in (31, 32, 1 << 31, 1 << 32, (1 << 63)):
        if number >= 32 or not announced >> number & 1:
            expect_errno(
                lambda number=number: tools.kvm.create_vm(number).close(),  # type: ignore[misc]
                EINVAL,
                f"KVM_CREATE_VM of type {number:#x}",
            )


@case(
    "MU4",
    "KVM_GET_DIRTY_LOG of a slot with a guest_memfd is ENOENT",
    needs=("guests", "memory2", "bindable_guest_memfd"),
)
def dirty_log(tools: Toolbox) -> None:

    scene, _ = set_scene(tools)
    plain = 9
    scene.vm.vm.set_user_memory_region(
        plain, 6 * GIB, SIZE, scene.shared.address, lib.KVM_MEM_LOG_DIRTY_PAGES
    )
    dirty(scene.vm, plain)
    expect_errno(lambda: dirty(scene.vm, 1), errno.ENOENT, "KVM_GET_DIRTY_LOG")


@case(
    "MU5",
    "a guest_memfd cannot be bound through the old ioctl",
    needs=("guests", "memory2", "guest_memfd"),
)
def old_ioctl(tools: Toolbox) -> None:

    if not missing("memory_error"):
        raise Missing("an old ioctl without KVM_MEM_PRIVATE: this is the RFC's kernel")
    vm = tools.private_vm() if tools.has_private_vm else tools.vm()
    shared = tools.shared_side(GPA, SIZE)
    vm.vm.set_user_memory_region(5, GPA, SIZE, shared.address)
    vm.vm.set_user_memory_region(5, GPA, 0, shared.address)
    for flags in (FILE, FILE | lib.KVM_MEM_LOG_DIRTY_PAGES):
        expect_errno(
            lambda flags=flags: vm.vm.set_user_memory_region(  # type: ignore[misc]
                5, GPA, SIZE, shared.address, flags
            ),
            EINVAL,
            "KVM_SET_USER_MEMORY_REGION with KVM_MEM_GUEST_MEMFD",
        )


@case(
    "MU6",
    "a VM without private memory has no slot with a guest_memfd that cannot be mapped",
    needs=("guests", "memory2"),
)
def default_vm(tools: Toolbox) -> None:

    vm = tools.vm()
    if vm.vm.has(lib.KVM_CAP_GUEST_MEMFD):
        raise Missing("a VM without guest_memfd: here default VMs have it (Linux 6.18)")
    shared = tools.shared_side(GPA, SIZE)
    vm.vm.set_user_memory_region2(5, GPA, SIZE, shared.address)
    vm.vm.set_user_memory_region2(5, GPA, 0, shared.address)
    for fd in (-1, 0, vm.vm.fileno()):
        expect_errno(
            lambda fd=fd: vm.vm.set_user_memory_region2(  # type: ignore[misc]
                5, GPA, SIZE, shared.address, FILE, fd
            ),
            EINVAL,
            "a guest_memfd slot on a VM without private memory",
        )


@case(
    "MU7",
    "an address that cannot be read is EFAULT, an unknown ioctl ENOTTY",
)
def bad_pointers(tools: Toolbox) -> None:
    vm = tools.keep(tools.kvm.create_vm(0))
    names = ["KVM_SET_USER_MEMORY_REGION"]
    if vm.has(lib.KVM_CAP_USER_MEMORY2):
        names.append("KVM_SET_USER_MEMORY_REGION2")
    if vm.has(lib.KVM_CAP_GUEST_MEMFD):
        names.append("KVM_CREATE_GUEST_MEMFD")
    for name in names:
        for address in (8, TOP, (1 << 64) - 8):
            expect_errno(
                lambda name=name, address=address: vm.ioctl(  # type: ignore[misc]
                    IOCTLS[name]._replace(type=None), address
                ),
                errno.EFAULT,
                f"{name} at address {address:#x}",
            )
    expect_errno(lambda: vm.ioctl("KVM_RUN", 0), errno.ENOTTY, "KVM_RUN on a VM's descriptor")
