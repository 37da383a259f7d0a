# counters.S - many vCPUs convert pages of their own and count together
#
# shows:       each vCPU converts the page of its own index to and fro, and with each round adds to
#              a counter that all share; nobody loses a conversion, a byte or a count.
# modes:       protected long
# vcpus:       1-63
# exits:       io memory
# expect:      pass
# conversions: any

        .include "pyvmm.inc"
        guest "counters.S"

        .set COUNTER, SHARED_VIEW + 63 * PAGE_SIZE      # of a page that nobody converts
        .ifndef ROUNDS
        .set ROUNDS, 30
        .endif

        require_two_views
        mov DI, BX
        shl $12, BX
        xorl %ecx, %ecx
round:
        incl %ecx
        movl %ecx, PRIVATE_VIEW + 0x20(BX)
        movl %edi, PRIVATE_VIEW + 0xFFC(BX)
        assert_eq "PRIVATE_VIEW+0x20(BX)", %ecx
        assert_eq "PRIVATE_VIEW+0xFFC(BX)", %edi
        assert_eq "SHARED_VIEW+0x20(BX)", $0
        movl %ecx, SHARED_VIEW + 0x20(BX)
        assert_eq "PRIVATE_VIEW+0x20(BX)", $0
        lock incl COUNTER
        cmpl $ROUNDS, %ecx
        jb round

        lock incl done                  # in RAM
        testl %edi, %edi
        jz wait
        exit_guest $0
wait:
        pause
        cmpl %esi, done
        jne wait
        imull $ROUNDS, %esi, %eax
        assert_eq COUNTER, %eax
        exit_guest $0

        .text 1
        .balign 8
done:
        .quad 0
        .text 0
