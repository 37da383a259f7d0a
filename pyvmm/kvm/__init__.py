"""The bindings: one class for each of KVM's descriptors, a method for each ioctl.

    from pyvmm.kvm import Kvm

    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        ...

They can be used alone. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvmm.kvm.eventfd import EventFd
    from pyvmm.kvm.guest_memfd import GuestMemfd
    from pyvmm.kvm.mapping import Mapping
    from pyvmm.kvm.memfd import Memfd
    from pyvmm.kvm.system import Kvm
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.kvm.vm import Vm

_HOMES = {
    "EventFd": "eventfd",
    "GuestMemfd": "guest_memfd",
    "Kvm": "system",
    "Mapping": "mapping",
    "Memfd": "memfd",
    "Vcpu": "vcpu",
    "Vm": "vm",
}

__all__ = ["EventFd", "GuestMemfd", "Kvm", "Mapping", "Memfd", "Vcpu", "Vm"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyvmm.kvm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pyvmm.kvm.{_HOMES[name]}"), name)
