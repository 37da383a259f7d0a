"""The same exit under QEMU and by pyvmm, on the same KVM, by the guest's own clock.

`benchmarks/inl.S` reads a port that no device has; it boots under QEMU and runs as a guest
of pyvmm. With `--vmexit x86/vmexit.flat`, kvm-unit-tests' inl_from_qemu, which reads the
same port, and inl_from_kernel are run too. All by turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from interleaved import describe_machine

from pyvmm import load_guest
from pyvmm.bench.priority import real_time
from pyvmm.bench.statistics import lower_quartile, median
from pyvmm.kvm import Kvm

GUEST = Path(__file__).resolve().parent / "inl.S"
READS = 32  # in a block, as in the guest
WARM_UP = 20  # blocks
QEMU = ["qemu-system-x86_64", "-accel", "kvm", "-nodefaults", "-display", "none", "-smp", "1"]
QEMU += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
TIMEOUT_S = 300

# Names of rows and their ticks for one exit.
Ticks = dict[str, list[float]]


def output_of(command: list[str], statuses: tuple[int, ...]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode not in statuses:
        sys.exit(f"{command[0]} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def blocks(console: str) -> list[float]:
    ticks = [int(line) / READS for line in console.split() if line.isdecimal()]
    return ticks[WARM_UP:]


def boot_sector(folder: str) -> Path:
    """A floppy disk with the guest as its first sector."""
    (segment,) = load_guest(GUEST).segments
    code = segment.data
    assert len(code) <= 510, "a boot sector has room for 510 bytes"
    path = Path(folder) / "floppy"
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1440 * 1024, b"\0"))
    return path


def by_qemu(floppy: Path) -> Ticks:
    words = ["-drive", f"if=floppy,format=raw,file={floppy}", "-debugcon", "stdio"]
    return {"QEMU, inl.S": blocks(output_of([*QEMU, *words], (1,)))}


def by_pyvmm() -> Ticks:
    command = [sys.executable, "-m", "pyvmm", "run", "--json", str(GUEST)]
    return {"pyvmm, inl.S": blocks(json.loads(output_of(command, (0,)))["console"])}


def by_vmexit(flat: str) -> Ticks:
    words = ["-m", "256", "-serial", "stdio", "-kernel", flat]
    text = output_of([*QEMU, *words, "-append", "inl_from_qemu inl_from_kernel"], (1,))
    found = {}
    for line in text.splitlines():
        name, _, ticks = line.partition(" ")
        if name.startswith("inl_") and ticks.isdecimal():
            found[f"QEMU, vmexit {name}"] = [float(ticks)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vmexit", metavar="FLAT", help="vmexit.flat of kvm-unit-tests")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not shutil.which(QEMU[0]):
        sys.exit(f"{QEMU[0]} is not installed")
    describe_machine(pin=False)
    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        khz = vcpu.get_tsc_khz()
    found: Ticks = {}
    with tempfile.TemporaryDirectory() as folder, real_time():
        floppy = boot_sector(folder)
        sides: list[Callable[[], Ticks]] = [by_pyvmm, lambda: by_qemu(floppy)]
        if options.vmexit:
            sides.append(lambda: by_vmexit(options.vmexit))
        for _ in range(options.rounds):
            for side in sides:
                for name, ticks in side().items():
                    found.setdefault(name, []).extend(ticks)
    print(f"ticks of {khz / 1e6:.3f} GHz for one exit, and nanoseconds; {options.rounds} rounds")
    for name, ticks in found.items():
        figures = [min(ticks), lower_quartile(ticks), median(ticks)]
        print(
            f"{name:<30}"
            + "".join(
                f"{what} {each:>9,.0f} {each * 1e6 / khz:>8,.0f} ns   "
                for what, each in zip(("min", "p25", "p50"), figures, strict=True)
            ).rstrip()
        )


if __name__ == "__main__":
    main()
