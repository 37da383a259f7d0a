"""guest_memfd: memory that belongs to a VM (Linux 6.8, Documentation/virt/kvm/api.rst 4.142)."""

from __future__ import annotations

import fcntl

from pyvmm.kvm.memfd import MemoryFile


class GuestMemfd(MemoryFile):
    """Made by :meth:`pyvmm.kvm.vm.Vm.create_guest_memfd`.

    The host cannot read or write it, and can map it only on kernels that have
    GUEST_MEMFD_FLAG_MMAP. The descriptor keeps the VM alive until it is closed.
    """

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(fd, "guest_memfd", size)
        # The kernel does not set it, and a program that is started must not hold the VM.
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
