# calls.S - far calls and INT, which push more than one word
#
# shows:       a far call and an interrupt by INT push what they push through the wrong
#              view: the page is converted once and all of it is there. `emulated` is told
#              of one word and cannot know the others: there the run ends and says so, or
#              spins until the deadline on hardware that cannot push.
# vcpus:       1-28, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=8 to_shared=8 implicit=16 explicit=0
# expect emulated: fail | deadline
# expect --views 1: fail exit_code=1

        .include "pyvmm.inc"
        guest "calls.S"

        .set ROUNDS, 4
        .set TOP, 0x100                 # of each stack in the region
        .set ALIAS, 0x10                # a CS from which the guest can be seen, too

# pushes VIEW, INSTRUCTION: INSTRUCTION runs while SS:SP is in page DX. ES is its segment.
.macro pushes view, instruction:vararg
        movw %dx, %ax
        shlw $8, %ax
        addw $\view, %ax
        movw %ax, %es
        movw %sp, %cs:own_stack
        movw %ax, %ss
        movw $TOP, %sp
        xorw %ax, %ax
instruction_\@:
        \instruction
behind_\@:
        movw %sp, %cx
        lssw %cs:own_stack, %sp
        assert_eq %es:TOP, $0
        assert_eq %es:0, $0
        .set INSTRUCTION, instruction_\@
        .set BEHIND, behind_\@
.endm

# frame VIEW, INSTRUCTION: an interrupt's frame.
.macro frame view, instruction:vararg
        pushes \view, \instruction
        assert_eqw %cx, $TOP
        cmpw $INSTRUCTION, %ax          # what the handler saw on its stack
        assert jae, "the frame's IP is the instruction's or the next one's"
        cmpw $BEHIND, %ax
        assert jbe, "the frame's IP is the instruction's or the next one's"
        assert_eqw %es:TOP-4, $0        # CS
        movw %es:TOP-2, %ax
        andw $0x0202, %ax
        assert_eqw %ax, $0x0002         # FLAGS: bit 1 is always set, interrupts are off
.endm

.macro far_call view
        pushes \view, call_from_alias
        assert_eqw %cx, $TOP-4
        assert_eqw %es:TOP-4, $BEHIND-(ALIAS<<4)
        assert_eqw %es:TOP-2, $ALIAS
.endm

# Calls the next instruction, from a CS that is not 0.
.macro call_from_alias
        ljmp $ALIAS, $alias_\@ - (ALIAS << 4)
alias_\@:
        lcall $0, $called_\@
called_\@:
.endm

        only_vcpu_0
        require_two_views
        movw $trap, 0x40 * 4            # INT, behind it

        movw $ROUNDS, %si
round:
        movw $0, %dx
        frame PRIVATE, int $0x40
        frame SHARED, int $0x40
        movw $1, %dx
        far_call PRIVATE
        far_call SHARED
        decw rounds
        jnz round
        exit_guest $0

# Returns AX = the IP on top of its frame.
trap:
        popw %ax
        pushw %ax
        iretw

rounds: .word ROUNDS
own_stack:
        .word 0, 0
