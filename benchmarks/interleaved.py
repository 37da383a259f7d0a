"""What the programs of this folder have in common: batches, and the machine they ran on.

What is measured is an experiment of pyvmm.bench; here its two sides are run in turns, A B A B.
A shared machine can only make a batch slower, so the minimum of many short batches is what can
be compared; the median says what it was like while measuring.
"""

from __future__ import annotations

import argparse
import os

from pyvmm.host import cpu_model, kernel_release, kvm_modules

LEAST_BATCHES = 20


def batches_asked(description: str, default: int) -> int:
    """The number of batches from the command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--batches",
        type=int,
        default=default,
        metavar="N",
        help=f"batches of each side, at least {LEAST_BATCHES} (default: {default})",
    )
    batches: int = parser.parse_args().batches
    if batches < LEAST_BATCHES:
        parser.error(f"--batches {batches}: fewer than {LEAST_BATCHES} say nothing")
    return batches


def describe_machine(*, pin: bool = True) -> None:
    """Stay on one CPU unless told not to; print what machine this is and how busy it was."""
    where = "on all CPUs"
    if pin:
        cpu = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpu})
        where = f"pinned to CPU {cpu}"
    policy = "real-time" if os.sched_getscheduler(0) == os.SCHED_FIFO else f"nice {os.nice(0)}"
    modules = ", ".join(kvm_modules()) or "built in"
    load = os.getloadavg()[0]
    print(
        f"{cpu_model()}, {os.cpu_count()} CPUs, Linux {kernel_release()}, KVM modules: {modules}; "
        f"{where}, {policy}, load {load:.1f}, garbage collector on"
    )
