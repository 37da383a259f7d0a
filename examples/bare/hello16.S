# Real mode at address 0: prints on the debug console, stores 42, halts with 42 in AX, as the guests
# of kvm-hello-world do.
#
#     pyvmm run examples/bare/hello16.S --platform bare --load 0

        .code16
        movw $text, %si
next:   lodsb
        testb %al, %al
        jz done
        outb %al, $0xe9
        jmp next
done:   movw $42, %ax
        movw %ax, 0x400
        hlt
text:   .asciz "hello from real mode\n"
