# doorbell.S - converts pages by asking for it
#
# shows:       explicit conversions of pages and ranges by either view's GPA; asking
#              for the state that a page has keeps its contents; everything unaligned,
#              empty, outside, too long or unknown answers -EINVAL and changes
#              nothing; the same by the hypercall where the VMM offers it, elsewhere
#              once more by the doorbell: the conversions are the same.
# vcpus:       1-28, the first one works
# exits:       io (and hypercall, where PORT_FEATURES has FEATURE_HYPERCALL)
# expect:      pass
# conversions: to_private=135 to_shared=134 implicit=0 explicit=269
# expect --views 1: pass
# conversions --views 1: to_private=134 to_shared=134 implicit=0 explicit=268

        .include "pyvmm.inc"
        guest "doorbell.S"

        .set MARK, 0xC0FFEE11
        .set LAST_PAGE, REGION_PAGES - 1
        .set LAST_OFFSET, LAST_PAGE * PAGE_SIZE

# answer GPA, PAGES, OPERATION, RESULT
.macro answer gpa, pages, operation, result
        doorbell \gpa, \pages, \operation
        assert_eq %eax, \result
.endm

# invalid GPA, PAGES, OPERATION: is refused.
.macro invalid gpa, pages, operation
        answer \gpa, \pages, \operation, $-EINVAL
.endm

# pages_are VALUE, VIEW, FIRST, PAGES: each of these pages is full of VALUE in the view
# that has the pages' state, so that looking converts nothing.
.macro pages_are value, view, first, pages
        movw $\first, %cx
pages_are_\@:
        segment_in_view \view
        check_page \value
        incw %cx
        cmpw $\first + \pages, %cx
        jb pages_are_\@
.endm

# fill_pages VALUE, VIEW, FIRST, PAGES
.macro fill_pages value, view, first, pages
        movw $\first, %cx
fill_pages_\@:
        segment_in_view \view
        fill_page \value
        incw %cx
        cmpw $\first + \pages, %cx
        jb fill_pages_\@
.endm

# segment_in_view private|shared: ES at page CX, without asking for anything.
.macro segment_in_view view
        movw %cx, %ax
        shlw $8, %ax
        addw \view\()_base, %ax
        movw %ax, %es
.endm

        only_vcpu_0
        find_views
        movw shared_segment, %ax
        movw %ax, shared_base

# One page, there and back
        fill_pages $MARK, shared, 2, 3
        answer $PRIVATE_VIEW+0x3000, $1, $TO_PRIVATE, $0
        pages_are $0, private, 3, 1
        fill_pages $MARK+1, private, 3, 1
        answer $PRIVATE_VIEW+0x3000, $1, $TO_PRIVATE, $0
        pages_are $MARK+1, private, 3, 1      # asked again: nothing happened
        answer $PRIVATE_VIEW+0x3000, $1, $TO_SHARED, $0
        pages_are $0, shared, 3, 1
        pages_are $MARK, shared, 2, 1
        pages_are $MARK, shared, 4, 1
        answer $PRIVATE_VIEW+0x2000, $1, $TO_SHARED, $0
        pages_are $MARK, shared, 2, 1

# The whole region, then a range inside it
        fill_pages $MARK, shared, 0, REGION_PAGES
        answer $PRIVATE_VIEW, $REGION_PAGES, $TO_PRIVATE, $0
        pages_are $0, private, 0, REGION_PAGES
        fill_pages $MARK, private, 0, REGION_PAGES
        answer $PRIVATE_VIEW+0x8000, $5, $TO_SHARED, $0
        pages_are $0, shared, 8, 5
        pages_are $MARK, private, 7, 1
        pages_are $MARK, private, 13, 1
        fill_pages $MARK+2, shared, 8, 5

# A range of both states: pages that change read zero, the others keep their contents
        answer $PRIVATE_VIEW+0x6000, $4, $TO_PRIVATE, $0
        pages_are $MARK, private, 6, 2
        pages_are $0, private, 8, 2
        pages_are $MARK+2, shared, 10, 3
        answer $PRIVATE_VIEW, $REGION_PAGES, $TO_SHARED, $0
        pages_are $0, shared, 0, 10
        pages_are $MARK+2, shared, 10, 3
        pages_are $0, shared, 13, REGION_PAGES-13

# The first and the last page
        answer $PRIVATE_VIEW, $1, $TO_PRIVATE, $0
        answer $PRIVATE_VIEW+LAST_OFFSET, $1, $TO_PRIVATE, $0
        pages_are $0, private, 0, 1
        pages_are $0, private, LAST_PAGE, 1
        pages_are $0, shared, 1, 1
        pages_are $0, shared, LAST_PAGE-1, 1

# What is refused. Even pages are private and odd ones shared while it is tried.
        answer $PRIVATE_VIEW, $REGION_PAGES, $TO_SHARED, $0
        for_each_page stripe, %cx
        testw $1, %cx
        jnz stripe_shared
        movzwl %cx, %eax
        shll $12, %eax
        addl $PRIVATE_VIEW, %eax
        to_private %eax, $1
        segment_in_view private
        fill_page $MARK+3
        jmp stripe_end
stripe_shared:
        segment_in_view shared
        fill_page $MARK+4
stripe_end:
        next_page stripe, %cx

        .irp operation, TO_SHARED, TO_PRIVATE
        # unaligned
        invalid $PRIVATE_VIEW+1, $1, $\operation
        invalid $PRIVATE_VIEW+0x800, $1, $\operation
        invalid $PRIVATE_VIEW+0x1000-1, $1, $\operation
        invalid $REGION_END-1, $1, $\operation
        # empty
        invalid $PRIVATE_VIEW, $0, $\operation
        invalid $PRIVATE_VIEW+1, $0, $\operation
        invalid $REGION_END, $0, $\operation
        # outside
        invalid $0, $1, $\operation
        invalid $0x7000, $1, $\operation
        invalid $PRIVATE_VIEW-0x1000, $1, $\operation
        invalid $PRIVATE_VIEW-0x1000, $2, $\operation
        invalid $0, $0x100, $\operation
        invalid $REGION_END, $1, $\operation
        invalid $SHARED_VIEW-0x1000, $1, $\operation
        invalid $SHARED_VIEW-0x1000, $2, $\operation
        invalid $0x100000, $1, $\operation
        invalid $0x80040000, $1, $\operation
        invalid $0xFFFFF000, $1, $\operation
        invalid $0xFFFFF000, $0x42, $\operation
        invalid $0xFFFFFFFF, $1, $\operation
        # past the end of the view
        invalid $PRIVATE_VIEW, $REGION_PAGES+1, $\operation
        invalid $PRIVATE_VIEW+LAST_OFFSET, $2, $\operation
        invalid $PRIVATE_VIEW, $0xC0, $\operation
        # sizes that wrap in 32 bits, pages that are negative
        invalid $PRIVATE_VIEW, $0x100000, $\operation
        invalid $PRIVATE_VIEW, $0x100001, $\operation
        invalid $PRIVATE_VIEW, $0x80000001, $\operation
        invalid $PRIVATE_VIEW, $0xFFFFFFFF, $\operation
        invalid $PRIVATE_VIEW+LAST_OFFSET, $0xFFFFFFFF, $\operation
        .endr
        # unknown
        invalid $PRIVATE_VIEW, $1, $0
        invalid $PRIVATE_VIEW, $1, $3
        invalid $PRIVATE_VIEW, $1, $4
        invalid $PRIVATE_VIEW, $1, $0x101
        invalid $PRIVATE_VIEW, $1, $0x10002
        invalid $PRIVATE_VIEW, $1, $0x80000001
        invalid $PRIVATE_VIEW, $1, $0xFFFFFFFF

        # the result stays until the next ring
        movw $PORT_DOORBELL_RESULT, %dx
        inl %dx, %eax
        assert_eq %eax, $-EINVAL
        answer $PRIVATE_VIEW, $1, $TO_PRIVATE, $0
        inl %dx, %eax
        assert_eq %eax, $0

        call stripes_are_unchanged

# The hypercall
        features
        andb $FEATURE_HYPERCALL, %al
        movb %al, has_hypercall
        call hypercall

# The shared view's GPA names the same pages
        features
        testl $FEATURE_TWO_VIEWS, %eax
        jz one_view
        answer $SHARED_VIEW+0x5000, $1, $TO_PRIVATE, $0
        pages_are $0, private, 5, 1
        answer $SHARED_VIEW+0x4000, $1, $TO_SHARED, $0
        pages_are $0, shared, 4, 1
        invalid $SHARED_VIEW, $REGION_PAGES+1, $TO_SHARED
        invalid $SHARED_VIEW+LAST_OFFSET, $2, $TO_PRIVATE
        invalid $SHARED_VIEW+1, $1, $TO_PRIVATE
        exit_guest $0
one_view:
        invalid $SHARED_VIEW, $1, $TO_PRIVATE
        invalid $SHARED_VIEW, $1, $TO_SHARED
        exit_guest $0

# Asserts that even pages are private, odd ones shared, with their contents.
stripes_are_unchanged:
        for_each_page unchanged, %cx
        testw $1, %cx
        jnz unchanged_shared
        segment_in_view private
        check_page $MARK+3
        jmp unchanged_next
unchanged_shared:
        segment_in_view shared
        check_page $MARK+4
unchanged_next:
        next_page unchanged, %cx
        ret

# hypercall_answer GPA, PAGES, ATTRIBUTES, RESULT: by the doorbell where it is all there is.
.macro hypercall_answer gpa, pages, attributes, result
        cmpb $0, has_hypercall
        je by_doorbell_\@
        map_gpa_range \gpa, \pages, \attributes
        jmp asked_\@
by_doorbell_\@:
        .ifc \attributes, $0
        doorbell \gpa, \pages, $TO_SHARED
        .else
        doorbell \gpa, \pages, $TO_PRIVATE
        .endif
asked_\@:
        assert_eq %eax, \result
.endm

# Leaves page states and contents as it finds them: striped.
hypercall:
        hypercall_answer $PRIVATE_VIEW+0x800, $1, $MAP_GPA_PRIVATE, $-EINVAL
        hypercall_answer $PRIVATE_VIEW, $0, $MAP_GPA_PRIVATE, $-EINVAL
        hypercall_answer $0x7000, $1, $MAP_GPA_PRIVATE, $-EINVAL
        hypercall_answer $REGION_END, $1, $MAP_GPA_PRIVATE, $-EINVAL
        hypercall_answer $0xFFFFF000, $1, $MAP_GPA_PRIVATE, $-EINVAL
        hypercall_answer $PRIVATE_VIEW, $REGION_PAGES+1, $0, $-EINVAL
        hypercall_answer $PRIVATE_VIEW, $0xFFFFFFFF, $0, $-EINVAL
        call stripes_are_unchanged

        hypercall_answer $PRIVATE_VIEW+0x1000, $1, $MAP_GPA_PRIVATE, $0
        pages_are $0, private, 1, 1
        pages_are $MARK+3, private, 0, 1
        pages_are $MARK+3, private, 2, 1
        fill_pages $MARK, private, 1, 1
        hypercall_answer $PRIVATE_VIEW+0x1000, $1, $MAP_GPA_PRIVATE, $0
        pages_are $MARK, private, 1, 1
        hypercall_answer $PRIVATE_VIEW+0x1000, $1, $0, $0
        pages_are $0, shared, 1, 1
        fill_pages $MARK+4, shared, 1, 1

        hypercall_answer $PRIVATE_VIEW, $REGION_PAGES, $MAP_GPA_PRIVATE, $0
        movw $1, %cx
hypercall_odd:
        segment_in_view private
        check_page $0
        addw $2, %cx
        cmpw $REGION_PAGES, %cx
        jb hypercall_odd
        hypercall_answer $PRIVATE_VIEW, $REGION_PAGES, $0, $0
        pages_are $0, shared, 0, REGION_PAGES
        ret

has_hypercall:
        .byte 0
private_base:
        .word PRIVATE
shared_base:
        .word SHARED
