"""``guest_memfd``: the merged ABI, Linux 6.8 and newer. See csrc/backends/guest_memfd.c."""

from __future__ import annotations

from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vm import Vm
from pyvmm.memory.backing import (
    Backing,
    Support,
    back_with_guest_memfd,
    create_protected_vm,
    no_protected_vm,
)
from pyvmm.memory.conversion_mode import (
    other_mode,
    states_are_the_files,
    states_are_the_vms,
    why_in_place,
)
from pyvmm.native import lib
from pyvmm.page_states import Mechanism

_KERNEL_OPTION = "use a kernel with CONFIG_KVM_SW_PROTECTED_VM=y (pyvmm lab has one)"


class GuestMemfdBackend:
    name = "guest_memfd"
    title = "software-protected VMs with guest_memfd"
    vm_type = lib.KVM_X86_SW_PROTECTED_VM
    hypercall = True
    views = (1, 2)
    keeps_contents = False

    def probe(self, kvm: Kvm) -> Support:
        """Create a software-protected VM and ask *it*: /dev/kvm also counts what it cannot do."""
        vm = create_protected_vm(kvm)
        if vm is None:
            return no_protected_vm(_KERNEL_OPTION)
        with vm:
            if states_are_the_files(vm):
                return Support(
                    None,
                    f"page states belong to the guest_memfd: {why_in_place()}",
                    f"use the in_place backend, or {other_mode()}",
                )
            if not states_are_the_vms(vm):
                return Support(
                    None,
                    "this VM has no private memory attribute (no TDP MMU: npt=0 or ept=0?)",
                    "load kvm_amd with npt=1 or kvm_intel with ept=1, and kvm with tdp_mmu=1",
                )
            for capability, name in (
                (lib.KVM_CAP_GUEST_MEMFD, "KVM_CAP_GUEST_MEMFD"),
                (lib.KVM_CAP_USER_MEMORY2, "KVM_CAP_USER_MEMORY2"),
                (lib.KVM_CAP_MEMORY_FAULT_INFO, "KVM_CAP_MEMORY_FAULT_INFO"),
            ):
                if not vm.has(capability):
                    return Support(None, f"this VM has no {name}", _KERNEL_OPTION)
        return Support(Mechanism.ATTRIBUTES)

    def back(self, vm: Vm, size: int, views: int, mechanism: Mechanism) -> Backing:
        return back_with_guest_memfd(vm, size)

    def slots(self, pages: int, views: int) -> int:
        # The private window has a slot per range of private pages, the shared one a slot.
        return pages + 1 if views == 2 else 1
