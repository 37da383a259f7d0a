"""A serial port in Python: the guest asks by polling, and answers what it is told by interrupt.

Prints:
    who is there? pyvmm!
    PASS
"""

from functools import partial

from pyvmm import Machine, assemble
from pyvmm.devices.serial import COM1_IRQ, Serial16550

GUEST = assemble("""
        .include "pyvmm.inc"
        guest "serial_port"

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
        movb $0xef, %al                 # input 4 alone: COM1
        outb %al, $0x21
        movw $0x3f9, %dx
        movb $1, %al                    # interrupt when something has come
        outb %al, %dx

        movw $question, %si
ask:    movw $0x3fd, %dx
1:      inb %dx, %al
        testb $0x20, %al                # is there room to send?
        jz 1b
        lodsb
        movw $0x3f8, %dx
        outb %al, %dx
        cmpb $'?', %al
        jne ask
        sti
wait:   hlt
        jmp wait

handler:
        movw $0x3f8, %dx
        inb %dx, %al
        outb %al, %dx                   # echo it
        cmpb $'!', %al
        je done
        movb $0x20, %al                 # end of interrupt
        outb %al, $0x20
        iret
done:   exit_guest $0

question:
        .ascii "who is there?"
""")


def show(data: bytes) -> None:
    print(data.decode(), end="")
    if data == b"?":
        serial.receive(b" pyvmm!")


with Machine(GUEST, irqchip=True) as machine:
    serial = Serial16550(set_line=partial(machine.vm.irq_line, COM1_IRQ), show=show)
    machine.bus.add_ports(serial.ports, serial)
    report = machine.run(deadline_s=10)
print(f"\n{report.result.value.upper()}")
