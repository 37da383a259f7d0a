"""A vCPU: the ioctls on the descriptor that KVM_CREATE_VCPU returns."""

from __future__ import annotations

import mmap
from typing import Any

from pyvmm.errors import ClosedError, KvmError
from pyvmm.fd import KvmFd
from pyvmm.mapping import PROT_READ_WRITE
from pyvmm.native import ffi, lib


class Vcpu(KvmFd):
    """A virtual CPU. Made by :meth:`pyvmm.vm.Vm.create_vcpu`.

    Synchronization: KVM's vCPU ioctls belong to the thread that runs the vCPU.
    """

    def __init__(self, fd: int, index: int, mmap_size: int) -> None:
        super().__init__(fd, f"vCPU {index}")
        self.index = index
        self.mmap_size = mmap_size
        error = ffi.new("int *")
        address = lib.host_map(mmap_size, PROT_READ_WRITE, mmap.MAP_SHARED, fd, 0, error)
        if error[0]:
            self.close()
            raise KvmError("mmap", error[0], f"kvm_run of vCPU {index}")
        # Whoever still holds the pointer after close() keeps the memory mapped.
        self._run = ffi.gc(
            ffi.cast("struct kvm_run *", address),
            lambda pointer: lib.host_unmap(pointer, mmap_size),
        )

    @property
    def kvm_run(self) -> Any:
        """The ``struct kvm_run *`` that is shared with the kernel, to be read in place."""
        if self._run is None:
            raise ClosedError(self.name)
        return self._run

    def close(self) -> None:
        self._run = None
        super().close()

    def run(self) -> None:
        """KVM_RUN, once. Raises :class:`KvmError` also for EINTR; see kvm_run for the exit.

        It cannot be stopped from Python: what may spin belongs into a
        :class:`pyvmm.vcpu_loop.VcpuLoop`, which has a deadline.
        """
        self.ioctl("KVM_RUN")

    def get_regs(self) -> Any:
        """KVM_GET_REGS: a ``struct kvm_regs *``."""
        regs = ffi.new("struct kvm_regs *")
        self.ioctl("KVM_GET_REGS", regs)
        return regs

    def set_regs(self, regs: Any) -> None:
        """KVM_SET_REGS from a ``struct kvm_regs *``."""
        self.ioctl("KVM_SET_REGS", regs)

    def get_sregs(self) -> Any:
        """KVM_GET_SREGS: a ``struct kvm_sregs *``."""
        sregs = ffi.new("struct kvm_sregs *")
        self.ioctl("KVM_GET_SREGS", sregs)
        return sregs

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS from a ``struct kvm_sregs *``."""
        self.ioctl("KVM_SET_SREGS", sregs)

    def set_cpuid2(self, cpuid: Any) -> None:
        """KVM_SET_CPUID2 from a ``struct kvm_cpuid2 *``."""
        self.ioctl("KVM_SET_CPUID2", cpuid)

    def translate(self, linear: int) -> int | None:
        """KVM_TRANSLATE: the GPA behind a linear address, None where it is not mapped."""
        request = ffi.new("struct kvm_translation *", {"linear_address": linear})
        self.ioctl("KVM_TRANSLATE", request, f"linear address {linear:#x}")
        return int(request.physical_address) if request.valid else None

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE; a secondary vCPU of an irqchip VM waits until made runnable."""
        self.ioctl("KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", (state,)))

    def pre_fault_memory(self, gpa: int, size: int, flags: int = 0) -> int:
        """KVM_PRE_FAULT_MEMORY (Linux 6.11): the number of bytes that are left."""
        request = ffi.new("struct kvm_pre_fault_memory *", (gpa, size, flags))
        self.ioctl("KVM_PRE_FAULT_MEMORY", request, f"GPA {gpa:#x}, {size:#x} bytes")
        return int(request.size)
