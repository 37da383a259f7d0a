"""A device behind a port: the guest reads a counter that is kept in Python.

Prints:
    PASS, the guest read the port 3 times
"""

from pyvmm import Machine, assemble


class Counter:
    """Each read gives the next number."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, port: int, size: int) -> int:
        self.reads += 1
        return self.reads

    def write(self, port: int, size: int, value: int) -> None:
        self.reads = value


GUEST = assemble("""
        .include "pyvmm.inc"
        guest "device_on_a_port"

        inb $0x70, %al
        inb $0x70, %al
        inb $0x70, %al
        assert_eqb %al, $3
        exit_guest $0
""")

counter = Counter()
with Machine(GUEST) as machine:
    machine.bus.add_ports(range(0x70, 0x71), counter)
    report = machine.run(deadline_s=10)
print(f"{report.result.value.upper()}, the guest read the port {counter.reads} times")
