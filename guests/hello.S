# hello.S - says hello
#
# shows:       the console, a measure, and the exit port
# vcpus:       1-28
# exits:       io
# expect:      pass
# conversions: to_private=0 to_shared=0 implicit=0 explicit=0

        .include "pyvmm.inc"
        guest "hello.S"

        testl %eax, %eax                # EAX is the vCPU's index, EBX their number
        jnz end

        puts "Hello from real mode, "
        print_decimal %ebx
        puts " vCPU(s).\n"
        measure %ebx
end:
        exit_guest $0
