"""Memory of the RFC of December 2021: a private file, and a memslot for each view of it."""

from __future__ import annotations

from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.check import expect
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.toolbox import Toolbox

PRIVATE_SLOT: int = lib.KVM_MEM_PRIVATE
SHARED_SLOT: int = lib.KVM_MEM_PRIVATE | lib.KVM_MEM_SHARED_VIEW


class Views:
    """A private file with a private and a shared view of it."""

    def __init__(
        self,
        tools: Toolbox,
        vm: GuestVm,
        private: int,
        shared: int,
        size: int,
        *,
        backing: str = "anonymous",
        file_offset: int = 0,
    ) -> None:
        self.vm, self.private, self.shared, self.size = vm, private, shared, size
        self.file = tools.keep(vm.vm.create_guest_memfd(file_offset + size))
        self.file_offset = file_offset
        self.side = tools.shared_side(shared, size, backing)
        self.hole = tools.keep(Mapping(size, protection=PROT_NONE))
        self.slots = (vm.new_slot(), vm.new_slot())
        self.create()

    def create(self) -> None:
        views = (
            (self.private, PRIVATE_SLOT, self.hole.address),
            (self.shared, SHARED_SLOT, self.side.address),
        )
        for slot, (gpa, flags, address) in zip(self.slots, views, strict=True):
            set_slot(
                self.vm,
                slot=slot,
                gpa=gpa,
                size=self.size,
                address=address,
                flags=flags,
                fd=self.file.fileno(),
                offset=self.file_offset,
            )

    def delete(self) -> None:
        for slot in self.slots:
            self.vm.vm.set_user_memory_region(slot, 0, 0, 0)

    def to_private(self, offset: int, size: int) -> None:
        self.file.allocate(self.file_offset + offset, size)
        self.side.discard(offset, size)

    def to_shared(self, offset: int, size: int) -> None:
        self.file.punch(self.file_offset + offset, size)

    def expect_error(self, gpa: int, wanted: int, what: str, cpu: int = 0) -> None:
        chosen = self.vm.cpus[cpu]
        chosen.prepare(routines.READ[4], rdi=gpa)
        rip = int(chosen.vcpu.get_regs().rip)
        for _ in range(2):
            chosen.expect_memory_error(gpa, wanted, what)
            expect(int(chosen.vcpu.get_regs().rip), rip, "RIP after the exit")


def set_slot(
    vm: GuestVm,
    *,
    slot: int,
    gpa: int,
    size: int,
    address: int,
    flags: int,
    fd: int,
    offset: int = 0,
    padding: int = -1,
) -> None:
    """The old ioctl with the RFC's 64 bytes; ``padding`` is the index of one word to set."""
    mask = (1 << 64) - 1
    request = ffi.new("struct kvm_userspace_memory_region_ext *")
    region = request.region
    region.slot, region.flags = slot, flags
    region.guest_phys_addr, region.memory_size = gpa & mask, size & mask
    region.userspace_addr = address & mask
    request.ofs, request.fd = offset & mask, fd & 0xFFFFFFFF
    if padding >= 0:
        request.padding[padding] = 1
    vm.vm.ioctl("KVM_SET_USER_MEMORY_REGION", request)
