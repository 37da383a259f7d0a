# locked.S - read-modify-write instructions on pages of the other state
#
# shows:       LOCK XADD, CMPXCHG, BTS, INC, NEG, XOR, and XCHG of 8 to 64 bits convert their page
#              by their read, see zero there, and leave what they should; in both views.
# modes:       protected long
# vcpus:       1-64, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=14 to_shared=14 implicit=28 explicit=0
# conversions --mode protected: to_private=12 to_shared=12 implicit=24 explicit=0

        .include "pyvmm.inc"
        guest "locked.S"

# change INSTRUCTION, LEFT: on the page of BX + 0x800, first through the private view and then
# through the shared one; 32 bits there are LEFT then. EAX and ECX are 5 before.
.macro change instruction, left
        change_in BX, "\instruction", \left
        change_in SI, "\instruction", \left
.endm
.macro change_in view, instruction, left
        mov \view, DI
        movl $5, %eax
        movl $5, %ecx
        \instruction
        assert_eq "0x800(DI)", $\left
        assert_eq "0x804(DI)", $0
.endm

        only_vcpu_0
        require_two_views
        mov $PRIVATE_VIEW, BX
        mov $SHARED_VIEW, SI
        change "lock xaddl %eax, 0x800(DI)", 5
        change "lock xaddb %al, 0x800(DI)", 5
        change "lock cmpxchgl %ecx, 0x800(DI)", 0
        change "lock btsl $9, 0x800(DI)", 0x200
        change "lock incl 0x800(DI)", 1
        change "lock decw 0x800(DI)", 0xFFFF
        change "lock negl 0x800(DI)", 0
        change "lock notb 0x800(DI)", 0xFF
        change "lock xorl %ecx, 0x800(DI)", 5
        change "lock addw %cx, 0x800(DI)", 5
        change "xchgl %eax, 0x800(DI)", 5
        change "lock orb $0x81, 0x800(DI)", 0x81
        .if PYVMM_BITS == 64
        change "lock xaddq %rax, 0x800(DI)", 5
        change "xchgq %rcx, 0x800(DI)", 5
        .endif
        exit_guest $0
