# spin.S - never ends by itself
#
# shows:       the deadline ends a run
# vcpus:       1-28
# exits:       none
# expect:      deadline

        jmp .
