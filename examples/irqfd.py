"""An eventfd that raises an interrupt: the guest sleeps in HLT until it is signalled.

Prints:
    the guest is ready
    PASS, the handler ran
"""

from pyvmm import Machine, assemble
from pyvmm.kvm.eventfd import EventFd

LINE, VECTOR, READY = 4, 0x24, 0x70

GUEST = assemble("""
        .include "pyvmm.inc"
        guest "irqfd"

        movw $handler, 0x24 * 4
        movw $0, 0x24 * 4 + 2
        movb $0x11, %al                 # the 8259A: edge triggered, cascade, 4 words follow
        outb %al, $0x20
        movb $0x20, %al                 # its vectors begin here
        outb %al, $0x21
        movb $4, %al
        outb %al, $0x21
        movb $1, %al
        outb %al, $0x21
        movb $0xef, %al                 # input 4 alone
        outb %al, $0x21
        outb %al, $0x70                 # ready
        sti
wait:   hlt
        jmp wait
handler:
        puts "the handler ran"
        exit_guest $0
""")


class Ready:
    """The guest writes here when interrupts may come; then one does."""

    def __init__(self, event: EventFd) -> None:
        self.event = event

    def read(self, port: int, size: int) -> int:
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        print("the guest is ready")
        self.event.signal()


with Machine(GUEST, irqchip=True) as machine, EventFd() as event:
    machine.vm.irqfd(event, LINE)
    machine.bus.add_ports(range(READY, READY + 1), Ready(event))
    report = machine.run(deadline_s=10)
print(f"{report.result.value.upper()}, {report.console}")
