"""``emulated``: private memory on any KVM, with two memfds. See csrc/backends/emulated/."""

from __future__ import annotations

from functools import partial

from pyvmm.kvm.mapping import PROT_NONE, PROT_READ_WRITE, Mapping
from pyvmm.kvm.memfd import Memfd
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vm import Vm
from pyvmm.memory.backing import Backing, Support, add_shared_file
from pyvmm.memory.probe_guest import run_probe
from pyvmm.native import lib
from pyvmm.page_states import Mechanism

# mov %al, 0x2000: one byte into the second page, from code in the first.
_TOUCH = bytes([0xA2, 0x00, 0x20])
_CODE, _ABSENT = 0x1000, 0x2000


class EmulatedBackend:
    name = "emulated"
    title = "the emulated backend"
    vm_type = lib.KVM_X86_DEFAULT_VM
    hypercall = False
    views = (1, 2)
    keeps_contents = False

    def probe(self, kvm: Kvm) -> Support:
        """PROT_NONE windows where a touch gives KVM_EXIT_MMIO with its GPA, slots elsewhere."""
        code, absent = Mapping(0x1000), Mapping(0x1000, protection=PROT_NONE)
        code.view[: len(_TOUCH)] = _TOUCH
        try:
            with kvm.create_vm() as vm:
                vm.set_user_memory_region(0, _CODE, 0x1000, code.address)
                vm.set_user_memory_region(1, _ABSENT, 0x1000, absent.address)
                run = run_probe(vm, _CODE)
        finally:
            code.close()
            absent.close()
        named = run is not None and run.exit_reason == lib.KVM_EXIT_MMIO
        if named and run.mmio.phys_addr == _ABSENT:
            return Support(Mechanism.PROT_NONE)
        return Support(Mechanism.SLOTS)

    def back(self, vm: Vm, size: int, views: int, mechanism: Mechanism) -> Backing:
        # With one view the private side is mapped over the shared one, page by page.
        hidden = mechanism == Mechanism.PROT_NONE or views == 1
        private_file = Memfd("private", size)
        protection = PROT_NONE if hidden else PROT_READ_WRITE
        return add_shared_file(private_file, partial(private_file.map, protection=protection))

    def slots(self, pages: int, views: int) -> int:
        return 2 * pages
