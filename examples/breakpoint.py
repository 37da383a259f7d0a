"""KVM_GUESTDBG_USE_HW_BP: stop at an instruction, look, and go on, twice.

Prints:
    0x7c06: cx=2
    0x7c06: cx=1
    pass
"""

from pyvmm import Machine, assemble
from pyvmm.kvm.exits import DebugExit
from pyvmm.native import lib

GUEST = assemble("""
        .code16
        movw $2, %cx
        movw %cx, %ax
        nop
        decw %cx                # 0x7c06
        jnz .-2
        xorb %al, %al
        outb %al, $0xf4
""")
BREAKPOINT = 0x7C06
# DR7, Intel SDM volume 3, 19.2.4: bit 1 turns DR0 on; length and kind 0 are one byte, executed.
DR7 = 1 << 1
STOP_THERE = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP
STEP = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP
REGISTERS = (BREAKPOINT, 0, 0, 0, 0, 0, 0, DR7)

with Machine(GUEST) as machine:
    vcpu = machine.vcpus[0]
    vcpu.set_guest_debug(STOP_THERE, REGISTERS)
    for exit in machine.exits(deadline_s=10):
        if not isinstance(exit, DebugExit):
            raise SystemExit(f"this guest has no such exit: {exit}")
        if exit.pc == BREAKPOINT:
            print(f"{exit.pc:#x}: cx={vcpu.get_regs().rcx}")
            # The breakpoint would come again before the instruction: one step leads past it.
            vcpu.set_guest_debug(STEP)
        else:
            vcpu.set_guest_debug(STOP_THERE, REGISTERS)
    print(machine.report().result.value)
