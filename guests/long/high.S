# high.S - the region at 4 GiB, by doorbell and by touch
#
# shows:       the doorbell's upper halves name the region at 4 GiB, once: the next request has
#              zeros in them. One request converts all 4 MiB; pages then read zero; a range
#              that reaches past the view's end, or whose count has an upper half, changes nothing.
# modes:       long
# vcpus:       1-64, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=1092 to_shared=1092 implicit=128 explicit=2056
# expect --views 1: pass
# conversions --views 1: to_private=1028 to_shared=1028 implicit=0 explicit=2056

        .include "pyvmm.inc"
        guest "high.S"

        .set FILL, 0x5A5A5A5A
        .set TOUCHED, 64                # pages that convert one by one, in the middle

# request GPA, PAGES, OPERATION: of 64 bits each; EAX is the answer.
.macro request gpa, pages, operation
        mov \gpa, %rax
        push %rax
        mov \pages, %rcx
        mov \operation, %rdx
        pop %rax
        doorbell %rax, %rcx, %rdx
.endm

        only_vcpu_0
        movabs $HIGH_PRIVATE_VIEW, %rbx
        movabs $HIGH_SHARED_VIEW, %rsi
        features
        testl $FEATURE_TWO_VIEWS, %eax
        cmovz %rbx, %rsi

        call all_pages                  # by the doorbell
        features
        testl $FEATURE_TWO_VIEWS, %eax
        jz refused
        movl $TOUCHED, %ecx             # by touch
touch:
        movl %ecx, %edx
        shlq $12, %rdx
        movq %rcx, 8(%rbx,%rdx)
        assert_eqq "8(%rbx,%rdx)", %rcx
        assert_eqq "8(%rsi,%rdx)", $0
        incl %ecx
        cmpl $2 * TOUCHED, %ecx
        jb touch

refused:
        request %rbx, $HIGH_REGION_PAGES+1, $TO_PRIVATE
        assert_eq %eax, $-EINVAL
        movabs $0x100000001, %rcx
        doorbell %rbx, %rcx, $TO_PRIVATE
        assert_eq %eax, $-EINVAL
        lea 0x3FC000(%rbx), %rdi
        doorbell %rdi, $5, $TO_PRIVATE
        assert_eq %eax, $-EINVAL
        doorbell %rdi, $4, $TO_PRIVATE
        assert_eq %eax, $0
        doorbell %rdi, $4, $TO_SHARED
        assert_eq %eax, $0

        movl $1, %eax                   # upper halves are used once
        movl $PORT_DOORBELL_GPA_HIGH, %edx
        outl %eax, %dx
        movl $PORT_DOORBELL_PAGES_HIGH, %edx
        outl %eax, %dx
        call ring                       # with both: refused
        assert_eq %eax, $-EINVAL
        call ring                       # with none: GPA 0x3FC000 is RAM
        assert_eq %eax, $-EINVAL
        exit_guest $0

ring:
        movl $TO_PRIVATE, %eax
        movl $PORT_DOORBELL_RING, %edx
        outl %eax, %dx
        movl $PORT_DOORBELL_RESULT, %edx
        inl %dx, %eax
        ret

# Converts the region there and back, and looks at its first and its last page.
all_pages:
        movl $FILL, (%rsi)
        to_private %rbx, $HIGH_REGION_PAGES
        fill_page %rbx, $FILL
        lea 0x3FF000(%rbx), %rdi
        check_page %rdi, $0
        fill_page %rdi, $FILL
        check_page %rbx, $FILL
        to_shared %rbx, $HIGH_REGION_PAGES
        check_page %rsi, $0
        lea 0x3FF000(%rsi), %rdi
        check_page %rdi, $0
        ret
