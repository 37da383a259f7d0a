"""KVM_GUESTDBG_SINGLESTEP: where the vCPU is after each instruction.

Prints:
    0x7c01
    0x7c02
    0x7c04
    0x7c06
"""

from pyvmm import Machine, assemble
from pyvmm.kvm.exits import DebugExit
from pyvmm.native import lib

GUEST = assemble("""
        .code16
        nop
        nop
        movb $1, %al
        jmp 1f
1:      outb %al, $0x70
        xorb %al, %al
        outb %al, $0xf4
""")

with Machine(GUEST) as machine:
    vcpu = machine.vcpus[0]
    vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    for exit in machine.exits(deadline_s=10):
        if not isinstance(exit, DebugExit):
            break  # the first port
        print(f"{exit.pc:#x}")
