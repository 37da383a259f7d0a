"""``bench ab``: the same benchmark on two sides, by turns, and the sides compared.

A side is a kernel in the lab, or this host with other environment variables. Both are
measured A B A B, so that what changes on the host meanwhile happens to both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pyvmm.bench.comparison import merge
from pyvmm.bench.result import BenchResult, from_json
from pyvmm.errors import PyvmmError

# Runs the benchmark once.
Side = Callable[[], BenchResult]
# Beside what it was asked to measure for: starting, setting up, calibrating.
_EXTRA_S = 300.0


def command(subject: str, arguments: Sequence[str]) -> list[str]:
    """The words that run a benchmark and print its JSON."""
    return [sys.executable, "-m", "pyvmm", "bench", subject, "--json", *arguments]


def host_side(words: Sequence[str], environment: Mapping[str, str], seconds: float) -> Side:
    """This host, with these environment variables more."""

    def run() -> BenchResult:
        try:
            result = subprocess.run(
                words,
                env={**os.environ, **environment},
                capture_output=True,
                timeout=seconds + _EXTRA_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PyvmmError("bench", f"it took more than {seconds + _EXTRA_S:.0f} s") from None
        return _result(result.returncode, result.stdout, result.stderr, "this host")

    return run


@contextmanager
def lab_sides(
    kernels: Sequence[str], words: Sequence[str], seconds: float, announce: Callable[[str], None]
) -> Iterator[list[Side]]:
    """Kernels of the lab, each booted once. Raises LabError."""
    from pyvmm.lab.lab import Lab

    with ExitStack() as stack:
        labs = [stack.enter_context(Lab(kernel, announce=announce)) for kernel in kernels]
        yield [_lab_side(lab, words, seconds) for lab in labs]


def _lab_side(lab: Any, words: Sequence[str], seconds: float) -> Side:
    def run() -> BenchResult:
        result = lab.run(words, timeout=seconds + _EXTRA_S)
        name = f"kernel {lab.kernel.name}"
        if result.status is None:
            raise PyvmmError(name, result.problem or "the benchmark did not end")
        return _result(result.status, result.output, result.errors, name)

    return run


def _result(status: int, output: bytes, errors: bytes, side: str) -> BenchResult:
    if status != 0:
        said = errors.decode(errors="replace").strip().splitlines()
        raise PyvmmError(side, said[-1] if said else f"bench ended with status {status}")
    return from_json(json.loads(output), side)


def alternate(
    sides: Sequence[Side], repeat: int, progress: Callable[[str, float], None]
) -> list[BenchResult]:
    """Run the sides by turns, ``repeat`` times each; one merged result for each side."""
    results: list[list[BenchResult]] = [[] for _ in sides]
    count = repeat * len(sides)
    for number in range(count):
        at = number % len(sides)
        progress(f"{'AB'[at]}, run {number // len(sides) + 1} of {repeat}", number / count)
        results[at].append(sides[at]())
    progress("", 1.0)
    return [merge(each) for each in results]
