# triplefault.S - an exception that cannot be delivered
#
# shows:       KVM_EXIT_SHUTDOWN: the interrupt table has no room for a single vector,
#              so #UD becomes #GP, a double fault, and a triple fault. It lies where no
#              memory is, for KVM's emulator, which does not look at the limit.
# vcpus:       1-28
# exits:       shutdown
# expect:      fail
# conversions: to_private=0 to_shared=0 implicit=0 explicit=0

        .include "pyvmm.inc"
        guest "triplefault.S"

        lidt no_table
        ud2
        exit_guest $2                   # not reached

no_table:
        .word 0                         # limit
        .long NOTHING                   # address
