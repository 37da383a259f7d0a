# frames.S - instructions and exceptions that write memory more than once
#
# shows:       pushal, a division by zero and an invalid opcode push what they push
#              through the wrong view: the page is converted once and all of it is there.
#              calls.S does it with far calls and INT, exceptions.S with exceptions alone,
#              irq.S with FRAMES=1 with timer interrupts. `emulated` needs a KVM that
#              delivers exceptions by its own emulator; hardware that cannot push spins
#              until the deadline.
# vcpus:       1-28, the first one works
# exits:       io memory, and shutdown on emulated
# expect:      pass
# conversions: to_private=12 to_shared=12 implicit=24 explicit=0
# expect emulated: pass | fail | deadline
# expect --views 1: fail exit_code=1

        .include "pyvmm.inc"
        guest "frames.S"

        .set ROUNDS, 4
        .set TOP, 0x100                 # of each stack in the region

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

# frame VIEW, INSTRUCTION: an exception's frame.
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

.macro all_registers view
        movl $4, %ecx
        movl $0x22222222, %edi
        movl $0x11111111, %ebx
        pushes \view, pushal
        assert_eqw %cx, $TOP-32
        assert_eq %es:TOP-4, $0         # EAX
        assert_eqw %es:TOP-8, $4        # ECX
        assert_eqw %es:TOP-12, $4       # EDX, the page
        assert_eq %es:TOP-16, $0x11111111
        assert_eqw %es:TOP-20, $TOP     # ESP
        assert_eq %es:TOP-24, %ebp
        assert_eq %es:TOP-28, %esi
        assert_eq %es:TOP-32, $0x22222222
.endm

        only_vcpu_0
        require_two_views
        movw $fault, 0 * 4              # #DE, at the instruction
        movw $fault, 6 * 4              # #UD, at the instruction

        movw $ROUNDS, %si
round:
        movw $1, %dx
        frame PRIVATE, divb %ah
        frame SHARED, divb %ah
        movw $2, %dx
        frame PRIVATE, ud2
        frame SHARED, ud2
        movw $4, %dx
        all_registers PRIVATE
        all_registers SHARED
        decw rounds
        jnz round
        exit_guest $0

# Returns AX = the IP on top of its frame.
fault:
        popw %ax
        addw $2, %ax                    # both instructions that fault have two bytes
        pushw %ax
        subw $2, %ax
        iretw

rounds: .word ROUNDS
own_stack:
        .word 0, 0
