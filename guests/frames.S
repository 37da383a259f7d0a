# frames.S - exception frames pushed to stacks that convert
#
# shows:       an interrupt by INT, a division by zero and an invalid opcode push their
#              frames through the wrong view: the page is converted, the frame is whole,
#              and IRET finds it. irq.S with FRAMES=1 does it with timer interrupts.
#              Not for `emulated` on hardware KVM, where such a push never leaves the
#              kernel: there the deadline ends the run.
# vcpus:       1-28, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=12 to_shared=12 implicit=24 explicit=0
# expect --views 1: fail exit_code=1

        .include "pyvmm.inc"
        guest "frames.S"

        .set ROUNDS, 4
        .set TOP, 0x100                 # of each stack in the region

# frame VIEW, INSTRUCTION: the two-byte INSTRUCTION interrupts while SS:SP is in page DX.
.macro frame view, instruction:vararg
        movw %dx, %ax
        shlw $8, %ax
        addw $\view, %ax
        movw %ax, %es
        xorw %ax, %ax
        movw %sp, %bp
        movw %es, %cx
        movw %cx, %ss
        movw $TOP, %sp
frame_\@:
        \instruction
        movw %sp, %cx
        xorw %bx, %bx
        movw %bx, %ss
        movw %bp, %sp
        assert_eqw %cx, $TOP
        cmpw $frame_\@, %ax
        assert jae, "the frame's IP is in the instruction or behind it"
        cmpw $frame_\@ + 2, %ax
        assert jbe, "the frame's IP is not past the instruction"
        assert_eqw %es:TOP-4, $0        # CS
        movw %es:TOP-2, %ax
        andw $0x0202, %ax
        assert_eqw %ax, $0x0002         # FLAGS: bit 1 is always set, interrupts are off
        assert_eq %es:TOP, $0
        assert_eq %es:0, $0
.endm

        only_vcpu_0
        require_two_views
        movw $fault, 0 * 4              # #DE, at the instruction
        movw $fault, 6 * 4              # #UD, at the instruction
        movw $trap, 0x40 * 4            # INT, behind it

        movw $ROUNDS, %si
round:
        movw $0, %dx
        frame PRIVATE, int $0x40
        frame SHARED, int $0x40
        movw $1, %dx
        frame PRIVATE, divb %ah
        frame SHARED, divb %ah
        movw $2, %dx
        frame PRIVATE, ud2
        frame SHARED, ud2
        decw %si
        jnz round
        exit_guest $0

# Both return AX = the IP on top of their frame.
fault:
        popw %ax
        addw $2, %ax
        pushw %ax
        subw $2, %ax
        iretw
trap:
        popw %ax
        pushw %ax
        iretw
