# Prints what a multiboot loader tells: the command line, each module's string and first line, and
# how much memory there is above 1 MiB. Ends by the debug exit port.
#
#     pyvmm run examples/multiboot/told.S --platform multiboot --append "a=1 b" --memory 64

        .code32
        .set MAGIC, 0x1badb002
        jmp start
        .align 4
        .long MAGIC, 0, -MAGIC

start:  movl $stack, %esp
        cmpl $0x2badb002, %eax
        jne fail
        movl %ebx, %ebp
        movl 16(%ebp), %esi             # the command line
        call line
        movl 20(%ebp), %edi             # how many modules
        movl 24(%ebp), %ebx             # where their list is
1:      decl %edi
        js 2f
        movl 8(%ebx), %esi              # the string
        call line
        movl (%ebx), %esi               # the bytes
        call line
        addl $16, %ebx
        jmp 1b
2:      movl 8(%ebp), %eax              # KiB above 1 MiB
        movl $digits + 10, %esi
        movl $10, %ecx
3:      xorl %edx, %edx
        divl %ecx
        addb $'0', %dl
        decl %esi
        movb %dl, (%esi)
        testl %eax, %eax
        jnz 3b
        call line
        xorl %eax, %eax
        outl %eax, $0xf4
fail:   movl $1, %eax
        outl %eax, $0xf4

# Prints the text at ESI up to a zero or a new line, and a new line.
line:   movw $0x3f8, %dx
4:      lodsb
        testb %al, %al
        jz 5f
        cmpb $'\n', %al
        je 5f
        outb %al, %dx
        jmp 4b
5:      movb $'\n', %al
        outb %al, %dx
        ret

digits: .fill 10, 1, 0
        .byte 0
        .fill 256
stack:
