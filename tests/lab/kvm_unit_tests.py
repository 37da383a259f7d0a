"""kvm-unit-tests' x86 guests under QEMU and under pyvmm on the same KVM, side by side.

    python tests/lab/kvm_unit_tests.py FOLDER [NAME...] [--limit S] [--json]

FOLDER has the .flat files (x86/ of a built kvm-unit-tests). Both get the same options. A line of
the table says what exit status each had, how many lines with PASS and FAIL, and whether those lines
are the same. Where both were still at it at the time limit, one's lines begin the other's.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

TIME_LIMIT = 124
# What a test needs that is no PC's without PCI, or a device of its own.
EXCEPTED = {
    "intel-iommu": "an IOMMU and PCI",
    "s3": "ACPI sleep, and a BIOS that resumes",
}
TWO_VCPUS = ("apic", "smptest")
OPTIONS = (
    *("--no-reboot", "-nodefaults", "-device", "pc-testdev"),
    *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-display", "none"),
    *("-serial", "stdio", "-device", "pci-testdev", "-machine", "accel=kvm", "-cpu", "max"),
)
# What differs from run to run: times, cycles, addresses.
_NUMBERS = re.compile(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b")


@dataclass(frozen=True)
class Outcome:
    """How a test ended under one of them."""

    status: int
    lines: tuple[str, ...]  # that begin with PASS or FAIL
    seconds: float
    last: str

    def count(self, word: str) -> int:
        return sum(line.startswith(word) for line in self.lines)


@dataclass(frozen=True)
class Row:
    name: str
    qemu: Outcome
    pyvmm: Outcome

    @property
    def is_same(self) -> bool:
        mine, theirs = (
            [_NUMBERS.sub("#", line) for line in each.lines] for each in (self.pyvmm, self.qemu)
        )
        if self.qemu.status == self.pyvmm.status == TIME_LIMIT:
            fewest = min(len(mine), len(theirs))
            return mine[:fewest] == theirs[:fewest]
        return (self.pyvmm.status, mine) == (self.qemu.status, theirs)


def run(command: list[str], limit: float) -> Outcome:
    """One of them, ended after ``limit`` seconds."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output, _ = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output = output[: output.rfind(b"\n") + 1]  # whole lines
        status = TIME_LIMIT
    lines = output.decode(errors="replace").replace("\r", "").splitlines()
    verdicts = tuple(line for line in lines if line.startswith(("PASS", "FAIL")))
    last = next((line for line in reversed(lines) if line), "")
    return Outcome(status, verdicts, round(time.monotonic() - started, 1), last)


def rows(folder: Path, names: list[str], qemu: str, limit: float) -> Iterator[Row]:
    """A row for each test of the folder, in order of their names."""
    pyvmm = [sys.executable, "-m", "pyvmm.cli.as_qemu"]
    for path in sorted(folder.glob("*.flat")):
        if names and path.stem not in names:
            continue
        vcpus = "2" if path.stem in TWO_VCPUS else "1"
        options = [*OPTIONS, "-m", "256", "-smp", vcpus, "-kernel", str(path)]
        yield Row(path.stem, run([qemu, *options], limit), run([*pyvmm, *options], limit))


def table(found: Iterator[Row]) -> Iterator[str]:
    yield "| test | QEMU: status | PASS | FAIL | s | pyvmm: status | PASS | FAIL | s | same |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in found:
        cells = [row.name]
        for each in (row.qemu, row.pyvmm):
            cells += [str(each.status), str(each.count("PASS")), str(each.count("FAIL"))]
            cells.append(f"{each.seconds:.1f}")
        why = EXCEPTED.get(row.name)
        cells.append("yes" if row.is_same else f"needs {why}" if why else "NO")
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--limit", type=float, default=45.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        sys.exit("there is no qemu-system-x86_64")
    found = rows(options.folder, options.names, qemu, options.limit)
    if options.json:
        for row in found:
            print(json.dumps({**asdict(row), "is_same": row.is_same}), flush=True)
    else:
        for line in table(found):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
