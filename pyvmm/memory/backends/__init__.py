"""The backends, in the order in which ``auto`` prefers them."""

from __future__ import annotations

from pyvmm.errors import ConfigurationError, UnsupportedError
from pyvmm.kvm.arguments import need
from pyvmm.kvm.system import Kvm
from pyvmm.memory.backends.emulated import EmulatedBackend
from pyvmm.memory.backends.guest_memfd import GuestMemfdBackend
from pyvmm.memory.backends.in_place import InPlaceBackend
from pyvmm.memory.backends.memory_error import MemoryErrorBackend
from pyvmm.memory.backing import Backend, Support
from pyvmm.page_states import Mechanism

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        MemoryErrorBackend(),
        InPlaceBackend(),
        GuestMemfdBackend(),
        EmulatedBackend(),
    )
}


def choose_backend(kvm: Kvm, name: str = "auto") -> tuple[Backend, Mechanism]:
    """The backend called ``name``, or with ``auto`` the first that the probe finds.

    Raises :class:`UnsupportedError` when the kernel does not have it.
    """
    need("backend", name, str)
    if name != "auto" and name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise ConfigurationError(f"backend {name}", "there is no such backend", f"use {known}")
    if name != "auto":
        support = probe(kvm, BACKENDS[name])
        if support.mechanism is None:
            raise UnsupportedError(f"backend {name}", support.missing, support.remedy)
        return BACKENDS[name], support.mechanism
    for backend in BACKENDS.values():
        support = probe(kvm, backend)
        if support.mechanism is not None:
            return backend, support.mechanism
    raise UnsupportedError("private memory", "no backend works on this KVM", "see pyvmm doctor")


_found: dict[str, Support] = {}


def probe(kvm: Kvm, backend: Backend) -> Support:
    """What ``backend.probe()`` finds; a kernel is asked once per process."""
    if backend.name not in _found:
        _found[backend.name] = backend.probe(kvm)
    return _found[backend.name]
