"""What an exit costs: answered in C, recorded, and answered in Python, beside bare C.

The guest writes to one port for ever. Both sides run the same vCPU, so they differ in
nothing but the loop around KVM_RUN.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bare_c import address, check, compile_bare, ffi
from interleaved import NOTHING, Promise, Side, batches_asked, compare, describe_machine

from pyvmm import Machine, assemble
from pyvmm.exits import IoExit, decode
from pyvmm.native import lib
from pyvmm.vcpu_loop import VcpuLoop

EXITS = 50  # a batch
PORT_IN_C = 0x600  # the doorbell's GPA: C keeps the value
PORT_IN_PYTHON = 0x700
DEADLINE_S = 600
GUEST = """
        .code16
        movw ${port:#x}, %dx
again:  outl %eax, %dx
        jmp again
"""


class Latch:
    """A device that keeps what is written to it."""

    def __init__(self) -> None:
        self.value = 0

    def read(self, address: int, size: int) -> int:
        return self.value

    def write(self, address: int, size: int, value: int) -> None:
        self.value = value


@contextmanager
def machine_writing_to(port: int) -> Iterator[Machine]:
    with Machine(assemble(GUEST.format(port=port))) as machine:
        if port == PORT_IN_PYTHON:
            machine.bus.add_ports(range(port, port + 1), Latch())
        yield machine


def bare_side(machine: Machine, port: int, *, name: str = "bare C", clock_reads: int = 0) -> Side:
    bare = compile_bare("exit_loop")
    vcpu = machine.vcpus[0]
    fd, run, value = vcpu.fileno(), address(vcpu.kvm_run), ffi.new("uint32_t *")
    return Side(name, lambda: check(bare.exit_loop(fd, run, port, EXITS, value, clock_reads)))


def deadline() -> int:
    return time.monotonic_ns() + DEADLINE_S * 1_000_000_000


def run_exits(loop: VcpuLoop, until: int) -> None:
    """EXITS exits that C answers."""
    raw = loop.raw
    last = raw.exit_total + EXITS
    while raw.exit_total < last:
        stop = loop.run(until, last - raw.exit_total)
        if stop not in (lib.STOP_MAX_EXITS, lib.STOP_SIGNAL):
            raise RuntimeError(f"the loop came back with stop code {stop}")


def in_c(batches: int) -> None:
    with machine_writing_to(PORT_IN_C) as machine:
        loop, until = machine.loops[0], deadline()

        def side(name: str, recording: bool) -> Side:
            def run() -> None:
                loop.raw.recording = recording
                run_exits(loop, until)

            return Side(name, run)

        off, on = side("pyvmm, recording off", False), side("pyvmm, recording on", True)
        compare(
            "exit answered in C",
            off,
            bare_side(machine, PORT_IN_C),
            Promise(ratio=1.02),
            operations=EXITS,
            batches=batches,
        )
        compare(
            "recording: histogram and exit log",
            on,
            off,
            Promise(more_ns=60),
            operations=EXITS,
            batches=batches,
        )
        compare(
            "of that: reading the clock twice",
            bare_side(machine, PORT_IN_C, name="bare C, two clock_gettime()", clock_reads=2),
            bare_side(machine, PORT_IN_C),
            NOTHING,
            operations=EXITS,
            batches=batches,
        )


def in_place(batches: int) -> None:
    with machine_writing_to(PORT_IN_PYTHON) as machine:
        loop, until = machine.loops[0], deadline()
        loop.raw.recording = False
        loop.run(until)
        raw, io, stop_exit = loop.raw, loop.vcpu.kvm_run.io, lib.STOP_EXIT

        def answer() -> None:
            left = EXITS
            while left:
                if loop.run(until) == stop_exit:
                    if io.port != PORT_IN_PYTHON or io.size != 4:
                        raise RuntimeError("not the exit that the guest makes")
                    left -= 1

        def only_return() -> None:
            for _ in range(EXITS):
                lib.loop_run(raw)

        bare = bare_side(machine, PORT_IN_PYTHON)
        compare(
            "exit answered in Python, fields read in place",
            Side("pyvmm, VcpuLoop.run()", answer),
            bare,
            Promise(more_ns=500),
            operations=EXITS,
            batches=batches,
        )
        compare(
            "of that: one call from Python that gives up the GIL, and nothing else",
            Side("cffi, lib.loop_run(loop)", only_return),
            bare,
            NOTHING,
            operations=EXITS,
            batches=batches,
        )

        for title, before in (
            ("of that: the same Python with the CPU warm", lambda: None),
            ("the same Python after a cpuid instruction", compile_bare("cpuid").execute_cpuid),
        ):
            compare(
                title,
                Side("kicked before it runs, answered", kicked_run(loop, until, before)),
                Side("kicked", kicks(loop, before)),
                NOTHING,
                operations=EXITS,
                batches=batches,
            )


def kicks(loop: VcpuLoop, before: Callable[[], object]) -> Callable[[], None]:
    def kick() -> None:
        for _ in range(EXITS):
            before()
            loop.kick()

    return kick


def kicked_run(loop: VcpuLoop, until: int, before: Callable[[], object]) -> Callable[[], None]:
    """What answering in Python does, but for KVM_RUN: a kicked loop returns before it."""
    io, stop_kick = loop.vcpu.kvm_run.io, lib.STOP_KICK

    def kick_and_answer() -> None:
        for _ in range(EXITS):
            before()
            loop.kick()
            if loop.run(until) != stop_kick or io.port != PORT_IN_PYTHON or io.size != 4:
                raise RuntimeError("the loop was kicked and ran all the same")

    return kick_and_answer


def as_objects(batches: int) -> None:
    with machine_writing_to(PORT_IN_PYTHON) as machine:
        machine.loops[0].raw.recording = False
        exits = machine.exits(DEADLINE_S)
        run = machine.vcpus[0].kvm_run

        def answer() -> None:
            for _ in range(EXITS):
                exit = next(exits)
                if not isinstance(exit, IoExit) or exit.port != PORT_IN_PYTHON:
                    raise RuntimeError("not the exit that the guest makes")

        compare(
            "exit answered in Python, given an exit object",
            Side("pyvmm, Machine.exits()", answer),
            bare_side(machine, PORT_IN_PYTHON),
            Promise(more_ns=1200),
            operations=EXITS,
            batches=batches,
        )

        def decode_again() -> None:
            for _ in range(EXITS):
                decode(run)

        def nothing() -> None:
            for _ in range(EXITS):
                pass

        compare(
            "of that: making the object, with the CPU warm",
            Side("decode(run)", decode_again),
            Side("an empty Python loop", nothing),
            NOTHING,
            operations=EXITS,
            batches=batches,
        )


def main() -> None:
    batches = batches_asked(__doc__ or "", 2000)
    describe_machine()
    print(f"{batches} batches of {EXITS} exits, interleaved")
    in_c(batches)
    in_place(batches)
    as_objects(batches)


if __name__ == "__main__":
    main()
