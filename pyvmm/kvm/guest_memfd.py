"""guest_memfd: memory that belongs to a VM (Linux 6.8, Documentation/virt/kvm/api.rst 4.142)."""

from __future__ import annotations

import fcntl
from typing import Any

from pyvmm.kvm.advice import rules as advice
from pyvmm.kvm.arguments import structure
from pyvmm.kvm.fd import KvmFd
from pyvmm.kvm.memfd import MemoryFile


class GuestMemfd(MemoryFile, KvmFd):
    """Made by :meth:`pyvmm.kvm.vm.Vm.create_guest_memfd`.

    The host cannot read or write it, and can map it only on kernels that have
    GUEST_MEMFD_FLAG_MMAP. The descriptor keeps the VM alive until it is closed.
    """

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(fd, "guest_memfd", size)
        # The kernel does not set it, and a program that is started must not hold the VM.
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)

    def set_memory_attributes2(self, offset: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2 (Linux 7.4) for ``size`` bytes from ``offset`` in the file.

        All of them change, or none. EAGAIN says that somebody uses a page that was to become
        private; the message names the first. ``ioctl()`` with a structure of one's own gives
        its ``error_offset``.
        """
        request = structure(
            "struct kvm_memory_attributes2", offset=offset, size=size, attributes=attributes
        )
        about = "offset %#x, %#x bytes, attributes %#x"
        self.ioctl("KVM_SET_MEMORY_ATTRIBUTES2", request, about, offset, size, attributes)

    def _advice(self, call: str, argument: Any, number: int) -> str:
        return advice.of_guest_memfd(self.size, call, argument, number)
