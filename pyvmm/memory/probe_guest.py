"""Run a few instructions of a probe in real mode and look at what KVM_RUN returned."""

from __future__ import annotations

from typing import Any

from pyvmm.guest.boot import set_real_mode
from pyvmm.kvm.vm import Vm
from pyvmm.loop.bare import BareVcpu, NoExitError

# A probe that spins is one that found nothing.
_DEADLINE_S = 0.5


def run_probe(vm: Vm, start: int) -> Any:
    """Run from GPA ``start`` to the first exit; its kvm_run, or None if KVM_RUN failed."""
    with vm.create_vcpu(0) as vcpu, BareVcpu(vcpu) as bare:
        set_real_mode(vcpu, start)
        try:
            return vcpu.kvm_run if bare.enter(_DEADLINE_S) == 0 else None
        except NoExitError:
            return None
