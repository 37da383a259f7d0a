# A boot sector that prints by the serial port's rules: it sets the line up, and waits until there is
# room for each byte. It ends by powering off.
#
#     pyvmm run examples/bare/boot_sector.S --platform bare

        .code16
        .set COM1, 0x3f8
        cli
        xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %ss
        movw $0x7c00, %sp
        # 115,200 baud, 8 bits, no parity, FIFOs on.
        .macro put port, value
        movw $COM1 + \port, %dx
        movb $\value, %al
        outb %al, %dx
        .endm
        put 1, 0
        put 3, 0x80
        put 0, 1
        put 1, 0
        put 3, 0x03
        put 2, 0xc7
        put 4, 0x0b
        movw $text, %si
next:   lodsb
        testb %al, %al
        jz off
        movb %al, %bl
        movw $COM1 + 5, %dx
1:      inb %dx, %al
        testb $0x20, %al
        jz 1b
        movw $COM1, %dx
        movb %bl, %al
        outb %al, %dx
        jmp next
off:    movw $0x604, %dx
        movw $0x2000, %ax
        outw %ax, %dx
1:      hlt
        jmp 1b

text:   .asciz "hello from a boot sector\r\n"
        .org 510
        .word 0xaa55
