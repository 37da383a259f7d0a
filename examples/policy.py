"""A policy: which pages a guest may convert by touching them through the wrong view.

Prints:
    vCPU 0 wants GPA 0x40000 PRIVATE: yes
    vCPU 0 wants GPA 0x41000 PRIVATE: no
    FAIL, 1 page converted
"""

from pyvmm import Machine, assemble
from pyvmm.kvm.exits import MemoryErrorExit

GUEST = assemble("""
        .include "pyvmm.inc"
        guest "policy"

        movw $PRIVATE, %ax
        movw %ax, %es
        movb $1, %es:0
        movb $1, %es:0x1000
        exit_guest $0
""")


def only_the_first_page(error: MemoryErrorExit, vcpu: int) -> bool:
    allowed = error.gpa == 0x40000
    answer = "yes" if allowed else "no"
    print(f"vCPU {vcpu} wants GPA {error.gpa:#x} {error.wanted.name}: {answer}")
    return allowed


with Machine(GUEST, policy=only_the_first_page) as machine:
    report = machine.run(deadline_s=10)
print(f"{report.result.value.upper()}, {report.conversions.to_private} page converted")
