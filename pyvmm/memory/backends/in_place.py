"""``in_place``: conversion in place, Linux 7.4. See csrc/backends/in_place.c."""

from __future__ import annotations

from pyvmm.host import in_place_conversion
from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vm import Vm
from pyvmm.memory.backing import Backing, Support, create_protected_vm, no_protected_vm
from pyvmm.memory.conversion_mode import states_are_the_files, why_not_in_place
from pyvmm.native import lib
from pyvmm.page_states import Mechanism

_REMEDY = "no released kernel has it; `pyvmm lab build --name in-place` makes one"
_FLAGS = lib.GUEST_MEMFD_FLAG_MMAP | lib.GUEST_MEMFD_FLAG_INIT_SHARED


class InPlaceBackend:
    name = "in_place"
    title = "a guest_memfd that keeps the states of its pages"
    vm_type = lib.KVM_X86_SW_PROTECTED_VM
    hypercall = True
    views = (1, 2)
    keeps_contents = True

    def probe(self, kvm: Kvm) -> Support:
        """Ask a file for the ioctl: the number of the capability may change until Linux 7.4."""
        vm = create_protected_vm(kvm)
        if vm is None:
            return no_protected_vm(_REMEDY)
        with vm:
            if not states_are_the_files(vm):
                is_off = in_place_conversion() is False
                remedy = "load kvm with gmem_in_place_conversion=1" if is_off else _REMEDY
                return Support(None, f"page states belong to the VM: {why_not_in_place()}", remedy)
            flags = vm.check_extension(lib.KVM_CAP_GUEST_MEMFD_FLAGS)
            if flags & _FLAGS != _FLAGS:
                return Support(
                    None,
                    "this VM's guest_memfd cannot be mapped with its pages shared"
                    f" (KVM_CAP_GUEST_MEMFD_FLAGS is {flags:#x})",
                    _REMEDY,
                )
        return Support(Mechanism.ATTRIBUTES)

    def back(self, vm: Vm, size: int, views: int, mechanism: Mechanism) -> Backing:
        """One file for both halves; behind the slots without memory nothing is readable."""
        file = vm.create_guest_memfd(size, _FLAGS)
        try:
            return Backing(file, file, Mapping(size, protection=PROT_NONE), file.map())
        except BaseException:
            file.close()
            raise

    def slots(self, pages: int, views: int) -> int:
        # Each view has slots of the file and slots without memory, at worst in turns.
        return 4 * (pages // 2 + 1) if views == 2 else 1
