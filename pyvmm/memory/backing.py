"""What a region is made of: its two files and the mappings behind its views."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from pyvmm.errors import KvmError
from pyvmm.host import nested_paging_off
from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.kvm.memfd import Memfd, MemoryFile
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vm import Vm
from pyvmm.native import lib
from pyvmm.page_states import Mechanism

NO_PROTECTED_VM = "this KVM has no VM type 1 (software-protected)"


@dataclass(frozen=True, slots=True)
class Support:
    """What a probe found: a mechanism, or what is missing and what to do about it."""

    mechanism: Mechanism | None
    missing: str = ""
    remedy: str = ""


def create_protected_vm(kvm: Kvm) -> Vm | None:
    """A software-protected VM; None where this KVM has no such type.

    Raises :class:`KvmError` for any other reason: too few descriptors, no memory.
    """
    try:
        return kvm.create_vm(lib.KVM_X86_SW_PROTECTED_VM)
    except KvmError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def no_protected_vm(remedy: str) -> Support:
    """For a KVM that cannot create a software-protected VM; ``remedy`` is for one that never
    could."""
    missing = NO_PROTECTED_VM
    if parameter := nested_paging_off():
        module, _, setting = parameter.partition(".")
        wanted = setting.replace("=0", "=1")
        return Support(None, f"{missing}: {parameter}", f"load {module} with {wanted}")
    return Support(None, missing, remedy)


class Backing(NamedTuple):
    """The files of a region, which may be one, and the host memory behind its views."""

    private_file: MemoryFile
    shared_file: MemoryFile
    private_host: Mapping
    shared_host: Mapping

    def close(self) -> None:
        self.private_host.close()
        self.shared_host.close()
        self.private_file.close()
        self.shared_file.close()


def add_shared_file(private_file: MemoryFile, map_private: Callable[[], Mapping]) -> Backing:
    """A shared memfd beside ``private_file``, and the mappings. Closes all when that fails."""
    shared_file: Memfd | None = None
    try:
        shared_file = Memfd("shared", private_file.size)
        return Backing(private_file, shared_file, map_private(), shared_file.map())
    except BaseException:
        private_file.close()
        if shared_file is not None:
            shared_file.close()
        raise


def back_with_guest_memfd(vm: Vm, size: int) -> Backing:
    """A guest_memfd and a shared memfd; behind the private pages nothing is readable."""
    unreadable = partial(Mapping, size, protection=PROT_NONE)
    return add_shared_file(vm.create_guest_memfd(size), unreadable)


class Backend(Protocol):
    """One kernel ABI for private memory: this much in Python, the rest in C.

    The file of the same name in ``csrc/backends/`` recognises exits and converts.
    """

    @property
    def name(self) -> str:
        """As in csrc/backends/."""

    @property
    def title(self) -> str:
        """What of KVM it needs, in a few words."""

    @property
    def vm_type(self) -> int:
        """For KVM_CREATE_VM."""

    @property
    def hypercall(self) -> bool:
        """Whether the guest can ask by KVM_HC_MAP_GPA_RANGE."""

    @property
    def views(self) -> tuple[int, ...]:
        """The numbers of views that a region may have."""

    @property
    def keeps_contents(self) -> bool:
        """Whether a converted page can keep its contents; otherwise it reads zero."""

    def probe(self, kvm: Kvm) -> Support:
        """Find out by trying whether this KVM has the ABI."""

    def back(self, vm: Vm, size: int, views: int, mechanism: Mechanism) -> Backing:
        """Make the files and mappings of a region of ``size`` bytes, all pages shared."""

    def slots(self, pages: int, views: int) -> int:
        """How many memslots a region may need at most."""
