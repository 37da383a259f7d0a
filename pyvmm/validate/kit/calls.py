"""System calls as a case makes them: every argument as it is given, and the errno told."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from pyvmm.errors import KvmError
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib
from pyvmm.validate.kit.check import Missing, check, expect
from pyvmm.validate.kit.guest import Cpu, GuestVm
from pyvmm.validate.kit.toolbox import Toolbox

FILE: int = lib.KVM_MEM_GUEST_MEMFD
KEEP_SIZE, PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def vm_with_files(tools: Toolbox, vm_type: int) -> Vm:
    """A VM of a type that can have a guest_memfd."""
    try:
        vm = tools.keep(tools.kvm.create_vm(vm_type))
    except KvmError:
        raise Missing(f"VM type {vm_type}") from None
    if not vm.has(lib.KVM_CAP_GUEST_MEMFD):
        raise Missing(f"guest_memfd on a VM of type {vm_type}")
    return vm


@dataclass(slots=True)
class Call:
    """A KVM_SET_USER_MEMORY_REGION2 that works; rows change its fields."""

    slot: int
    gpa: int
    size: int
    address: int
    fd: int
    offset: int = 0
    flags: int = FILE

    def make(self, vm: GuestVm) -> None:
        request = ffi.new("struct kvm_userspace_memory_region2 *")
        mask = (1 << 64) - 1
        request.slot, request.flags = self.slot & 0xFFFFFFFF, self.flags
        request.guest_phys_addr, request.memory_size = self.gpa & mask, self.size & mask
        request.userspace_addr = self.address & mask
        request.guest_memfd_offset = self.offset & mask
        request.guest_memfd = self.fd & 0xFFFFFFFF
        vm.vm.ioctl("KVM_SET_USER_MEMORY_REGION2", request)

    def delete(self, vm: GuestVm) -> None:
        vm.vm.set_user_memory_region2(self.slot, self.gpa, 0, 0)


def dirty(vm: GuestVm, slot: int) -> int:
    """The dirty bitmap of a slot of at most 64 pages, which this clears."""
    bitmap = ffi.new("uint64_t[1]")
    log = ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap})
    vm.vm.ioctl("KVM_GET_DIRTY_LOG", log)
    return int(bitmap[0])


def fallocate(fd: int, mode: int, offset: int, size: int) -> int:
    """fallocate(2) with any mode: 0 or the errno."""
    failed = _libc.fallocate(
        ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(size)
    )
    return ctypes.get_errno() if failed else 0


def pre_fault(cpu: Cpu, gpa: int, size: int) -> tuple[int, int]:
    """Until nothing is left or it fails: (bytes left, errno of the last call)."""
    request = ffi.new("struct kvm_pre_fault_memory *", (gpa, size, 0))
    while request.size:
        before = int(request.size)
        try:
            cpu.vcpu.ioctl("KVM_PRE_FAULT_MEMORY", request)
        except KvmError as error:
            return int(request.size), error.errno or 0
        expect(int(request.gpa), gpa + size - int(request.size), "gpa beside the size that is left")
        check(request.size < before, "KVM_PRE_FAULT_MEMORY succeeded and did nothing")
    return 0, 0
