"""Rules of memslots, page states, guest_memfds, dirty logs and pre-faulting."""

from __future__ import annotations

import errno
import os
from typing import Any

from pyvmm.host import address_bits
from pyvmm.kvm.advice.state import (
    FILES,
    Slot,
    VmState,
    file_of,
    is_guest_memfd,
    kind_of,
    number_of_slots,
)
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.native import ffi, lib

_DIRTY, _READONLY = lib.KVM_MEM_LOG_DIRTY_PAGES, lib.KVM_MEM_READONLY
_GUEST_MEMFD = lib.KVM_MEM_GUEST_MEMFD
_END = 1 << 64
_USER_END = 1 << 47  # of a process without five-level page tables, which one must ask for
_STATES_ARE_THE_FILES = (
    "on this kernel a page's state is its guest_memfd's: set_memory_attributes2()"
)
_MOST_PAGES = (1 << 31) - 1  # KVM_MEM_MAX_NR_PAGES, which no header for users has


def _span(start: int, size: int) -> str:
    return f"{start:#x}-{start + size - 1:#x}"


def set_user_memory_region(state: VmState, request: Any, number: int) -> str:
    if ffi.typeof(request) is ffi.typeof("struct kvm_userspace_memory_region_ext *"):
        plain = Slot(*_plain(request.region))
        return _overlap(state, request.region.slot, plain) if number == errno.EEXIST else ""
    if number == errno.EINVAL and request.flags & _GUEST_MEMFD:
        return "a private file is bound by KVM_SET_USER_MEMORY_REGION2, not by this ioctl"
    return _set_slot(state, request, number, Slot(*_plain(request)))


def set_user_memory_region2(state: VmState, request: Any, number: int) -> str:
    if number == errno.ENOTTY:
        return "this kernel does not have it (Linux 6.8)"
    fd = int(ffi.cast("int32_t", request.guest_memfd))
    has_file = request.flags & _GUEST_MEMFD
    offset = request.guest_memfd_offset if has_file else 0
    return _set_slot(state, request, number, Slot(*_plain(request), offset), fd)


def _plain(request: Any) -> tuple[int, int, int, int]:
    return (
        request.guest_phys_addr,
        request.memory_size,
        request.userspace_addr,
        request.flags,
    )


def _set_slot(state: VmState, request: Any, number: int, new: Slot, fd: int = -1) -> str:
    slot = request.slot
    if number == errno.EBADF and new.flags & _GUEST_MEMFD and file_of(fd) is None:
        return f"guest_memfd descriptor {fd} is not open"
    if number == errno.EEXIST:
        return _overlap(state, slot, new) or _bound(state, new, fd) or _unknown_overlap(new)
    if number != errno.EINVAL:
        return ""
    return (
        _flags(state, new.flags)
        or _addresses(new)
        or _number(state, slot, new)
        or _change(state, slot, new)
        or (_file(state, new, fd) if new.flags & _GUEST_MEMFD else "")
        or _beyond(new)
    )


def _flags(state: VmState, flags: int) -> str:
    if unknown := flags & ~(_DIRTY | _READONLY | _GUEST_MEMFD):
        return f"this KVM does not know flags {unknown:#x}"
    if flags & _GUEST_MEMFD:
        if not state.ask(lib.KVM_CAP_GUEST_MEMFD):
            return f"VMs of type {state.vm_type} have no guest_memfd here (KVM_CAP_GUEST_MEMFD)"
        for name, bit in (("LOG_DIRTY_PAGES", _DIRTY), ("READONLY", _READONLY)):
            if flags & bit:
                return f"KVM_MEM_{name} cannot be had together with KVM_MEM_GUEST_MEMFD"
    if flags & _READONLY and not state.ask(lib.KVM_CAP_READONLY_MEM):
        return "this VM has no read-only slots (KVM_CAP_READONLY_MEM)"
    return ""


def _addresses(new: Slot) -> str:
    for name, value in (
        ("memory_size", new.size),
        ("guest_phys_addr", new.gpa),
        ("userspace_addr", new.address),
    ):
        if value % PAGE_SIZE:
            return f"{name} {value:#x} is not page aligned (a multiple of {PAGE_SIZE})"
    if new.address + new.size > _USER_END:
        return f"userspace_addr {new.address:#x} and what follows is no user memory"
    if new.flags & _GUEST_MEMFD:
        if new.offset % PAGE_SIZE:
            return f"guest_memfd_offset {new.offset:#x} is not page aligned"
        if new.offset + new.size >= _END:
            return f"guest_memfd_offset {new.offset:#x} and the size wrap past 64 bits"
    return ""


def _number(state: VmState, slot: int, new: Slot) -> str:
    spaces = max(1, state.ask(lib.KVM_CAP_MULTI_ADDRESS_SPACE))
    if slot >> 16 >= spaces:
        return f"slot {slot:#x} is in address space {slot >> 16}, and this VM has {spaces}"
    most = number_of_slots(state)
    if slot & 0xFFFF >= most > 0:
        return f"slots are numbered below {most} (KVM_CAP_NR_MEMSLOTS)"
    if new.gpa + new.size >= _END:
        return f"the range from GPA {new.gpa:#x} wraps past 64 bits"
    if new.size // PAGE_SIZE > _MOST_PAGES:
        return f"a slot has at most {_MOST_PAGES:#x} pages"
    return ""


def _change(state: VmState, slot: int, new: Slot) -> str:
    old = state.slots.get(slot)
    if old is None:
        # Whoever made one, it would have been deleted.
        return "" if new.size else f"there is no slot {slot} to delete"
    if not new.size:
        return ""
    if (new.flags | old.flags) & _GUEST_MEMFD:
        return f"slot {slot} exists: one with a guest_memfd cannot be changed, only deleted"
    changed = [
        name
        for name, was, wanted in (
            ("size", old.size, new.size),
            ("userspace_addr", old.address, new.address),
            ("KVM_MEM_READONLY", old.flags & _READONLY, new.flags & _READONLY),
        )
        if was != wanted
    ]
    if not changed:
        return ""
    what = " and its ".join(changed)
    return (
        f"slot {slot} exists, {old.size:#x} bytes at {old.address:#x}, and its {what} "
        "cannot change: delete it first"
    )


def _beyond(new: Slot) -> str:
    bits = address_bits() or 52
    if new.gpa + new.size > 1 << bits:
        return f"GPA {_span(new.gpa, new.size)} is beyond the {bits} bits of this CPU's addresses"
    return ""


def _overlap(state: VmState, slot: int, new: Slot) -> str:
    for other, taken in state.slots.items():
        is_other = other != slot and other >> 16 == slot >> 16
        if is_other and new.gpa < taken.gpa + taken.size and taken.gpa < new.gpa + new.size:
            return (
                f"slot {slot}: GPA {_span(new.gpa, new.size)} overlaps slot {other} "
                f"at {_span(taken.gpa, taken.size)}"
            )
    return ""


def _unknown_overlap(new: Slot) -> str:
    if new.flags & _GUEST_MEMFD:  # of two rules, neither can be told
        return ""
    return f"GPA {_span(new.gpa, new.size)} overlaps a memslot that this Vm's methods did not make"


def _bound(state: VmState, new: Slot, fd: int) -> str:
    if not new.flags & _GUEST_MEMFD:
        return ""
    for other, taken in state.slots.items():
        if taken.file is None or taken.file != file_of(fd):
            continue
        if new.offset < taken.offset + taken.size and taken.offset < new.offset + new.size:
            return (
                f"file range [{new.offset:#x}, {new.offset + new.size:#x}) "
                f"is already bound by slot {other}"
            )
    return ""


def _file(state: VmState, new: Slot, fd: int) -> str:
    if file_of(fd) is None:
        return ""
    if not is_guest_memfd(fd):
        return f"descriptor {fd} ({kind_of(fd)}) is no guest_memfd"
    for file, owner in list(FILES.items()):
        if owner is not state and not file.closed and file_of(fd) == file_of(file.fileno()):
            return f"guest_memfd {fd} belongs to another VM"
    size = os.fstat(fd).st_size
    if new.offset + new.size > size:
        return (
            f"file range [{new.offset:#x}, {new.offset + new.size:#x}) reaches past "
            f"the guest_memfd's end at {size:#x}"
        )
    return _bound(state, new, fd)


# ---- page states and files ----


def set_memory_attributes(state: VmState, request: Any, number: int) -> str:
    has_in_place = state.ask(lib.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES)
    if has_in_place and number == errno.ENOTTY:  # without CONFIG_KVM_VM_MEMORY_ATTRIBUTES
        return _STATES_ARE_THE_FILES
    if number == errno.ENOTTY:
        return "this kernel has no memory attributes (CONFIG_KVM_SW_PROTECTED_VM or newer hardware)"
    if number != errno.EINVAL:
        return ""
    if request.flags:
        return f"flags {request.flags:#x} must be 0"
    known = state.ask(lib.KVM_CAP_MEMORY_ATTRIBUTES)
    if unknown := request.attributes & ~known:
        if has_in_place:
            return _STATES_ARE_THE_FILES
        if unknown == lib.KVM_MEMORY_ATTRIBUTE_PRIVATE:
            return (
                f"private memory needs a VM of type {lib.KVM_X86_SW_PROTECTED_VM} "
                f"(VmType.SW_PROTECTED), this one is of type {state.vm_type}"
            )
        return f"this VM does not know attributes {unknown:#x}; it has {known:#x}"
    if not request.size:
        return "size is 0"
    if request.address + request.size >= _END:
        return f"the range from GPA {request.address:#x} wraps past 64 bits"
    return _aligned(("GPA", request.address), ("size", request.size))


def set_memory_attributes2(file_size: int, request: Any, number: int) -> str:
    if number == errno.ENOTTY:
        return (
            "this kernel's page states belong to the VM: it is older than in-place conversion, or "
            "kvm.gmem_in_place_conversion is off"
        )
    if number == errno.EAGAIN:
        return f"somebody uses the page at offset {request.error_offset:#x} (I/O, a pipe, a pin)"
    if number != errno.EINVAL:
        return ""
    if request.flags or any(request.reserved):
        return "flags and reserved must be 0"
    if unknown := request.attributes & ~lib.KVM_MEMORY_ATTRIBUTE_PRIVATE:
        return f"attributes {unknown:#x} are not known"
    if not request.size:
        return "size is 0"
    if aligned := _aligned(("offset", request.offset), ("size", request.size)):
        return aligned
    if request.offset + request.size > file_size:
        return f"it reaches past the end of the file at {file_size:#x}"
    return f"private memory needs a VM of type {lib.KVM_X86_SW_PROTECTED_VM}"


def _aligned(*values: tuple[str, int]) -> str:
    for name, value in values:
        if value % PAGE_SIZE:
            return f"{name} {value:#x} is not page aligned (a multiple of {PAGE_SIZE})"
    return ""


def create_guest_memfd(state: VmState, request: Any, number: int) -> str:
    if number == errno.ENOTTY:
        return "this kernel has no guest_memfd (Linux 6.8, CONFIG_KVM_SW_PROTECTED_VM)"
    if number != errno.EINVAL:
        return ""
    known = state.ask(lib.KVM_CAP_GUEST_MEMFD_FLAGS)
    if unknown := request.flags & ~known:
        return f"flags {unknown:#x} are not known here (KVM_CAP_GUEST_MEMFD_FLAGS: {known:#x})"
    if not request.size:
        return "size is 0"
    if request.size >= 1 << 63:
        return f"size {request.size:#x} is negative to the kernel"
    return _aligned(("size", request.size))


def pre_fault_memory(state: Any, request: Any, number: int) -> str:
    if number == errno.ENOENT:
        return f"there is no memslot at GPA {request.gpa:#x}"
    if number == errno.EFAULT:
        return f"GPA {request.gpa:#x} is private, and its slot has no guest_memfd"
    if number != errno.EINVAL:
        return ""
    if request.flags:
        return f"flags {request.flags:#x} must be 0"
    if advice := _aligned(("GPA", request.gpa), ("size", request.size)):
        return advice
    if not request.size:
        return "size is 0"
    if request.gpa + request.size >= _END:
        return f"the range from GPA {request.gpa:#x} wraps past 64 bits"
    return ""


# ---- dirty logs and what VMX wants ----


def get_dirty_log(state: VmState, request: Any, number: int) -> str:
    if number == errno.ENXIO:
        return "this VM has dirty rings instead"
    if number == errno.EINVAL:
        return _number(state, request.slot, Slot(0, 0, 0, 0))
    if number != errno.ENOENT:
        return ""
    slot = state.slots.get(request.slot)
    if slot is None:
        return ""
    if slot.flags & _GUEST_MEMFD:
        return f"slot {request.slot} has a guest_memfd, and such slots have no dirty log"
    if not slot.flags & _DIRTY:
        return f"slot {request.slot} was made without KVM_MEM_LOG_DIRTY_PAGES"
    return ""


def clear_dirty_log(state: VmState, request: Any, number: int) -> str:
    if number == errno.EINVAL and not (advice := _number(state, request.slot, Slot(0, 0, 0, 0))):
        if request.first_page % 64:
            return f"first page {request.first_page} is no multiple of 64"
        if (slot := state.slots.get(request.slot)) is None:
            return ""
        pages, end = slot.size // PAGE_SIZE, request.first_page + request.num_pages
        if end > pages:
            return f"pages {request.first_page} to {end - 1} reach past the slot's {pages}"
        if request.num_pages % 64 and end < pages:
            return f"{request.num_pages} pages, no multiple of 64, do not reach the slot's end"
        return ""
    return advice if number == errno.EINVAL else get_dirty_log(state, request, number)


def set_tss_addr(state: VmState, gpa: Any, number: int) -> str:
    if number == errno.EINVAL and gpa > (1 << 32) - 3 * PAGE_SIZE:
        return f"three pages from GPA {gpa:#x} do not end below 4 GiB"
    return ""
