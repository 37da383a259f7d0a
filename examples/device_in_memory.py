"""A device behind guest addresses where no memory is: every access is a KVM_EXIT_MMIO.

Prints:
    the guest stored 0x1234 at GPA 0x80010 in 2 bytes
    PASS
"""

from pyvmm import Machine, assemble


class Register:
    """One register, wherever in the window it is touched."""

    def __init__(self) -> None:
        self.value = 0

    def read(self, gpa: int, size: int) -> int:
        return self.value

    def write(self, gpa: int, size: int, value: int) -> None:
        print(f"the guest stored {value:#x} at GPA {gpa:#x} in {size} bytes")
        self.value = value


GUEST = assemble("""
        .include "pyvmm.inc"
        guest "device_in_memory"

        movw $NOTHING >> 4, %ax
        movw %ax, %es
        movw $0x1234, %es:0x10
        movw %es:0x10, %bx
        assert_eqw %bx, $0x1234
        exit_guest $0
""")

with Machine(GUEST) as machine:
    machine.bus.add_mmio(range(0x80000, 0x81000), Register())
    report = machine.run(deadline_s=10)
print(report.result.value.upper())
