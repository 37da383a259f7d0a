# Programs PIC and PIT and prints at each tick, as kvmtool's tests/pit and tests/kernel do where
# kvmtool loads them. They take 512 ticks of 10 ms and halt; this one takes 10 of 1 ms.
#
#     pyvmm run examples/bare/tick.S --platform bare --irqchip --load 0x10000 \
#         --set cs=0x1000 --set ds=0x1000 --set sp=0x8000

        .code16
        .set VECTOR, 32
        .set DIVISOR, 1193
start:  xorw %ax, %ax
        movw %ax, %es
        movw $(tick - start), %es:(VECTOR * 4)
        movw %cs, %es:(VECTOR * 4 + 2)
        # The PIC: vectors from 32, no second one, interrupts end by themselves.
        .irp byte, 0x11
        movb $\byte, %al
        outb %al, $0x20
        .endr
        .irp byte, VECTOR, 0, 3, 0xfe
        movb $\byte, %al
        outb %al, $0x21
        .endr
        # The PIT: channel 0, one pulse in so many periods.
        movb $0x34, %al
        outb %al, $0x43
        movb $(DIVISOR & 0xff), %al
        outb %al, $0x40
        movb $(DIVISOR >> 8), %al
        outb %al, $0x40
        sti
        jmp .

tick:   movw $0x3f8, %dx
        movb $'.', %al
        outb %al, %dx
        decw left - start
        jz 1f
        iretw
1:      movb $'\n', %al
        outb %al, %dx
        cli
        hlt

left:   .word 10
