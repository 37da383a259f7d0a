"""What a machine's life costs: create, run a guest of two instructions, close.

Beside it the same system calls in the same order from bare C. The phases are printed
too: where they differ is where Python's own time goes.
"""

from __future__ import annotations

import time
from typing import Any

from bare_c import check, compile_bare, ffi
from interleaved import (
    Measured,
    Promise,
    Side,
    batches_asked,
    describe_machine,
    interleave,
    show,
)

from pyvmm import Machine
from pyvmm.native import lib

# mov $0, %al; out %al, $0xf4
GUEST = bytes([0xB0, 0x00, 0xE6, 0xF4])
PHASES = ("create", "run", "close")
PROMISE = Promise(ratio=1.15)


class Life:
    """Lives through a machine once per call, and keeps each phase's best time."""

    def __init__(self) -> None:
        self.best = dict.fromkeys(PHASES, float("inf"))

    def note(self, *phases: int) -> None:
        for name, taken in zip(PHASES, phases, strict=True):
            self.best[name] = min(self.best[name], taken)

    def __call__(self) -> None:
        raise NotImplementedError


class PyvmmLife(Life):
    def __init__(self, recording: bool) -> None:
        super().__init__()
        self._recording = recording

    def __call__(self) -> None:
        start = time.monotonic_ns()
        with Machine(GUEST, backend="emulated", recording=self._recording) as machine:
            created = time.monotonic_ns()
            report = machine.run()
            ran = time.monotonic_ns()
        closed = time.monotonic_ns()
        if not report.passed or report.mechanism != "prot_none":
            raise SystemExit(f"bare/lifecycle.c is about prot_none, not {report.mechanism}")
        self.note(created - start, ran - created, closed - ran)


class BareLife(Life):
    def __init__(self) -> None:
        super().__init__()
        self._bare = compile_bare("lifecycle")
        self._signal = lib.loop_kick_signal()
        self._phases: Any = ffi.new("struct phases *")

    def __call__(self) -> None:
        phases = self._phases
        check(self._bare.lifecycle(GUEST, len(GUEST), self._signal, phases))
        self.note(phases.create_ns, phases.run_ns, phases.close_ns)


def measure(title: str, ours: Life, batches: int) -> None:
    bare = BareLife()
    measured: tuple[Measured, Measured] = interleave(
        Side("pyvmm, Machine", ours), Side("bare C", bare), 1, batches
    )
    show(title, *measured, PROMISE)
    for name in PHASES:
        print(
            f"  {name:34} minimum {ours.best[name]:12,.0f} ns   "
            f"bare C {bare.best[name]:12,.0f} ns   {ours.best[name] - bare.best[name]:+10,.0f} ns"
        )


def main() -> None:
    batches = batches_asked(__doc__ or "", 200)
    describe_machine()
    print(f"{batches} batches of one machine, interleaved")
    measure("create, run, close; recording off", PyvmmLife(recording=False), batches)
    measure("create, run, close; recording on (the default)", PyvmmLife(recording=True), batches)


if __name__ == "__main__":
    main()
