# faults.S - page faults on the way to conversions
#
# shows:       linear pages above 8 GiB are not present. Each touch is a page fault with the right
#              CR2 and error code; the handler maps one page of the region, through the view that
#              the touch is to see, and goes back; then the touch converts the page. So each is
#              done twice in the guest and once more in the VMM, and its bytes are right.
# modes:       long
# vcpus:       1-64, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=64 to_shared=64 implicit=128 explicit=0
# measures:    implicit

        .include "pyvmm.inc"
        guest "faults.S"

        .set DIRECTORY, 0x200000        # page tables of the guest's own, in RAM
        .set TABLE,     0x201000
        .set PRESENT_AND_WRITABLE, 3

        only_vcpu_0
        require_two_views
        set_handler 14, page_fault
        movabs $0x200000000, %rbp       # 8 GiB, the first linear address that is not mapped
        movq %cr3, %rbx
        movq (%rbx), %rbx
        andq $~0xFFF, %rbx
        movq $DIRECTORY + PRESENT_AND_WRITABLE, 8*8(%rbx)
        movq $TABLE + PRESENT_AND_WRITABLE, DIRECTORY

        xorl %ecx, %ecx
next_page:
        movl %ecx, %esi
        shll $12, %esi
        movl $PRIVATE_VIEW, %r8d        # what the handler is to map
        addl %esi, %r8d
        movl $2, %r9d                   # its error code: a write
        movq %rcx, 0x10(%rbp,%rsi)
        assert_eqq "0x10(%rbp,%rsi)", %rcx
        movl $SHARED_VIEW, %r8d
        addl %esi, %r8d
        xorl %r9d, %r9d                 # a read
        movq $0, TABLE(,%rcx,8)
        lea (%rbp,%rsi), %rdx
        invlpg (%rdx)
        assert_eqq "0x10(%rbp,%rsi)", $0
        incl %ecx
        cmpl $REGION_PAGES, %ecx
        jb next_page
        measure faults
        exit_guest $0

page_fault:
        push %rax
        push %rdx
        assert_eq "24(%rsp)", %r9d        # below the flags, which the macro has pushed
        movq %cr2, %rdx
        lea 0x10(%rbp,%rsi), %rax
        assert_eqq %rdx, %rax
        lea PRESENT_AND_WRITABLE(%r8), %rax
        movq %rax, TABLE(,%rcx,8)
        incl faults
        pop %rdx
        pop %rax
        addq $8, %rsp                   # the error code
        iretq

        .text 1
        .balign 8
faults:
        .quad 0
        .text 0
