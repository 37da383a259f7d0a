# convert.S - converts every page of the region in every way
#
# shows:       each page becomes private and shared again by reads and writes of 8,
#              16 and 32 bits through the other view; a converted page reads zero
#              but for what was written, its neighbours keep every byte. With one
#              view the doorbell converts in front of each access. Odd pages end
#              private.
# vcpus:       1-28, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=416 to_shared=384 implicit=800 explicit=0
# expect --views 1: pass
# conversions --views 1: to_private=416 to_shared=384 implicit=0 explicit=800

        .include "pyvmm.inc"
        guest "convert.S"

        .set JUNK, 0xDEADBEEF
        .set WRITTEN, 0x11223344

# read VIEW, INSTRUCTION, REGISTER, MASK: the access at ES:DI that converts the page reads zero.
.macro read view, instruction, register, mask
        \view\()_page %es, %cx
        movl $JUNK, %eax
        \instruction %es:(%di), \register
        andl $\mask, %eax
        assert_eq %eax, $0
        check_page $0
        fill_page $JUNK
.endm

# write VIEW, INSTRUCTION, REGISTER, MASK: the write at ES:DI that converts the page
# leaves its own bytes there and zeros around them.
.macro write view, instruction, register, mask
        \view\()_page %es, %cx
        movl $WRITTEN, %eax
        \instruction \register, %es:(%di)
        assert_eq %es:(%di), $(WRITTEN&\mask)
        movl $0, %es:(%di)
        check_page $0
        fill_page $JUNK
.endm

# there_and_back ACCESS, ...: makes the page in CX private and shared again.
.macro there_and_back access, instruction, register, mask
        \access private, \instruction, \register, \mask
        \access shared, \instruction, \register, \mask
.endm

        only_vcpu_0
        find_views

        for_each_page prepare, %cx
        shared_page %es, %cx
        call pattern
        fill_page %ebp
        next_page prepare, %cx

        for_each_page convert, %cx
        imulw $0x41, %cx, %di           # page 0 is touched at its first bytes, page 63 at its last
        andw $0xFFC, %di

        there_and_back read, movb, %al, 0xFF
        there_and_back read, movw, %ax, 0xFFFF
        there_and_back read, movl, %eax, 0xFFFFFFFF
        there_and_back write, movb, %al, 0xFF
        there_and_back write, movw, %ax, 0xFFFF
        there_and_back write, movl, %eax, 0xFFFFFFFF

        testw $1, %cx
        jz leave_shared
        private_page %es, %cx
        check_page $0
leave_shared:
        call pattern
        fill_page %ebp

        decw %cx                        # the page before is done: odd pages are private
        js first_page
        call point_at_done_page
        call pattern
        check_page %ebp
first_page:
        addw $2, %cx                    # the page behind is still shared
        cmpw $REGION_PAGES, %cx
        je last_page
        shared_page %es, %cx
        call pattern
        check_page %ebp
last_page:
        decw %cx
        next_page convert, %cx

        for_each_page final, %cx
        call point_at_done_page
        call pattern
        check_page %ebp
        next_page final, %cx

        exit_guest $0

# Points ES at page CX, which is private when odd.
point_at_done_page:
        testw $1, %cx
        jz done_page_is_shared
        private_page %es, %cx
        ret
done_page_is_shared:
        shared_page %es, %cx
        ret

# Returns in EBP what page CX is full of.
pattern:
        movzwl %cx, %ebp
        imull $0x01010101, %ebp
        xorl $0x5A3C6900, %ebp
        ret
