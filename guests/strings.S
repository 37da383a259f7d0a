# strings.S - instructions that touch memory more than once, or more than one page
#
# shows:       movs, stos, lods, scas and cmps between views of different pages, both
#              directions and across page borders; stacks in the region; xchg, locked
#              and other read-modify-write instructions; unaligned accesses, and
#              accesses that straddle two pages, in every combination of states. Each
#              instruction must end as if both pages had been there at once.
#              What writes memory more than once is in frames.S.
# vcpus:       1-28, the first one works
# exits:       io memory
# expect:      pass
# conversions: to_private=86 to_shared=46 implicit=76 explicit=56
# expect --views 1: fail exit_code=1

        .include "pyvmm.inc"
        guest "strings.S"

        .set WORD, 0x4C3B2A19

# private_pages FIRST, PAGES and shared_pages: brings pages into a state beforehand.
.macro private_pages first, pages=1
        to_private $(PRIVATE_VIEW+(\first<<12)), $\pages
.endm
.macro shared_pages first, pages=1
        to_shared $(PRIVATE_VIEW+(\first<<12)), $\pages
.endm

# segment SREG, VALUE
.macro segment sreg, value
        pushw $\value
        popw \sreg
.endm
        .set page, PAGE_SEGMENT

# stack SEGMENT, POINTER: SS and SP at once. plain_stack: back to the vCPU's own.
.macro stack segment, pointer
        lssw %cs:stack_\@, %sp
        .pushsection .text, 1
stack_\@:
        .word \pointer, \segment
        .popsection
.endm
.macro plain_stack
        lssw %cs:own_stack, %sp
.endm

        only_vcpu_0
        movw %sp, own_stack
        require_two_views
        cld

# --- movs: pages 0-9. All pages are shared at first ---

        segment %es, SHARED
        fill_page $WORD

        # to the wrong view, 32 bits
        segment %ds, SHARED
        segment %es, PRIVATE+1*page
        xorw %si, %si
        xorw %di, %di
        movw $PAGE_SIZE / 4, %cx
        rep movsl
        assert_eqw %cx, $0
        assert_eqw %si, $PAGE_SIZE
        assert_eqw %di, $PAGE_SIZE
        check_page $WORD
        segment %es, SHARED
        check_page $WORD

        # from the wrong view, 16 bits: a converted page reads zero
        segment %ds, PRIVATE
        segment %es, SHARED+2*page
        fill_page $WORD
        xorw %si, %si
        xorw %di, %di
        movw $PAGE_SIZE / 2, %cx
        rep movsw
        check_page $0

        # both pages in the wrong view, one element of each width
        .irp width, b, w, l
        private_pages 4
        segment %ds, PRIVATE+3*page
        segment %es, SHARED+4*page
        movw $0x7F0, %si
        movw $0x10, %di
        movs\width
        assert_eq %es:0x10, $0
        shared_pages 3
        .endr

        # two pages to two pages, 8 bits, downwards
        segment %es, SHARED+5*page
        fill_page $WORD
        segment %es, SHARED+6*page
        fill_page $WORD+1
        segment %ds, SHARED+5*page
        segment %es, PRIVATE+7*page
        movw $2 * PAGE_SIZE - 1, %si
        movw %si, %di
        movw $2 * PAGE_SIZE, %cx
        std
        rep movsb
        cld
        assert_eqw %cx, $0
        assert_eqw %di, $0xFFFF
        check_page $WORD
        segment %es, PRIVATE+8*page
        check_page $WORD+1

# --- stos, lods, scas, cmps: pages 10-19 ---

        # across the border of two pages in the wrong view
        segment %es, PRIVATE+10*page
        movw $PAGE_SIZE - 8, %di
        movl $WORD, %eax
        movw $4, %cx
        rep stosl
        assert_eq %es:PAGE_SIZE-12, $0
        assert_eq %es:PAGE_SIZE-8, $WORD
        assert_eq %es:PAGE_SIZE-4, $WORD
        assert_eq %es:PAGE_SIZE, $WORD
        assert_eq %es:PAGE_SIZE+4, $WORD
        assert_eq %es:PAGE_SIZE+8, $0

        # one element of it in each page
        segment %es, PRIVATE+12*page
        movw $PAGE_SIZE - 2, %di
        movl $WORD, %eax
        stosl
        assert_eqw %es:PAGE_SIZE-2, $WORD&0xFFFF
        assert_eqw %es:PAGE_SIZE, $WORD>>16

        segment %ds, PRIVATE+14*page
        movw $PAGE_SIZE - 3, %si
        movl $WORD, %eax
        lodsl
        assert_eq %eax, $0
        movl $WORD, %eax
        lodsw
        assert_eq %eax, $WORD&0xFFFF0000
        lodsb
        assert_eqw %si, $PAGE_SIZE+4

        # scan for what is not there: each byte is zero
        segment %es, SHARED+16*page
        fill_page $WORD
        segment %es, PRIVATE+16*page
        movw $PAGE_SIZE - 32, %di
        movw $64, %cx
        movb $WORD >> 24, %al
        repne scasb
        assert_eqw %cx, $0
        movw $PAGE_SIZE - 32, %di
        movw $16, %cx
        xorl %eax, %eax
        repe scasl
        assert_eqw %cx, $0
        assert je, "pages 16 and 17 are zero"

        # both sides in the wrong view
        private_pages 19
        segment %ds, PRIVATE+18*page
        segment %es, SHARED+19*page
        xorw %si, %si
        xorw %di, %di
        movw $PAGE_SIZE / 4, %cx
        repe cmpsl
        assert je, "pages 18 and 19 are zero"
        assert_eqw %cx, $0
        movb $1, %es:0x345
        xorw %si, %si
        xorw %di, %di
        movw $PAGE_SIZE, %cx
        repe cmpsb
        assert jb, "0 in page 18 is below 1 in page 19"
        assert_eqw %si, $0x346

# --- stacks: pages 20-29 ---

        segment %ds, 0

        # a word, a long word, into the wrong view
        stack PRIVATE+20*page, 0x100
        pushw $0x1234
        stack PRIVATE+21*page, 0x200
        pushl $WORD
        plain_stack
        segment %es, PRIVATE+20*page
        assert_eqw %es:0xFE, $0x1234
        segment %es, PRIVATE+21*page
        assert_eq %es:0x1FC, $WORD

        # all registers, from the wrong view: eight zeros, but for SP that is skipped
        movl $WORD, %eax
        movl %eax, %ebx
        movl %eax, %ecx
        movl %eax, %edx
        movl %eax, %esi
        movl %eax, %edi
        movl %eax, %ebp
        stack PRIVATE+22*page, 0x300
        popal
        movw %sp, %cs:seen_sp
        plain_stack
        orl %ebx, %eax
        orl %ecx, %eax
        orl %edx, %eax
        orl %esi, %eax
        orl %edi, %eax
        orl %ebp, %eax
        assert_eq %eax, $0
        assert_eqw seen_sp, $0x320

        # a push in two pages, and the pop of it
        stack PRIVATE+23*page, PAGE_SIZE+2
        pushl $WORD
        popl %eax
        plain_stack
        assert_eq %eax, $WORD
        segment %es, PRIVATE+23*page
        assert_eqw %es:PAGE_SIZE-2, $WORD&0xFFFF
        assert_eqw %es:PAGE_SIZE, $WORD>>16

        # call and return
        stack PRIVATE+25*page, 0x400
        call near_call
after_near_call:
        plain_stack
        assert_eqw %ax, $0x5AFE
        segment %es, PRIVATE+25*page
        assert_eqw %es:0x3FE, $after_near_call
        stack SHARED+25*page, 0x400
        call near_call
        plain_stack
        assert_eqw %ax, $0x5AFE

        # push from and pop to memory, everything in the wrong view
        private_pages 27
        segment %es, SHARED+27*page
        stack PRIVATE+26*page, 0x500
        pushl %es:0x20
        pushl $WORD
        segment %es, PRIVATE+28*page
        popl %es:0x30
        popl %eax
        plain_stack
        assert_eq %eax, $0
        assert_eq %es:0x30, $WORD
        segment %es, PRIVATE+26*page
        assert_eq %es:0x4F8, $WORD

        # a pop from the wrong view: zero
        movl $WORD, %eax
        stack PRIVATE+29*page, 0x600
        popl %eax
        plain_stack
        assert_eq %eax, $0

# --- read-modify-write: pages 30-43 ---

# modify PAGE, INSTRUCTION: at ES:0x40 of a page in the wrong view, that holds WORD there.
.macro modify number, instruction:vararg
        segment %es, SHARED+\number*page
        fill_page $WORD
        segment %es, PRIVATE+\number*page
        movl $7, %eax
        movl $5, %ebx
        \instruction
.endm

        modify 30, xchgl %eax, %es:0x40
        assert_eq %eax, $0
        assert_eq %es:0x40, $7
        modify 31, lock xaddl %ebx, %es:0x40
        assert_eq %ebx, $0
        assert_eq %es:0x40, $5
        modify 32, lock incl %es:0x40
        assert_eq %es:0x40, $1
        modify 33, lock decw %es:0x40
        assert_eq %es:0x40, $0xFFFF
        modify 34, lock orb $0x81, %es:0x40
        assert_eq %es:0x40, $0x81
        modify 35, lock btsl $9, %es:0x40
        assert jnc, "the bit was zero"
        assert_eq %es:0x40, $0x200
        modify 36, lock cmpxchgl %ebx, %es:0x40         # 7 is not there: EAX becomes what is
        assert jne, "cmpxchg finds the values different"
        assert_eq %eax, $0
        assert_eq %es:0x40, $0
        segment %es, PRIVATE+37*page
        xorl %eax, %eax
        movl $5, %ebx
        lock cmpxchgl %ebx, %es:0x40                    # 0 is there
        assert je, "cmpxchg finds the values equal"
        assert_eq %es:0x40, $5
        segment %es, PRIVATE+38*page
        xorl %eax, %eax
        xorl %edx, %edx
        movl $WORD, %ebx
        movl $WORD+1, %ecx
        lock cmpxchg8b %es:0x40
        assert je, "cmpxchg8b finds the values equal"
        assert_eq %es:0x40, $WORD
        assert_eq %es:0x44, $WORD+1
        modify 39, addl %eax, %es:0x40
        assert_eq %es:0x40, $7
        modify 40, subw %bx, %es:0x40
        assert_eq %es:0x40, $0xFFFB
        modify 41, notb %es:0x40
        assert_eq %es:0x40, $0xFF
        modify 42, sbbl $0, %es:0x41
        modify 43, rorl $1, %es:0x43
        assert_eq %es:0x40, $0
        modify 44, shldl $8, %eax, %es:0x40
        assert_eq %es:0x40, $0
        modify 45, negl %es:0x40
        assert jnc, "neg of zero"

        # a bit offset that leads to another page
        segment %es, SHARED+46*page
        movl $PAGE_SIZE * 8 + 3, %eax
        private_pages 47
        btsl %eax, %es:0
        assert_eqb %es:PAGE_SIZE, $8
        assert_eq %es:0, $0

        # a table look-up
        segment %ds, PRIVATE+48*page
        movw $0x20, %bx
        movb $0x10, %al
        xlatb
        segment %ds, 0
        assert_eqb %al, $0

# --- unaligned, and in two pages: pages 50-63 ---

        segment %es, PRIVATE+49*page
        movl $WORD, %es:0x41
        assert_eq %es:0x41, $WORD
        assert_eqb %es:0x40, $0
        assert_eqb %es:0x45, $0
        segment %es, SHARED+49*page
        movw %es:0x41, %ax
        assert_eqw %ax, $0

# straddling WRONG: ES at page 50. Bit 0 of WRONG: page 50 is in the wrong view, else
# it is full of WORD; bit 1: page 51. Sets FIRST and SECOND to what the pages then hold.
.macro straddling wrong
        shared_pages 50, 2
        .set FIRST, 0
        .set SECOND, 0
        .if !(\wrong & 1)
        .set FIRST, WORD
        private_pages 50
        segment %es, PRIVATE+50*page
        fill_page $WORD
        .endif
        .if !(\wrong & 2)
        .set SECOND, WORD
        private_pages 51
        segment %es, PRIVATE+51*page
        fill_page $WORD
        .endif
        segment %es, PRIVATE+50*page
.endm

        .irp wrong, 1, 2, 3
        # reads
        straddling \wrong
        movl %es:PAGE_SIZE - 2, %eax
        assert_eq %eax, $(SECOND&0xFFFF)<<16|FIRST>>16
        straddling \wrong
        movl %es:PAGE_SIZE - 1, %eax
        assert_eq %eax, $(SECOND&0xFFFFFF)<<8|FIRST>>24
        straddling \wrong
        movw %es:PAGE_SIZE - 1, %ax
        assert_eqw %ax, $(SECOND&0xFF)<<8|FIRST>>24

        # writes leave the bytes around them
        movl $0x04030201, %eax
        straddling \wrong
        movl %eax, %es:PAGE_SIZE - 3
        assert_eq %es:PAGE_SIZE-4, $FIRST&0xFF|0x03020100
        assert_eq %es:PAGE_SIZE, $SECOND&0xFFFFFF00|0x04
        straddling \wrong
        movw %ax, %es:PAGE_SIZE - 1
        assert_eq %es:PAGE_SIZE-4, $FIRST&0xFFFFFF|0x01000000
        assert_eq %es:PAGE_SIZE, $SECOND&0xFFFFFF00|0x02

        # read-modify-write
        straddling \wrong
        xorl %eax, %es:PAGE_SIZE - 2
        assert_eq %es:PAGE_SIZE-4, $FIRST^0x02010000
        assert_eq %es:PAGE_SIZE, $SECOND^0x0403

        # the bytes in the middle of both pages
        assert_eq %es:0x800, $FIRST
        assert_eq %es:PAGE_SIZE+0x800, $SECOND
        .endr

# Plain RAM and the region's first page
        shared_pages 0
        segment %es, PRIVATE-1*page
        movl $WORD, %es:PAGE_SIZE - 2
        assert_eq %es:PAGE_SIZE-4, $WORD<<16
        assert_eq %es:PAGE_SIZE, $WORD>>16

        exit_guest $0

near_call:
        movw $0x5AFE, %ax
        ret

seen_sp:
        .word 0
own_stack:
        .word 0, 0
