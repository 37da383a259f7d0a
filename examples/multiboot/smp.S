# Starts the other vCPUs as an operating system does: INIT, a start-up interrupt, real mode. Each adds
# one to a counter; how many there must be is asked of the firmware configuration.
#
#     pyvmm run examples/multiboot/smp.S --platform multiboot --vcpus 4

        .code32
        .set MAGIC, 0x1badb002
        .set ICR, 0xfee00300            # of the LAPIC
        .set PLACE, 0x8000              # where the others start
        jmp start
        .align 4
        .long MAGIC, 0, -MAGIC

start:  movl $0x1ff, 0xfee000f0         # the LAPIC is on
        movl $other, %esi
        movl $PLACE, %edi
        movl $(other_end - other), %ecx
        rep movsb
        movl $0xc4500, ICR              # INIT to all but this one
        movl $0xc4600 | PLACE >> 12, ICR
        movw $5, %ax                    # the number of CPUs
        movw $0x510, %dx
        outw %ax, %dx
        incw %dx
        inb %dx, %al
        movb %al, %bl
1:      pause
        movl count - other + PLACE, %eax
        incl %eax
        cmpb %bl, %al
        jne 1b
        xorl %eax, %eax
        outl %eax, $0xf4

        .code16
other:  lock incl %cs:count - other
1:      hlt
        jmp 1b
        .align 4
count:  .long 0
other_end:
