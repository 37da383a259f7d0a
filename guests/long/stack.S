# stack.S - a stack that lies in the region, over pages of both states
#
# shows:       PUSH of registers, numbers and flags, CALL, ENTER and in protected mode PUSHA find
#              their pages in the other state; what they push arrives, and a word that lies across
#              two pages, too. First through the private view, then through the shared one.
# modes:       protected long
# vcpus:       1-64, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=4 to_shared=4 implicit=8 explicit=0

        .include "pyvmm.inc"
        guest "stack.S"

        .set PAGES, 4

# at_end PAGE: the stack ends where page PAGE of the view in BX begins; what follows goes below.
.macro at_end page
        lea \page * PAGE_SIZE(BX), SP
.endm

        only_vcpu_0
        require_two_views
        mov SP, ram_stack
        mov $PRIVATE_VIEW, BX
        call use_stack
        mov $SHARED_VIEW, BX
        call use_stack
        exit_guest $0

# Uses pages 0 to 3 of the view at BX.
use_stack:
        mov $0x1234, SI
        at_end 1
        push SI
        push $0x5678
        pushf
        pop AX
        testb $2, %al
        assert jnz, "bit 1 of FLAGS is always set"
        pop AX
        assert_eq %eax, $0x5678
        pop AX
        assert_eq %eax, $0x1234

        at_end 2
        movl $0, %ecx
        call next
        assert_eq %ecx, $1
        mov $called, AX
        call *AX
        assert_eq %ecx, $2
        mov $0x77, BP
        enter $16, $0
        leave
        assert_eq %ebp, $0x77

        at_end 3
        .if PYVMM_BITS == 32
        movl $1, %ecx
        movl $2, %edx
        movl $3, %esi
        movl $4, %edi
        movl $5, %ebp
        pusha
        movl $0, %ecx
        movl $0, %edx
        movl $0, %ebp
        popa
        assert_eq %ecx, $1
        assert_eq %edx, $2
        assert_eq %ebp, $5
        assert_eq %edi, $4
        .else
        push SI
        .endif

        at_end 4                        # each page has been touched once
        sub $WORD, SP
        push SI
        pop AX
        at_end 3
        add $WORD / 2, SP
        mov $0x11223344, SI
        push SI                         # across pages 2 and 3
        pop AX
        assert_eq %eax, $0x11223344
        mov ram_stack, SP
        sub $WORD, SP                   # the address that the call has pushed
        ret
next:
        incl %ecx
        ret
called:
        incl %ecx
        ret

        .text 1
        .balign 8
ram_stack:
        .quad 0
        .text 0
