"""What starting costs: importing pyvmm beside cffi alone, and a whole `pyvmm run`.

Each operation is a process of its own, from fork to exit.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interleaved import batches_asked, describe_machine
from promises import measure

from pyvmm.bench.case import Bench, Case, Promise, Times

HELLO = Path(__file__).resolve().parent.parent / "guests" / "hello.S"
IMPORTING, RUNNING = Promise(more_ns=80e6), Promise(more_ns=450e6)


class Processes:
    """Two command lines of Python's, each from fork to exit."""

    def __init__(self, ours: Sequence[str], floor: Sequence[str]) -> None:
        self._ours, self._floor = ours, floor

    def ours(self, operations: int) -> Times:
        return _run(self._ours, operations)

    def floor(self, operations: int) -> Times:
        return _run(self._floor, operations)

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        raise NotImplementedError


def _run(words: Sequence[str], operations: int) -> Times:
    start = time.monotonic_ns()
    for _ in range(operations):
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return ((time.monotonic_ns() - start) / operations,)


def bench(title: str, ours: Sequence[str], floor: Sequence[str], promise: Promise) -> Bench:
    return Bench((Case(title, title, promise),), lambda stack: Processes(ours, floor))


def main() -> None:
    batches = batches_asked(__doc__ or "", 20)
    describe_machine()
    print(f"{batches} processes of each side, interleaved; ns: minimum, median")
    for statement in ("import pyvmm", "from pyvmm import Machine"):
        measure(bench(statement, ("-c", statement), ("-c", "import cffi"), IMPORTING), batches)
    words = ("-m", "pyvmm", "run", str(HELLO))
    measure(bench("pyvmm run guests/hello.S", words, ("-c", "pass"), RUNNING), batches)


if __name__ == "__main__":
    main()
