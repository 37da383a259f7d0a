# storm.S - pseudo-random accesses and conversions against a model
#
# shows:       each vCPU has its own pages and, for each of them, a model in plain RAM:
#              its state and what 32 of its bytes hold. A round reads or writes 8, 16
#              or 32 bits through a view chosen at random, or rings the doorbell for a
#              range of either state; then what the model says must be there. With one
#              view an access goes to whatever state the page has. The model counts
#              conversions: its four sums are the measures, to compare with the VMM's.
# vcpus:       1-28
# exits:       io memory
# params:      SEED=1 ROUNDS=2000
# expect:      pass
# measures:    to_private to_shared implicit explicit
# expect --views 1: pass

        .include "pyvmm.inc"
        guest "storm.S"

        .ifndef SEED
        .set SEED, 1
        .endif
        .ifndef ROUNDS
        .set ROUNDS, 2000               # of each vCPU
        .endif

        .set MODEL, 0x1000              # segment: 32 bytes a page, what the page holds at its window
        .set MODEL_STATES, 0x800        # in that segment: a byte a page, 0 shared or 1 private
        .set WINDOW, 32

# This vCPU's variables, below its stack pointer
        .set first_page, -4             # the first of its pages
        .set pages,      -8             # their number
        .set seed,       -12
        .set rounds,     -16
        .set implicit,   -20
        .set explicit,   -24
        .set to_private_count, -28
        .set to_shared_count,  -32
        .set width,      -36            # of this round's access: 1, 2 or 4
        .set two_views,  -40

        movw %sp, %bp
        subw $40, %sp
        movl %ebx, vcpus

        pushl %eax                      # pages = 64 / vCPUs, first_page = index * pages
        movl $REGION_PAGES, %eax
        xorl %edx, %edx
        divl %ebx
        movl %eax, pages(%bp)
        popl %ecx
        mull %ecx
        movl %eax, first_page(%bp)
        imull $0x9E3779B1, %ecx, %ecx
        addl $SEED, %ecx
        orl $0x10000, %ecx              # never zero, which would stay zero
        movl %ecx, seed(%bp)
        xorl %eax, %eax
        movl %eax, implicit(%bp)
        movl %eax, explicit(%bp)
        movl %eax, to_private_count(%bp)
        movl %eax, to_shared_count(%bp)
        features
        andl $FEATURE_TWO_VIEWS, %eax
        movl %eax, two_views(%bp)
        movw $MODEL, %ax
        movw %ax, %fs
        movl $ROUNDS, rounds(%bp)

round:
        call random
        movl %eax, %esi                 # what this round does
        xorl %edx, %edx
        divl pages(%bp)
        movl %edx, %ebx                 # EBX = the page
        addl first_page(%bp), %ebx
        testl $0x70000000, %esi         # one in eight rings the doorbell
        jz explicit_round

# An access: EDI = its offset in the window, AL = the state its view has
        movl %esi, %edi
        shrl $20, %edi
        andl $WINDOW - 1, %edi
        cmpl $WINDOW - 4, %edi
        jbe offset_known
        movl $WINDOW - 4, %edi
offset_known:
        movl %esi, %ecx
        shrl $18, %ecx
        andb $3, %cl                    # a width of 8 comes out as 1
        movl $1, %eax
        shll %cl, %eax
        andl $7, %eax
        jnz width_known
        incl %eax
width_known:
        movl %eax, width(%bp)

        movb %fs:MODEL_STATES(%bx), %al
        cmpl $0, two_views(%bp)
        je access                       # one view: it has the state it has
        btl $27, %esi
        setc %al
        cmpb %al, %fs:MODEL_STATES(%bx)
        je access
        incl implicit(%bp)
        call model_converts
access:
        call segment                    # ES:EDI = the bytes in the region, FS:EDX = in the model
        movl %ebx, %edx
        shll $5, %edx
        addl %edi, %edx
        movl %ebx, %ecx                 # the window: a page's first bytes or its last, in turn
        testb $1, %cl
        jz window_known
        addl $PAGE_SIZE - WINDOW, %edi
window_known:
        btl $26, %esi
        jc write

        movl width(%bp), %ecx
        cmpb $2, %cl
        je read_16
        ja read_32
        movb %es:(%di), %al
        movb %fs:(%edx), %cl
        assert_eqb %al, %cl
        jmp next
read_16:
        movw %es:(%di), %ax
        movw %fs:(%edx), %cx
        assert_eqw %ax, %cx
        jmp next
read_32:
        movl %es:(%di), %eax
        movl %fs:(%edx), %ecx
        assert_eq %eax, %ecx
        jmp next
write:
        call random
        movl width(%bp), %ecx
        cmpb $2, %cl
        je write_16
        ja write_32
        movb %al, %es:(%di)
        movb %al, %fs:(%edx)
        jmp next
write_16:
        movw %ax, %es:(%di)
        movw %ax, %fs:(%edx)
        jmp next
write_32:
        movl %eax, %es:(%di)
        movl %eax, %fs:(%edx)
        jmp next

# The doorbell: ECX = 1 to 8 pages from EBX on, as far as this vCPU has them
explicit_round:
        movl %esi, %ecx
        shrl $20, %ecx
        andl $7, %ecx
        incl %ecx
        movl first_page(%bp), %eax
        addl pages(%bp), %eax
        subl %ebx, %eax
        cmpl %eax, %ecx
        jbe range_known
        movl %eax, %ecx
range_known:
        btl $19, %esi
        setc %dl
        movzbl %dl, %edx
        incl %edx                       # TO_SHARED or TO_PRIVATE
        movl %ebx, %edi
        shll $12, %edi
        addl $PRIVATE_VIEW, %edi
        doorbell %edi, %ecx, %edx
        assert_eq %eax, $0
        decl %edx
        movb %dl, %al
explicit_page:
        cmpb %al, %fs:MODEL_STATES(%bx)
        je explicit_next
        incl explicit(%bp)
        call model_converts
explicit_next:
        incw %bx
        loop explicit_page

next:
        decl rounds(%bp)
        jnz round

# All that is left must be as the model says, too
        movl first_page(%bp), %ebx
        movl pages(%bp), %ecx
final:
        movb %fs:MODEL_STATES(%bx), %al
        call segment
        xorw %di, %di
        testb $1, %bl
        jz final_window
        movw $PAGE_SIZE - WINDOW, %di
final_window:
        movl %ebx, %esi
        shll $5, %esi
        pushw %cx
        movw $WINDOW, %cx
        cld
        repe cmpsb %es:(%di), %fs:(%si)
        popw %cx
        assert je, "the page holds at the end what the model says"
        incw %bx
        loop final

        .irp count, to_private_count, to_shared_count, implicit, explicit
        movl \count(%bp), %eax
        lock addl %eax, sum_of_\count
        .endr
        movl $1, %eax
        lock xaddl %eax, ended
        incl %eax
        cmpl %eax, vcpus
        jne not_the_last
        .irp count, to_private_count, to_shared_count, implicit, explicit
        measure sum_of_\count
        .endr
not_the_last:
        exit_guest $0

# The model's page EBX gets state AL and is zero.
model_converts:
        pushal
        movb %al, %fs:MODEL_STATES(%bx)
        incl to_private_count(%bp)
        testb %al, %al
        jnz model_zero
        decl to_private_count(%bp)
        incl to_shared_count(%bp)
model_zero:
        shlw $5, %bx
        movw $WINDOW, %cx
model_byte:
        movb $0, %fs:(%bx)
        incw %bx
        loop model_byte
        popal
        ret

# Returns ES = page EBX in the view of state AL; the one view when there is one.
segment:
        pushw %bx
        shlw $8, %bx
        addw $PRIVATE, %bx
        cmpl $0, two_views(%bp)
        je segment_known
        testb %al, %al
        jnz segment_known
        addw $SHARED - PRIVATE, %bx
segment_known:
        movw %bx, %es
        popw %bx
        ret

# Returns EAX = the next of Marsaglia's xorshift32.
random:
        pushl %ecx
        movl seed(%bp), %eax
        .irp shift, "shll $13", "shrl $17", "shll $5"
        movl %eax, %ecx
        \shift, %ecx
        xorl %ecx, %eax
        .endr
        movl %eax, seed(%bp)
        popl %ecx
        ret

vcpus:  .long 0
ended:  .long 0
        .irp count, to_private_count, to_shared_count, implicit, explicit
sum_of_\count:
        .long 0
        .endr
