"""A VM: the ioctls on the descriptor that KVM_CREATE_VM returns."""

from __future__ import annotations

from pyvmm.errors import KvmError
from pyvmm.fd import KvmFd
from pyvmm.guest_memfd import GuestMemfd
from pyvmm.native import ffi, lib
from pyvmm.vcpu import Vcpu


def _about_slot(slot: int, gpa: int, size: int) -> str:
    return f"slot {slot}, GPA {gpa:#x}, {size:#x} bytes"


class Vm(KvmFd):
    """A virtual machine. Made by :meth:`pyvmm.kvm.Kvm.create_vm`."""

    def __init__(self, fd: int, vm_type: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd, "VM")
        self.vm_type = vm_type
        self._vcpu_mmap_size = vcpu_mmap_size

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on the VM: 0 when this VM does not have it."""
        return self.ioctl("KVM_CHECK_EXTENSION", capability, f"capability {capability}")

    def enable_cap(self, capability: int, *arguments: int, flags: int = 0) -> int:
        """KVM_ENABLE_CAP with up to four arguments."""
        request = ffi.new("struct kvm_enable_cap *", (capability, flags, list(arguments)))
        return self.ioctl("KVM_ENABLE_CAP", request, f"capability {capability}")

    def create_vcpu(self, index: int) -> Vcpu:
        """KVM_CREATE_VCPU, and its kvm_run mapped."""
        fd = self.ioctl("KVM_CREATE_VCPU", index, f"vCPU {index}")
        return Vcpu(fd, index, self._vcpu_mmap_size)

    def set_user_memory_region(
        self, slot: int, gpa: int, size: int, address: int, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION. All in bytes; size 0 deletes the slot."""
        request = ffi.new("struct kvm_userspace_memory_region *", (slot, flags, gpa, size, address))
        self.ioctl("KVM_SET_USER_MEMORY_REGION", request, _about_slot(slot, gpa, size))

    def set_user_memory_region2(
        self,
        slot: int,
        gpa: int,
        size: int,
        address: int,
        flags: int = 0,
        guest_memfd: int = 0,
        guest_memfd_offset: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2 (Linux 6.8), which can bind a guest_memfd."""
        request = ffi.new("struct kvm_userspace_memory_region2 *")
        request.slot = slot
        request.flags = flags
        request.guest_phys_addr = gpa
        request.memory_size = size
        request.userspace_addr = address
        request.guest_memfd_offset = guest_memfd_offset
        request.guest_memfd = guest_memfd & 0xFFFFFFFF
        self.ioctl("KVM_SET_USER_MEMORY_REGION2", request, _about_slot(slot, gpa, size))

    def set_memory_attributes(self, gpa: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES (Linux 6.8) for ``size`` bytes from ``gpa``."""
        request = ffi.new("struct kvm_memory_attributes *", (gpa, size, attributes, 0))
        self.ioctl("KVM_SET_MEMORY_ATTRIBUTES", request, f"GPA {gpa:#x}, {size:#x} bytes")

    def create_guest_memfd(self, size: int, flags: int = 0) -> GuestMemfd:
        """KVM_CREATE_GUEST_MEMFD (Linux 6.8): ``size`` bytes that only this VM can map."""
        request = ffi.new("struct kvm_create_guest_memfd *", {"size": size, "flags": flags})
        fd = self.ioctl("KVM_CREATE_GUEST_MEMFD", request, f"{size:#x} bytes, flags {flags:#x}")
        return GuestMemfd(fd, size)

    def set_tss_addr(self, gpa: int) -> None:
        """KVM_SET_TSS_ADDR: three pages that Intel CPUs without unrestricted guest need."""
        self.ioctl("KVM_SET_TSS_ADDR", gpa, f"GPA {gpa:#x}")

    def set_identity_map_addr(self, gpa: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page, needed like the TSS; before any vCPU."""
        self.ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", gpa), f"GPA {gpa:#x}")

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PIC, IOAPIC and, for each vCPU made after, a LAPIC."""
        self.ioctl("KVM_CREATE_IRQCHIP")

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2: the timer at its usual ports; needs the irqchip."""
        self.ioctl("KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))

    def has(self, capability: int) -> bool:
        """Whether this VM has a capability; False also where the question is unknown."""
        try:
            return self.check_extension(capability) > 0
        except KvmError:
            return False

    def map_gpa_range_exits(self) -> bool:
        """Ask for KVM_EXIT_HYPERCALL on KVM_HC_MAP_GPA_RANGE. False where it cannot be had."""
        mask = 1 << int(lib.KVM_HC_MAP_GPA_RANGE)
        if not self.check_extension(lib.KVM_CAP_EXIT_HYPERCALL) & mask:
            return False
        self.enable_cap(lib.KVM_CAP_EXIT_HYPERCALL, mask)
        return True
