# strings.S - string instructions over borders of page states, in 64-bit mode
#
# shows:       REP MOVS, STOS, LODS, SCAS and CMPS of 8, 16, 32 and 64 bits run over pages that
#              are private and shared in turns, forwards and backwards, through either view: each
#              page of the other state converts once and reads zero, all others keep their bytes,
#              and the registers are what they would be in RAM.
# modes:       long
# vcpus:       1-64, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=164 to_shared=164 implicit=160 explicit=168

# This guest uses no macros of pyvmm.inc: it is the protocol's ports and nothing else.

        .set PRIVATE_VIEW, 0x40000
        .set SHARED_VIEW, 0xC0000
        .set PAGE, 0x1000
        .set PAGES, 4                   # 0 and 2 are in the view's state before; 1 and 3 are not
        .set TO_SHARED, 1
        .set TO_PRIVATE, 2
        .set FILL, 0x5A                 # in each byte of the pages that do not convert

# check SEEN, EXPECTED: 64 bits; ends the run unless they are equal.
.macro check seen, expected
        movq \expected, %r15
        cmpq %r15, \seen
        je check_held_\@
        movq \seen, %r14
        movq %r14, check_seen_\@
        movq %r15, check_expected_\@
        movl $check_record_\@, %eax
        movl $0x610, %edx
        outl %eax, %dx
        jmp .
check_record_\@:
        .word 0, 0
check_seen_\@:
        .quad 0
check_expected_\@:
        .quad 0
        .asciz "strings.S"
        .asciz "\seen == \expected"
check_held_\@:
.endm

# ring GPA, PAGES, OPERATION: converts by the doorbell, which must answer 0.
.macro ring gpa, pages, operation
        movl $0x600, %edx
        movl \gpa, %eax
        outl %eax, %dx
        movl $0x604, %edx
        movl \pages, %eax
        outl %eax, %dx
        movl $0x608, %edx
        movl \operation, %eax
        outl %eax, %dx
        movl $0x60C, %edx
        inl %dx, %eax
        check %rax, $0
.endm

        testl %edi, %edi                # EDI is the vCPU's index
        jnz end

# each VIEW, HERE, THERE: all instructions through a view, whose state is HERE
.macro each view, here, there
        .irp backwards, 0, 1
        .irp width, 1, 2, 4, 8
        movq $\width, %r8
        movq $\backwards, %r9
        movq $\view, %r12
        movl $\here, %r10d
        movl $\there, %r11d
        call try_all
        .endr
        .endr
.endm
        each PRIVATE_VIEW, TO_PRIVATE, TO_SHARED
        each SHARED_VIEW, TO_SHARED, TO_PRIVATE
end:
        xorl %eax, %eax
        outl %eax, $0xF4
        jmp .

# R8 = width, R9 = whether backwards, R12 = view, R10D = its state's number, R11D = the other's

# prepare: pages 0, 2, … are filled, pages 1, 3, … of the other state
prepare:
        ring $PRIVATE_VIEW, $PAGES, %r10d
        movl %r12d, %edi
        movl $PAGES * PAGE, %ecx
        movb $FILL, %al
        cld
        rep stosb
        .irp page, 1, 3
        ring $PRIVATE_VIEW+\page*PAGE, $1, %r11d
        .endr
        ret

# direction: sets DF, and RDI and RSI to the first element at R13, RCX to the elements that the pages
# have but for one at the end
direction:
        movq $PAGES * PAGE, %rax
        xorl %edx, %edx
        divq %r8
        leaq -1(%rax), %rcx
        movq %r13, %rsi
        cld
        testq %r9, %r9
        jz 1f
        movq %rcx, %rax
        decq %rax
        imulq %r8, %rax
        addq %rax, %rsi
        std
1:      movq %rsi, %rdi
        ret

# by_width INSTRUCTION: rep INSTRUCTION with R8's suffix
.macro by_width prefix, instruction
        cmpl $2, %r8d
        jb by_width_1_\@
        je by_width_2_\@
        cmpl $8, %r8d
        jb by_width_4_\@
        \prefix \instruction\()q
        jmp by_width_end_\@
by_width_1_\@:
        \prefix \instruction\()b
        jmp by_width_end_\@
by_width_2_\@:
        \prefix \instruction\()w
        jmp by_width_end_\@
by_width_4_\@:
        \prefix \instruction\()l
by_width_end_\@:
.endm

# check_ram: RAM has what the pages had: FILL where they kept it, zeros where they converted
check_ram:
        cld
        movl $ram, %esi
        .rept PAGES / 2
        movl $PAGE, %ecx
        movl $FILL, %eax
        movl %esi, %edi
        repe scasb
        check %rcx, $0
        movl $PAGE - 8, %ecx            # the last element of the last page is not copied
        xorl %eax, %eax
        repe scasb
        check %rcx, $0
        addl $2 * PAGE, %esi
        .endr
        ret

try_all:
        # MOVS to RAM
        call prepare
        movl $ram, %edi
        movl $PAGES * PAGE, %ecx
        xorl %eax, %eax
        cld
        rep stosb
        movl $ram, %r13d
        call direction
        movq %rdi, %rbx
        movq %r12, %r13
        call direction
        movq %rbx, %rdi
        by_width rep, movs
        check %rcx, $0
        call check_ram

        # CMPS with what was copied; the elements are equal to the end
        call prepare
        movl $ram, %r13d
        call direction
        movq %rdi, %rbx
        movq %r12, %r13
        call direction
        movq %rbx, %rdi
        by_width repe, cmps
        setz %al
        movzbl %al, %eax
        check %rax, $1
        check %rcx, $0

        # SCAS for what is nowhere
        call prepare
        movq %r12, %r13
        call direction
        movq $0x7777777777777777, %rax
        by_width repne, scas
        setz %al
        movzbl %al, %eax
        check %rax, $0
        check %rcx, $0

        # LODS: the last element is in page 0 backwards, and forwards in the last page, which was zeroed
        call prepare
        movq %r12, %r13
        call direction
        movq $-1, %rax
        by_width rep, lods
        movzbl %al, %eax
        movl $FILL, %ebx
        testq %r9, %r9
        jnz 1f
        xorl %ebx, %ebx
1:      check %rax, %rbx
        check %rcx, $0

        # STOS: the same bytes everywhere afterwards, but for the last element
        call prepare
        movq %r12, %r13
        call direction
        movq $0x3333333333333333, %rax
        by_width rep, stos
        check %rcx, $0
        cld
        movq %r12, %rdi
        movl $PAGES * PAGE - 8, %ecx
        repe scasb
        setz %al
        movzbl %al, %eax
        check %rax, $1
        cld
        ret

        .balign 4096
ram:    .skip PAGES * PAGE
