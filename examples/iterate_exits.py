"""Every exit that C does not answer, one by one: a port is read and written.

Prints:
    IN  port 0x70, 1 byte
    OUT port 0x71: 42
    PASS
"""

from pyvmm import Machine, assemble
from pyvmm.kvm.exits import IoExit

GUEST = assemble("""
        .include "pyvmm.inc"
        guest "iterate_exits"

        inb $0x70, %al
        addb $2, %al
        outb %al, $0x71
        exit_guest $0
""")

with Machine(GUEST) as machine:
    for exit in machine.exits(deadline_s=10):
        if not isinstance(exit, IoExit):
            raise SystemExit(f"this guest has no such exit: {exit}")
        if exit.is_write:
            print(f"OUT port {exit.port:#x}: {exit.data[0]}")
        else:
            print(f"IN  port {exit.port:#x}, {exit.size} byte")
            machine.answer(40)
    report = machine.report()
print(report.result.value.upper())
