# The same in long mode, with a call on the stack that it is given at the end of RAM.
#
#     pyvmm run examples/bare/hello64.S --platform bare --mode long --load 0 --memory 2

        leaq text(%rip), %rsi
        call print
        movq $42, %rax
        movq %rax, 0x400
        hlt

print:  lodsb
        testb %al, %al
        jz 1f
        outb %al, $0xe9
        jmp print
1:      ret
text:   .asciz "hello from long mode\n"
