# inl.S - what reading a port costs, by the guest's own clock
#
# Boots as a boot sector under QEMU and runs as a guest of pyvmm. Prints a line for each
# of 400 blocks of 32 reads: the ticks of its TSC. The port is the one that inl_from_qemu of
# kvm-unit-tests reads; no device has it.
#
# vcpus:       1
# expect:      pass

        .include "pyvmm.inc"
        guest "inl.S"

        .set READS, 32
        .set BLOCKS, 400

        xorw %ax, %ax                   # a firmware leaves what it likes
        movw %ax, %ds
        movw %ax, %ss
        movw $0x7C00, %sp
        movw $BLOCKS, %bp
block:
        movw $0x1234, %dx
        rdtsc
        movl %eax, %edi
        movw $0x1234, %dx               # rdtsc has overwritten it
        .rept READS
        inl %dx, %eax
        .endr
        rdtsc
        subl %edi, %eax
        print_decimal %eax
        puts "\n"
        decw %bp
        jnz block
        exit_guest $0
