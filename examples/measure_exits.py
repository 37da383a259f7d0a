"""What an exit costs here: the latencies of 10,000 port writes, answered in C.

Prints numbers of this machine; the first line is always
    10000 exits for port I/O and more
"""

from pyvmm import Machine, assemble

GUEST = assemble("""
        .include "pyvmm.inc"
        guest "measure_exits"

        movw $10000, %cx
again:  outb %al, $0x70
        loop again
        exit_guest $0
""")

with Machine(GUEST) as machine:
    report = machine.run(deadline_s=30)
count = report.exits["io"]
print(f"{count - 1} exits for port I/O and more")
latency = report.exit_latency
print(f"from KVM_RUN's return to the next call: minimum {latency.min} ns, median {latency.p50} ns")
