"""Registers and RAM are kept in the middle of a run, and put back: the guest counts on twice.

Prints:
    counts to 1, 2, 3, 4
    goes back and counts to 3, 4
"""

import errno

from pyvmm import Kvm, KvmError, assemble
from pyvmm.guest.boot import set_real_mode
from pyvmm.kvm.exits import IoExit
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.vcpu import Vcpu

RAM = 0x10000

GUEST = assemble("""
        .code16
        .globl _start
_start: incw counter
        movw counter, %ax
        outb %al, $0x70
        jmp _start
counter: .word 0
""")


def count(vcpu: Vcpu) -> int:
    """Run to the next OUT; what the guest wrote."""
    vcpu.run()
    exit = vcpu.exit()
    if not isinstance(exit, IoExit):
        raise SystemExit(f"this guest has no such exit: {exit}")
    return exit.data[0]


def complete(vcpu: Vcpu) -> None:
    """KVM ends an OUT when it is entered again; registers are whole only then."""
    vcpu.kvm_run.immediate_exit = 1
    try:
        vcpu.run()
    except KvmError as error:
        if error.errno != errno.EINTR:
            raise
    vcpu.kvm_run.immediate_exit = 0


with Kvm() as kvm, kvm.create_vm() as vm, Mapping(RAM) as ram:
    vm.set_identity_map_addr(0xFFFB_C000)
    vm.set_tss_addr(0xFFFB_D000)
    vm.set_user_memory_region(0, 0, RAM, ram.address)
    for segment in GUEST.segments:
        ram.view[segment.gpa : segment.gpa + len(segment.data)] = segment.data
    with vm.create_vcpu(0) as vcpu:
        set_real_mode(vcpu, GUEST.entry)
        counts = [count(vcpu), count(vcpu)]
        complete(vcpu)
        saved_regs, saved_sregs, saved_ram = vcpu.get_regs(), vcpu.get_sregs(), bytes(ram.view)
        counts += [count(vcpu), count(vcpu)]
        print("counts to", ", ".join(map(str, counts)))

        complete(vcpu)
        ram.view[:] = saved_ram
        vcpu.set_sregs(saved_sregs)
        vcpu.set_regs(saved_regs)
        print("goes back and counts to", ", ".join(str(count(vcpu)) for _ in range(2)))
