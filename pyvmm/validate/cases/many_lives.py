"""VMs by the hundred: what each of them leaves behind does not show, and what all do does."""

from __future__ import annotations

from contextlib import ExitStack

from pyvmm.native import lib
from pyvmm.validate.kit.accounts import left_behind, lines
from pyvmm.validate.kit.case import GIB, MIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.memory import ATTRIBUTE, SharedSide
from pyvmm.validate.kit.toolbox import Toolbox

_VMS, _SIZE = 200, MIB
_ATTEMPTS = 5


@case(
    "AC16",
    "VMs by the hundred, with a vCPU, slots and attributes, leave nothing, on no CPU",
    needs=("guests",),
    vary={"private": (False, True)},
    alone=True,
    deadline_s=240.0,
)
def many_lives(tools: Toolbox, private: bool) -> None:
    if private:
        tools.need("private_memory")
    shared = tools.shared_side(4 * GIB, _SIZE)

    def live() -> None:
        for _ in range(_VMS):
            _live(tools, shared, private)
            tools.beat()

    for line, grown in left_behind(live, lines(), lambda line: line.noise, _ATTEMPTS).items():
        raise CheckFailed(f"VMs leave something behind ({line.name})", f"{_VMS} of them: {grown}")


def _live(tools: Toolbox, shared: SharedSide, private: bool) -> None:
    """Make a VM with what it can have, and close it: nothing of it is used."""
    with ExitStack() as stack:
        kind = lib.KVM_X86_SW_PROTECTED_VM if private else lib.KVM_X86_DEFAULT_VM
        vm = stack.enter_context(tools.kvm.create_vm(kind))
        stack.enter_context(vm.create_vcpu(0))
        for slot in range(8):
            gpa, address = 4 * GIB + 2 * slot * _SIZE, shared.address
            if private:
                file = stack.enter_context(vm.create_guest_memfd(_SIZE))
                vm.set_user_memory_region2(
                    slot, gpa, _SIZE, address, lib.KVM_MEM_GUEST_MEMFD, file.fileno()
                )
                vm.set_memory_attributes(gpa + PAGE, _SIZE // 2, ATTRIBUTE)
            else:
                vm.set_user_memory_region(slot, gpa, _SIZE, address, lib.KVM_MEM_LOG_DIRTY_PAGES)
