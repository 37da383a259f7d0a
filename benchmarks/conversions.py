"""What a serviced conversion costs, beside the same system calls from bare C.

The guest writes to a region's first page, by turns through its private and its shared
view: each write is a KVM_EXIT_MMIO, a conversion, and the completion of the write. Both
sides run the same vCPU and leave the page as they found it.
"""

from __future__ import annotations

import time

from bare_c import address, check, compile_bare, ffi
from interleaved import Promise, Side, batches_asked, compare, describe_machine

from pyvmm import Machine, assemble
from pyvmm.native import lib

CONVERSIONS = 20  # a batch; even
DEADLINE_S = 600
GUEST = """
        .code16
        movw $0x4000, %ax               # the private view
        movw %ax, %ds
        movw $0xC000, %ax               # the shared view
        movw %ax, %es
again:  movl %eax, %ds:0
        movl %eax, %es:0
        jmp again
"""


def pyvmm_side(name: str, machine: Machine, recording: bool) -> Side:
    loop = machine.loops[0]
    raw = loop.raw
    until = time.monotonic_ns() + DEADLINE_S * 1_000_000_000

    def run() -> None:
        raw.recording = recording
        last = raw.exit_total + CONVERSIONS
        while raw.exit_total < last:
            stop = loop.run(until, last - raw.exit_total)
            if stop not in (lib.STOP_MAX_EXITS, lib.STOP_SIGNAL):
                raise RuntimeError(f"the loop came back with stop code {stop}")

    return Side(name, run)


def bare_side(machine: Machine) -> Side:
    bare = compile_bare("conversion_loop")
    vcpu, region = machine.vcpus[0], machine.memory.regions[0]
    backing = region.backing
    sides = [
        ffi.new("struct side *", (gpa, file.fileno(), address(host.pointer)))
        for gpa, file, host in (
            (region.gpa, backing.private_file, backing.private_host),
            (region.shared_gpa, backing.shared_file, backing.shared_host),
        )
    ]
    fd, run = vcpu.fileno(), address(vcpu.kvm_run)
    return Side("bare C", lambda: check(bare.conversion_loop(fd, run, *sides, CONVERSIONS)))


def main() -> None:
    batches = batches_asked(__doc__ or "", 1000)
    describe_machine()
    print(f"{batches} batches of {CONVERSIONS} conversions, interleaved")
    with Machine(assemble(GUEST), backend="emulated") as machine:
        mechanism = machine.memory.mechanism.name.lower()
        if mechanism != "prot_none":
            raise SystemExit(f"bare/conversion_loop.c is about prot_none, not {mechanism}")
        before = machine.memory.conversions().implicit
        for name, recording in (("pyvmm, recording off", False), ("pyvmm, recording on", True)):
            compare(
                f"conversion on touch ({mechanism}), exit and re-entry included",
                pyvmm_side(name, machine, recording),
                bare_side(machine),
                Promise(ratio=1.05),
                operations=CONVERSIONS,
                batches=batches,
            )
        counted = machine.memory.conversions().implicit - before
        print(f"{counted} conversions by pyvmm, {2 * (batches + 1) * CONVERSIONS} expected")


if __name__ == "__main__":
    main()
