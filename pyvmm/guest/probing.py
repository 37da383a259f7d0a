"""Code of a guest tried in a VM of its own: by what exit it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.mapping import Mapping as HostMapping
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.uapi import reason_name
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.loop.bare import BareVcpu, NoExitError

_DEADLINE_S = 0.5


def exit_of(kvm: Kvm, parts: Mapping[int, bytes], enter: Callable[[Vcpu], object]) -> str:
    """The name of the first exit of one vCPU, in memory with ``parts`` by their GPAs; "" if there
    was none. ``enter(vcpu)`` sets its registers."""
    end = max(gpa + len(data) for gpa, data in parts.items())
    mapping = HostMapping(-(-end // PAGE_SIZE) * PAGE_SIZE)
    try:
        with kvm.create_vm() as vm:
            for gpa, data in parts.items():
                mapping.view[gpa : gpa + len(data)] = data
            vm.set_user_memory_region(0, 0, mapping.size, mapping.address)
            with vm.create_vcpu(0) as vcpu, BareVcpu(vcpu) as bare:
                vcpu.set_cpuid2(kvm.get_supported_cpuid())
                enter(vcpu)
                try:
                    if bare.enter(_DEADLINE_S):
                        return ""
                except NoExitError:
                    return ""
                return reason_name(vcpu.kvm_run.exit_reason)
    finally:
        mapping.close()


def exit_words(exit: str) -> str:
    """How a sentence names it."""
    return f"KVM_EXIT_{exit.upper()}" if exit else "no exit"
