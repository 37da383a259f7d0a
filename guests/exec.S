# exec.S - runs code from pages that it had to convert
#
# shows:       1. code copied to the private view (the copy converts the page) and
#              called there; 2. the same through the shared view; 3. an instruction
#              fetch that converts: a jump to the last bytes of a page in the wrong
#              view, whose zeros are `add %al, (%bx,%si)` once it is converted and run
#              on into the next page, which has code; 4. the next instruction lies in
#              a page in the wrong view, whose zeros run on into the page behind it.
# vcpus:       1-28, the first one works
# exits:       io memory
# params:      STRADDLE=0 (1: part 5, an instruction that straddles into such a page)
# expect:      pass
# conversions: to_private=9 to_shared=3 implicit=10 explicit=2
# conversions --param STRADDLE=1: to_private=12 to_shared=3 implicit=13 explicit=2
# expect --views 1: fail exit_code=1

        .include "pyvmm.inc"
        guest "exec.S"

        .ifndef STRADDLE
        .set STRADDLE, 0
        .endif

        .set SCRATCH, 0x3000            # where the zeros add 0 to, plain RAM

        only_vcpu_0
        require_two_views

# copy VIEW, PAGE, OFFSET: the function to there.
.macro copy view, number, offset
        movw $\view + \number * PAGE_SEGMENT, %ax
        movw %ax, %es
        movw $\offset, %di
        movw $function, %si
        movw $function_end - function, %cx
        cld
        rep movsb
.endm

# run SEGMENT, OFFSET: calls what is there with EDX = 1; it must return EDX = 0x1235.
.macro run segment, offset
        movl $1, %edx
        xorw %ax, %ax                   # what the zeros in front of the function need
        movw $SCRATCH, %bx
        xorw %si, %si
        lcall $\segment, $\offset
        assert_eq %edx, $0x1235
        assert_eqb SCRATCH, $0
.endm

# 1. and 2. Copy and call, each view converts the page
        copy PRIVATE, 0, 0x100
        run PRIVATE, 0x100
        copy SHARED, 0, 0x200
        run SHARED, 0x200
        copy PRIVATE, 1, 0
        run PRIVATE+1*PAGE_SEGMENT, 0

        # the code that was copied before the conversion is gone
        movw $SHARED, %ax
        movw %ax, %es
        assert_eq %es:0x100, $0

# 3. The fetch converts page 2; page 3 has the function
        copy PRIVATE, 3, 0
        run PRIVATE+2*PAGE_SEGMENT, PAGE_SIZE-8
        movw $PRIVATE + 2 * PAGE_SEGMENT, %ax
        movw %ax, %es
        check_page $0

        # through the shared view, both pages become shared
        to_private $PRIVATE_VIEW+0x4000, $2
        copy SHARED, 5, 0
        run SHARED+4*PAGE_SEGMENT, PAGE_SIZE-2

# 4. Page 6 has code that runs into page 7, page 8 has the function. A whole page of zeros runs.
        copy PRIVATE, 8, 0
        movw $PRIVATE + 6 * PAGE_SEGMENT, %ax
        movw %ax, %es
        movl $0x90909090, %es:PAGE_SIZE - 4
        run PRIVATE+6*PAGE_SEGMENT, PAGE_SIZE-4
        movw $PRIVATE + 7 * PAGE_SEGMENT, %ax
        movw %ax, %es
        check_page $0

# 5. The first two bytes of a movl are in page 9, its immediate in page 10, which has
# the function behind its zeros in page 11. This is what `emulated` may not manage on
# hardware KVM, where the rest of an instruction that is not there ends KVM_RUN for good.
        .if STRADDLE
        copy PRIVATE, 11, 0
        movw $PRIVATE + 9 * PAGE_SEGMENT, %ax
        movw %ax, %es
        movw $0xB966, %es:PAGE_SIZE - 2 # movl imm32, %ecx
        movl $0xFFFFFFFF, %ecx
        run PRIVATE+9*PAGE_SEGMENT, PAGE_SIZE-2
        assert_eq %ecx, $0
        .endif

        exit_guest $0

# Runs anywhere: adds 0x1234 to EDX and returns far.
function:
        nop
        call function_inside            # its own stack is in plain RAM
        lret
function_inside:
        addl $0x1234, %edx
        ret
function_end:
