# The same in flat protected mode; with paging, too, by a page directory of its own at 0x2000 with
# one page of 4 MiB:
#
#     pyvmm run examples/bare/hello32.S --platform bare --mode protected --load 0
#     pyvmm run examples/bare/hello32.S --platform bare --mode protected --load 0 \
#         --set cr3=0x2000 --set cr4=0x10 --set cr0=0x80000011

        movl $text, %esi
next:   lodsb
        testb %al, %al
        jz done
        outb %al, $0xe9
        jmp next
done:   movl $42, %eax
        movl %eax, 0x400
        hlt
text:   .asciz "hello from protected mode\n"

        .org 0x2000
        .long 0x87
