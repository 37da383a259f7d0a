"""How long a kick takes: from another thread's kick() until run() has returned.

Beside it a signal from one C thread to another that is in KVM_RUN. How soon KVM lets go
of a guest is the kernel's affair; the difference is pyvmm's.
"""

from __future__ import annotations

import random
import threading
import time
from statistics import median

from bare_c import address, check, compile_bare, ffi
from interleaved import NOTHING, Measured, batches_asked, describe_machine, show

from pyvmm import Machine, assemble
from pyvmm.native import lib

LONGEST_DELAY_NS = 3_000_000
DEADLINE_S = 600
GUESTS = {
    "a guest that exits all the time": """
        .code16
        movw $0x600, %dx
again:  outl %eax, %dx
        jmp again
""",
    "a guest that never exits": """
        .code16
        jmp .
""",
}


def kick_pyvmm(machine: Machine, until: int, delay_ns: int) -> int:
    """Nanoseconds from the kick to the return of run()."""
    loop = machine.loops[0]
    sent = 0

    def send_kick() -> None:
        nonlocal sent
        time.sleep(delay_ns / 1e9)
        sent = time.monotonic_ns()
        loop.kick()

    kicker = threading.Thread(target=send_kick)
    kicker.start()
    while (stop := loop.run(until)) == lib.STOP_SIGNAL:
        pass
    returned = time.monotonic_ns()
    kicker.join()
    if stop != lib.STOP_KICK:
        raise RuntimeError(f"the loop came back with stop code {stop}")
    return returned - sent


def main() -> None:
    batches = batches_asked(__doc__ or "", 200)
    describe_machine(pin=False)
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    print(f"{batches} kicks of each side at random moments, interleaved; seed {seed}")
    bare = compile_bare("kick")
    latency = ffi.new("uint64_t *")
    for title, guest in GUESTS.items():
        with Machine(assemble(guest), recording=False) as machine:
            vcpu = machine.vcpus[0]
            until = time.monotonic_ns() + DEADLINE_S * 1_000_000_000
            ours: list[int] = []
            floor: list[int] = []
            for _ in range(batches):
                delay_ns = moments.randrange(LONGEST_DELAY_NS)
                ours.append(kick_pyvmm(machine, until, delay_ns))
                check(
                    bare.kick_latency(
                        vcpu.fileno(),
                        address(vcpu.kvm_run),
                        lib.loop_kick_signal(),
                        delay_ns,
                        latency,
                    )
                )
                floor.append(latency[0])
            show(
                f"kick to return, {title}",
                Measured("pyvmm, VcpuLoop.kick()", min(ours), median(ours)),
                Measured("bare C", min(floor), median(floor)),
                NOTHING,
            )
            print(f"  longest: pyvmm {max(ours):,} ns, bare C {max(floor):,} ns")


if __name__ == "__main__":
    main()
