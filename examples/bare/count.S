# Counts on a port that nobody has, in a segment that is far from 0, as the guest of kvmsample
# does. That one goes on for ever; this one halts at 16.
#
#     pyvmm run examples/bare/count.S --platform bare --load 0x10000 --set cs=0x1000 --set ds=0x1000

        .code16
        xorw %ax, %ax
1:      outw %ax, $0x10
        incw %ax
        cmpw $16, %ax
        jb 1b
        hlt
