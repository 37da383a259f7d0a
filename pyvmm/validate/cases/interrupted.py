"""Calls that wait for a page of the host's, and the signal that ends them."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.beside import CallBeside
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import check, errno_name, expect
from pyvmm.validate.kit.guest import Cpu
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.userfault import HeldPage

GPA = 4 * GIB
_WORD = 0x7B7B_7B7B


def run(cpu: Cpu, access: str) -> Callable[[], object]:
    routine = (routines.READ if access == "read" else routines.WRITE)[8]
    cpu.prepare(routine, rdi=GPA, rax=_WORD)
    return cpu.vcpu.run


def pre_fault(cpu: Cpu) -> Callable[[], object]:
    cpu.prepare(routines.HALT)
    return lambda: cpu.vcpu.pre_fault_memory(GPA, PAGE)


@case(
    "IT1",
    "a call that waits for a page of the host's ends with EINTR when a signal comes",
    needs=("native_guests",),
    vary={"call": ("read", "write", "pre-fault"), "vm_type": (0, 1)},
)
def signal_while_waiting(tools: Toolbox, call: str, vm_type: int) -> None:
    if call == "pre-fault":
        tools.need("pre_fault")
    if vm_type == lib.KVM_X86_SW_PROTECTED_VM:
        tools.need("private_memory")
    vm = tools.vm(vm_type)
    side = tools.shared_side(GPA, PAGE)
    vm.vm.set_user_memory_region(vm.new_slot(), GPA, PAGE, side.address)
    for _ in range(3):
        side.discard(0, PAGE)
        make = pre_fault(vm.cpu) if call == "pre-fault" else run(vm.cpu, call)
        with HeldPage(side.address) as held, CallBeside(make) as beside:
            held.wait()
            ended = beside.interrupt()
            held.fill(_WORD.to_bytes(8, "little"))
            check(ended, f"a signal does not end a call that waits for a page ({call})")
            seen = errno_name(beside.error)
            expect(seen, "EINTR", f"a call that waits for a page, when a signal comes ({call})")
        vm.cpu.expect_read(GPA, _WORD, f"the page that was waited for ({call})")
