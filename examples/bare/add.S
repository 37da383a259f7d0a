# Adds AL and BL, prints the digit on COM1 and halts: what the guest of LWN's "Using the KVM API"
# does. Its host gives it 0x1000, AX = 2 and BX = 2.
#
#     pyvmm run examples/bare/add.S --platform bare --load 0x1000 --set rax=2 --set rbx=2

        .code16
        movw $0x3f8, %dx
        addb %bl, %al
        orb $'0', %al
        outb %al, %dx
        movb $'\n', %al
        outb %al, %dx
        hlt
