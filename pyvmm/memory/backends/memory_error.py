"""``memory_error``: the RFC of December 2021. See csrc/backends/memory_error.c."""

from __future__ import annotations

from pyvmm.errors import KvmError
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vm import Vm
from pyvmm.memory.backing import (
    NO_PROTECTED_VM,
    Backing,
    Support,
    back_with_guest_memfd,
    create_protected_vm,
)
from pyvmm.native import lib
from pyvmm.page_states import Mechanism

_REMEDY = "no released kernel has it; `pyvmm lab build --name memory-error` makes one"


class MemoryErrorBackend:
    name = "memory_error"
    title = "the RFC's KVM_EXIT_MEMORY_ERROR"
    vm_type = lib.KVM_X86_SW_PROTECTED_VM
    hypercall = True
    views = (2,)
    keeps_contents = False

    def probe(self, kvm: Kvm) -> Support:
        """Bind a private file through the old ioctl: the merged ABI refuses that flag there."""
        vm = create_protected_vm(kvm)
        if vm is None:
            # The RFC's kernel has it with nested paging and without.
            return Support(None, NO_PROTECTED_VM, _REMEDY)
        size = 0x1000
        with vm:
            try:
                backing = self.back(vm, size, 2, Mechanism.PRESENCE)
            except KvmError as error:
                return Support(None, f"this VM has no private file ({error.strerror})", _REMEDY)
            try:
                for slot, flags in enumerate(
                    (lib.KVM_MEM_PRIVATE, lib.KVM_MEM_PRIVATE | lib.KVM_MEM_SHARED_VIEW)
                ):
                    vm.set_user_memory_region_ext(
                        slot,
                        slot * size,
                        size,
                        backing.shared_host.address,
                        flags,
                        backing.private_file.fileno(),
                    )
            except KvmError as error:
                return Support(
                    None, f"KVM_MEM_PRIVATE is not the RFC's here ({error.strerror})", _REMEDY
                )
            finally:
                backing.close()
        return Support(Mechanism.PRESENCE)

    def back(self, vm: Vm, size: int, views: int, mechanism: Mechanism) -> Backing:
        return back_with_guest_memfd(vm, size)

    def slots(self, pages: int, views: int) -> int:
        return 2
