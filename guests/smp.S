# smp.S - vCPUs convert at the same time
#
# shows:       1. each vCPU converts its own pages both ways; 2. all convert the same
#              pages the same way at once: each page is converted once, no write and
#              no locked increment is lost; 3. all touch the same pages through both
#              views at random (two views only): what is read was written through the
#              same view since the last conversion, or is zero; afterwards nothing old
#              comes back.
# vcpus:       1-28
# exits:       io memory
# params:      ROUNDS=8 FIGHT_ROUNDS=8 (0 leaves part 3 out)
# expect:      pass
# conversions: any
# conversions --param FIGHT_ROUNDS=0: to_private=1024 to_shared=1024 implicit=2048 explicit=0
# expect --views 1: pass
# conversions --views 1: to_private=1024 to_shared=1024 implicit=0 explicit=2048

        .include "pyvmm.inc"
        guest "smp.S"

        .ifndef ROUNDS
        .set ROUNDS, 8
        .endif
        .ifndef FIGHT_ROUNDS
        .set FIGHT_ROUNDS, 8
        .endif

        .set COUNTER, 0x40              # offset in a page, behind a byte of each vCPU
        .set FIGHT_WORD, 0x80           # where part 2 wrote nothing
        .set TAG_PRIVATE, 0x50
        .set TAG_SHARED, 0xA0

# EBX = the number of vCPUs, EBP = this one's index, ESI = arrivals at the next barrier

# barrier: waits until every vCPU has come here.
.macro barrier
        addl %ebx, %esi
        lock incl arrived
barrier_\@:
        pause
        cmpl %esi, arrived
        jb barrier_\@
.endm

        movl %eax, %ebp
        xorl %esi, %esi
        find_views
        barrier

# Part 1: pages index, index + vCPUs, ...

.macro own_page view, tag
        \view\()_page %es, %cx
        assert_eq %es:0, $0
        movw %bp, %ax
        movb $\tag, %ah
        movw %ax, %es:0
        assert_eq %es:0, %eax
        assert_eq %es:0xFFC, $0
        movl %eax, %es:0xFFC
.endm

        movw $ROUNDS, %dx
own_round:
        movw %bp, %cx
own_pages:
        xorl %eax, %eax
        own_page private, TAG_PRIVATE
        own_page shared, TAG_SHARED
        addw %bx, %cx
        cmpw $REGION_PAGES, %cx
        jb own_pages
        decw %dx
        jnz own_round
        barrier

# Part 2: all pages, all vCPUs the same way

.macro same_way view
        for_each_page \view\()_write, %cx
        \view\()_page %es, %cx
        movw %bp, %ax
        incb %al
        movb %al, %es:(%bp)             # vCPU n's byte holds n + 1
        lock incl %es:COUNTER
        next_page \view\()_write, %cx
        barrier
        for_each_page \view\()_check, %cx
        \view\()_page %es, %cx
        assert_eq %es:COUNTER, %ebx
        xorw %di, %di
\view\()_byte:
        movw %di, %ax
        incb %al
        assert_eqb %es:(%di), %al
        incw %di
        cmpw %bx, %di
        jb \view\()_byte
        next_page \view\()_check, %cx
        barrier
.endm

        movw $ROUNDS, %dx
same_round:
        same_way private
        same_way shared
        decw %dx
        jnz same_round

# Part 3: all pages, all vCPUs, both ways

        features
        testl $FEATURE_TWO_VIEWS, %eax
        jz end
        .if FIGHT_ROUNDS
        leal 1(%ebp), %edi              # random numbers: xorshift32, a seed of its own
        imull $0x9E3779B1, %edi, %edi
        movw $FIGHT_ROUNDS, %dx
fight_round:
        for_each_page fight, %cx
        .irp shift, "shll $13", "shrl $17", "shll $5"
        movl %edi, %eax
        \shift, %eax
        xorl %eax, %edi
        .endr
        testl $0x100, %edi
        jz fight_shared
        private_page %es, %cx
        movw $TAG_PRIVATE << 8, %ax
        jmp fight_access
fight_shared:
        shared_page %es, %cx
        movw $TAG_SHARED << 8, %ax
fight_access:
        testl $0x1000, %edi
        jz fight_read
        movw %ax, %es:FIGHT_WORD
fight_read:
        pushw %bx
        movw %es:FIGHT_WORD, %bx
        testw %bx, %bx
        jz fight_zero                   # another vCPU converted the page in between
        assert_eqw %bx, %ax
fight_zero:
        popw %bx
        next_page fight, %cx
        decw %dx
        jnz fight_round
        barrier

        testl %ebp, %ebp
        jnz end
        to_shared $PRIVATE_VIEW, $REGION_PAGES
        to_private $PRIVATE_VIEW, $REGION_PAGES
        for_each_page private_zero, %cx
        private_page %es, %cx
        check_page $0
        next_page private_zero, %cx
        to_shared $PRIVATE_VIEW, $REGION_PAGES
        for_each_page shared_zero, %cx
        shared_page %es, %cx
        check_page $0
        next_page shared_zero, %cx
        .endif
end:
        exit_guest $0

arrived:
        .long 0
