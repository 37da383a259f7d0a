# exceptions.S - exceptions whose frames are pushed through the wrong view
#
# shows:       a division by zero and an invalid opcode push FLAGS, CS and IP onto a
#              stack in a page of the other state, or in two of them; the pages are
#              converted, the frame is whole and IRET finds its way back. `emulated`
#              needs a KVM that delivers exceptions by its own emulator; hardware that
#              cannot push spins until the deadline.
# vcpus:       1-28, the first one works
# exits:       io memory, and shutdown on emulated
# expect:      pass
# conversions: to_private=24 to_shared=24 implicit=48 explicit=0
# expect emulated: pass | deadline
# expect --views 1: fail exit_code=1

        .include "pyvmm.inc"
        guest "exceptions.S"

        .set ROUNDS, 4
        .set FAULTING, 2                # bytes of each faulting instruction below

# faults VIEW, TOP, INSTRUCTION: it faults with its stack at VIEW:TOP.
.macro faults view, top, instruction:vararg
        movw $\view, %ax
        movw %ax, %ss
        movw $\top, %sp
        xorw %bx, %bx
        xorw %dx, %dx
        \instruction
        movw %sp, %cx
        lssw %cs:own_stack, %sp
        assert_eqw %cx, $\top
        assert_eqw %cs:handled, $1
        movw $0, %cs:handled
.endm

        cmpl $0, %eax
        je first
        exit_guest $0
first:
        features
        testl $FEATURE_TWO_VIEWS, %eax
        assert jnz, "the region has two views"
        movw %sp, own_stack
        movw $handler, 0 * 4
        movw $0, 0 * 4 + 2
        movw $handler, 6 * 4
        movw $0, 6 * 4 + 2

        movw $ROUNDS, %di
round:
        faults PRIVATE, 0x100, divw %bx
        faults SHARED, 0x100, divw %bx
        faults PRIVATE, 0x2003, ud2
        faults SHARED, 0x2003, ud2
        faults PRIVATE, 0x4FFE, divw %bx
        faults SHARED, 0x4FFE, ud2
        # Pages that were not touched: the conversions above are all there were.
        faults PRIVATE, 0x7002, divw %bx
        faults SHARED, 0x7002, divw %bx
        decw %di
        jnz round
        exit_guest $0

# Goes on behind the instruction.
handler:
        movw $1, %cs:handled
        popw %ax
        addw $FAULTING, %ax
        pushw %ax
        iret

own_stack:
        .word 0, 0
handled:
        .word 0
