# hostile.S - does what no guest should, and must come out unharmed
#
# shows:       ports that nobody has, and the protocol's with another width or
#              direction: reads are all ones, writes are ignored; doorbells with huge
#              and senseless values change nothing; memory where nothing is, up to
#              beyond 1 MiB, by every kind of access; more measures than the VMM keeps;
#              a console full of every byte there is.
# vcpus:       1-28, all do all of it
# exits:       io mmio
# params:      FLOOD=4 (KiB of console per vCPU; 1040 is more than the VMM keeps, and
#              wants a longer --deadline)
#              ASSERT=gpa ends with a failed assert whose record is there
#              EXIT=code ends with this code; FETCH=1 ends by running where nothing is
# expect:      pass
# conversions: to_private=0 to_shared=0 implicit=0 explicit=0
# expect --views 1: pass
# expect --param ASSERT=0xFFFFFFFF: fail exit_code=1
# expect --param ASSERT=0x3FFFF: fail exit_code=1
# expect --param ASSERT=0x40000: fail exit_code=1
# expect --param ASSERT=0x80000: fail exit_code=1
# expect --param EXIT=0xFFFFFFFF: fail exit_code=4294967295
# expect --param FETCH=1: fail | error

        .include "pyvmm.inc"
        guest "hostile.S"

        .ifndef FLOOD
        .set FLOOD, 4
        .endif

        .set MARK, 0x600DDA7A
        .set SCRATCH, 0x20000           # plain RAM, 64 KiB for all to read
        .set RESULTS, 0x30000           # and 2 KiB for each vCPU to write
        .set MEASURES, 5000

        shlw $7, %ax
        addw $RESULTS >> 4, %ax
        movw %ax, %fs                   # its own results, from here on
        movb $0, %al                    # every byte value, over and over, at SCRATCH
        movw $SCRATCH >> 4, %cx
        movw %cx, %es
        xorw %di, %di
        cld
all_bytes:
        stosb
        incb %al
        testw %di, %di
        jnz all_bytes
        lock incw %cs:filled            # a late vCPU must not fill it under the others
all_filled:
        cmpw %bx, %cs:filled
        jb all_filled

# Contents of the region that must not change
        movw $REGION_PAGES, %cx
        movw $SHARED, %ax
        movl $MARK, %edx
        pushl %eax
        features
        testl $FEATURE_TWO_VIEWS, %eax
        popl %eax
        jnz marks
        movw $PRIVATE, %ax
marks:
        movw %ax, %gs
        movl %edx, %gs:0x7FC
        addw $PAGE_SEGMENT, %ax
        decw %cx
        jnz marks

# --- Ports ---

# at_ports TABLE: the lines up to next_port run with each of the table's ports in DX.
.macro at_ports label, table
        movw $\table, %si
\label:
        movw %cs:(%si), %dx
.endm
.macro next_port label, table
        addw $2, %si
        cmpw $\table\()_end, %si
        jb \label
.endm

        at_ports in_8, ports
        xorl %eax, %eax
        inb %dx, %al
        assert_eq %eax, $0xFF
        next_port in_8, ports
        at_ports in_16, ports
        xorl %eax, %eax
        inw %dx, %ax
        assert_eq %eax, $0xFFFF
        next_port in_16, ports
        at_ports in_32, not_readable
        xorl %eax, %eax
        inl %dx, %eax
        assert_eq %eax, $0xFFFFFFFF
        next_port in_32, not_readable

        doorbell $PRIVATE_VIEW, $1, $TO_SHARED  # valid, and done already
        assert_eq %eax, $0
        movl $0x00020002, %eax          # would convert page 0, if it rang
        at_ports out_8, not_bytes
        outb %al, %dx
        next_port out_8, not_bytes
        at_ports out_16, not_words
        outw %ax, %dx
        next_port out_16, not_words
        at_ports out_32, not_longs
        outl %eax, %dx
        next_port out_32, not_longs

        # several at once
        movw $SCRATCH >> 4, %ax
        movw %ax, %ds
        movw %fs, %ax
        movw %ax, %es
        movw $0x0666, %dx
        .irp width, b, w, l
        xorw %si, %si
        movw $64, %cx
        rep outs\width
        xorw %di, %di
        movw $64, %cx
        rep ins\width
        .endr
        movl %es:0xFC, %eax
        assert_eq %eax, $0xFFFFFFFF

# --- Doorbells ---

        movl $0xFFFFFFFF, %ecx
        .irp value, 0, 1, 2, 0x40000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF
        movl $\value, %esi
        doorbell %esi, %esi, %esi
        assert_eq %eax, $-EINVAL
        doorbell %ecx, $1, %esi
        assert_eq %eax, $-EINVAL
        doorbell $PRIVATE_VIEW, %ecx, %esi
        assert_eq %eax, $-EINVAL
        doorbell $PRIVATE_VIEW, $0, %esi
        assert_eq %eax, $-EINVAL
        doorbell $PRIVATE_VIEW+3, $1, %esi
        assert_eq %eax, $-EINVAL
        doorbell $NOTHING, $1, %esi
        assert_eq %eax, $-EINVAL
        .endr
        movw $PORT_DOORBELL_RING, %dx   # rings 256 times, with what SCRATCH holds
        xorw %si, %si
        movw $256, %cx
        rep outsl
        movw $PORT_DOORBELL_RESULT, %dx
        xorw %di, %di
        movw $256, %cx
        rep insl
        xorw %di, %di
        movw $256, %cx
        movl $-EINVAL, %eax
        repe scasl
        assert je, "the doorbell's result, 256 times, is -EINVAL"

# --- Memory where nothing is ---

        movl $NOTHING >> 4, %ebp        # segment: each page up to 0xBFFFF
nothing:
        movw %bp, %es
        call nothing_at_es
        addw $PAGE_SEGMENT, %bp
        cmpw $SHARED, %bp
        jb nothing
        movw $0xFFFF, %ax               # beyond 1 MiB: 0xFFFF0 + DI
        movw %ax, %es
        call nothing_at_es

        # string instructions from nothing to nothing, to RAM and from RAM
        pushw $NOTHING >> 4
        popw %ds
        pushw $(NOTHING >> 4) + 0x1234
        popw %es
        xorw %si, %si
        movw $0x800, %di
        movw $40, %cx
        rep movsl
        pushw %fs
        popw %es
        xorw %di, %di
        movw $40, %cx
        rep movsl
        assert_eq %es:0, $0xFFFFFFFF
        assert_eq %es:0x9C, $0xFFFFFFFF
        pushw $SCRATCH >> 4
        popw %ds
        pushw $NOTHING >> 4
        popw %es
        movw $40, %cx
        rep movsw

        # a stack of nothing
        movw %sp, %bp
        movw $0x9000, %ax
        movw %ax, %ss
        movw $0x102, %sp
        pushl $0
        popl %eax
        popw %bx
        xorw %dx, %dx
        movw %dx, %ss
        movw %bp, %sp
        assert_eq %eax, $0xFFFFFFFF
        assert_eqw %bx, $0xFFFF

# --- Floods ---

        pushw $SCRATCH >> 4
        popw %ds
        .if FLOOD
        movw $PORT_CONSOLE, %dx
        movw $FLOOD, %bx
flood:
        movw $1024, %cx
        xorw %si, %si
        rep outsb
        decw %bx
        jnz flood
        .endif
        movw $PORT_MEASURE, %dx
        movw $MEASURES, %cx
        xorw %si, %si
        rep outsl

# --- Nothing has changed in the region ---

        movw $REGION_PAGES, %cx
        movw $SHARED, %ax
        pushl %eax
        features
        testl $FEATURE_TWO_VIEWS, %eax
        popl %eax
        jnz unchanged
        movw $PRIVATE, %ax
unchanged:
        movw %ax, %gs
        assert_eq %gs:0x7FC, $MARK
        assert_eq %gs:0, $0
        addw $PAGE_SEGMENT, %ax
        decw %cx
        jnz unchanged

        .ifdef ASSERT
        movl $ASSERT, %eax
        movw $PORT_ASSERT, %dx
        outl %eax, %dx
        .endif
        .ifdef EXIT
        exit_guest $EXIT
        .endif
        .ifdef FETCH
        ljmp $0x9000, $0
        .endif
        exit_guest $0

# Every kind of access at ES:0x20 and on, where nothing is.
nothing_at_es:
        movl $0, %es:0x20
        movw $0, %es:0x24
        movb $0, %es:0x26
        movl %es:0x20, %eax
        assert_eq %eax, $0xFFFFFFFF
        movw %es:0x24, %ax
        assert_eqw %ax, $0xFFFF
        movb %es:0x26, %al
        assert_eqb %al, $0xFF
        movl %es:0x31, %eax             # unaligned
        assert_eq %eax, $0xFFFFFFFF
        xorl %eax, %eax
        xchgl %eax, %es:0x20
        assert_eq %eax, $0xFFFFFFFF
        xorl %eax, %eax
        xaddl %eax, %es:0x20
        assert_eq %eax, $0xFFFFFFFF
        addl $1, %es:0x20
        assert jc, "all ones and one carry"
        lock incl %es:0x20
        orb $0, %es:0x20
        movw $0x20, %di
        movw $20, %cx
        xorl %eax, %eax
        rep stosl
        movw $0x20, %di
        movw $20, %cx
        decl %eax
        repe scasl
        assert je, "what was stored where nothing is reads all ones"
        ret

# Ports that have no reading of 8 and 16 bits
ports:
        .word 0x600, 0x604, 0x608, 0x60C, 0x610, 0x614, 0x618
        .word 0x601, 0x602, 0x603, 0x609, 0x60A, 0x60B, 0x60D, 0x60E, 0x60F, 0x619, 0x61A, 0x61B
        .word 0xE9, 0xF4
        .word 0xE8, 0xEA, 0xF3, 0xF5, 0x5FF, 0x5FE, 0x5FD, 0x61C, 0x61F, 0x3F8, 0x3FD, 0xCF8, 0xCFC
        .word 0x80, 0x92, 0x1234, 0x7FFF, 0x8000, 0xE900, 0xF400, 0x0608 + 0x8000, 0xFFFC, 0xFFFF
ports_end:
# and none of 32
not_readable:
        .word 0x600, 0x604, 0x608, 0x610, 0x614
        .word 0x601, 0x602, 0x603, 0x609, 0x60A, 0x60B, 0x60D, 0x60E, 0x60F, 0x619, 0x61A, 0x61B
        .word 0xE9, 0xF4
        .word 0xE8, 0xEA, 0xF3, 0xF5, 0x5FF, 0x5FE, 0x5FD, 0x61C, 0x61F, 0x3F8, 0xCFC
        .word 0x80, 0x1234, 0x7FFF, 0x8000, 0xE900, 0xF400, 0x0608 + 0x8000, 0xFFFC
not_readable_end:
# Ports that have no writing of 8 bits, of 16, of 32
not_bytes:
        .word 0x600, 0x604, 0x608, 0x60C, 0x610, 0x614, 0x618, 0x61B
        .word 0xE8, 0xF3, 0xF5, 0x1234, 0xFFFF
not_bytes_end:
not_words:
        .word 0x600, 0x604, 0x608, 0x60C, 0x610, 0x614, 0x618, 0x61A
        .word 0xE8, 0xE9, 0xF3, 0xF5, 0x5FF, 0x1234, 0xFFFE, 0xFFFF
not_words_end:
not_longs:
        .word 0x5FD, 0x5FE, 0x5FF, 0x601, 0x602, 0x603, 0x605, 0x607, 0x609, 0x60A, 0x60B, 0x60C
        .word 0x60D, 0x60F, 0x611, 0x612, 0x613, 0x615, 0x618, 0x61C
        .word 0xE6, 0xE9, 0xF1, 0xF2, 0xF3, 0xF5, 0x1234, 0xFFFC, 0xFFFF
not_longs_end:
filled: .word 0
