"""VMs that have not run yet, which have less than others: what happens to them then."""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import closing
from pathlib import Path

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, Missing, errno_name, errno_of, expect
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.patterns import PRIVATE, SHARED
from pyvmm.validate.kit.toolbox import Toolbox

_VMS, _PARTS, _LONGEST_S = 120, 40, 20.0
_PARAMETER = Path("/sys/module/kvm/parameters/nx_huge_pages")
_VMS_OF_ALL = Path("/sys/kernel/debug/kvm")
_SIZE = 16 * PAGE


@case(
    "BR1",
    "the first KVM_RUN of a VM, with a signal in the middle: EINTR, and the next one goes on",
    needs=("guests",),
)
def signals_at_first(tools: Toolbox) -> None:
    def first_run(delay_s: float) -> tuple[int, float]:
        """errno and time of the first KVM_RUN of a VM, which SIGALRM comes to in the middle."""
        with closing(GuestVm(tools.kvm, lib.KVM_X86_DEFAULT_VM, 1)) as vm:
            vm.cpu.prepare(routines.HALT)
            run = vm.cpu.vcpu.run
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, delay_s)
            seen = errno_of(run)
            took = time.monotonic() - began
            signal.setitimer(signal.ITIMER_REAL, 0)
            if seen in (0, errno.EINTR):
                again = errno_of(run)
                expect(errno_name(again), "success", "a KVM_RUN after one that a signal ended")
            return seen, took

    before = signal.signal(signal.SIGALRM, lambda *_: None)
    tools.on_close(lambda: signal.signal(signal.SIGALRM, before))
    longest = min(first_run(10)[1] for _ in range(3))
    for number in tools.enough(_VMS, _LONGEST_S):
        # What is to be met is short: each part of the call gets its signals.
        part = (number % _PARTS + tools.random.random()) / _PARTS
        seen, _ = first_run(max(1e-6, part * longest))
        tools.tried(seen == errno.EINTR, "first runs were ended by a signal")
        if seen not in (0, errno.EINTR):
            raise CheckFailed(
                "the first KVM_RUN of a VM, in the middle of which a signal comes: "
                f"{errno_name(seen)}, expected success or EINTR"
            )


def are_alone() -> bool:
    """Whether no other process has a VM, as far as debugfs tells."""
    return _VMS_OF_ALL.is_dir() and not any(
        path.is_dir() and not path.name.startswith(f"{os.getpid()}-")
        for path in _VMS_OF_ALL.iterdir()
    )


def write(value: str) -> None:
    _PARAMETER.write_text(value)


@case(
    "BR2",
    "a parameter of the module is written: VMs that run and that have not yet stand it",
    needs=("guests",),
    alone=True,
)
def parameter_written(tools: Toolbox) -> None:
    if not are_alone():
        raise Missing("a system whose VMs are all this one's: the parameter is for all of them")
    now = _PARAMETER.read_text().strip() if _PARAMETER.exists() else "never"
    if now == "never" or errno_of(lambda: write(now)):
        raise Missing("kvm.nx_huge_pages, and root to write it")
    bare = tools.keep(tools.kvm.create_vm(0))
    waiting = tools.vm()
    waiting.cpu.prepare(routines.HALT)
    private = tools.has_private_vm
    vm = tools.private_vm() if private else tools.vm()
    memory = tools.memory(vm, 4 * GIB, _SIZE) if private else None
    if memory is not None:
        memory.fill(0, _SIZE, SHARED)
        memory.set_private(0, _SIZE)
        memory.guest_fill(0, _SIZE, PRIVATE)
    vm.cpu.write(0x5000, 0x77)
    try:
        for value in ("force", "off", "force"):
            write(value)
            vm.cpu.expect_read(0x5000, 0x77, f"memory after kvm.nx_huge_pages={value}")
            if memory is not None:
                memory.expect_guest(0, _SIZE, PRIVATE, f"after kvm.nx_huge_pages={value}")
    finally:
        write(now)
    waiting.cpu.finish("the first KVM_RUN after it")
    bare.close()
