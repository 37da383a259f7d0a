"""Run a few instructions of a probe in real mode and look at what KVM_RUN returned."""

from __future__ import annotations

import time
from typing import Any

from pyvmm.guest.boot import set_real_mode
from pyvmm.kvm import Kvm
from pyvmm.native import lib
from pyvmm.vcpu_loop import VcpuLoop
from pyvmm.vm import Vm

# A probe that spins is one that found nothing.
_DEADLINE_NS = 500_000_000


def run_probe(vm: Vm, kvm: Kvm, start: int) -> Any:
    """Run from GPA ``start`` to the first exit; its kvm_run, or None if KVM_RUN failed."""
    with vm.create_vcpu(0) as vcpu:
        set_real_mode(vcpu, start)
        loop = VcpuLoop(vcpu)
        deadline = time.monotonic_ns() + _DEADLINE_NS
        loop.limit(deadline)
        while (stop := loop.run()) == lib.STOP_SIGNAL:
            pass
        run = vcpu.kvm_run
        loop.close()
        return run if stop == lib.STOP_EXIT else None
