"""/dev/kvm: the system ioctls."""

from __future__ import annotations

import os
from typing import Any

from pyvmm.errors import KvmError, PyvmmError
from pyvmm.fd import KvmFd
from pyvmm.native import ffi, lib
from pyvmm.vm import Vm

# The stable API; Documentation/virt/kvm/api.rst, 4.1: refuse to run with any other.
API_VERSION = 12


class Kvm(KvmFd):
    """An open /dev/kvm.

    Raises :class:`KvmError` when it cannot be opened and :class:`PyvmmError`
    when it is something else or speaks another API version.
    """

    def __init__(self, path: str | os.PathLike[str] = "/dev/kvm") -> None:
        name = os.fspath(path)
        try:
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmError("open", error.errno or 0, name) from None
        super().__init__(fd, name)
        try:
            version = self.get_api_version()
        except KvmError as error:
            self.close()
            cause = f"it is not KVM ({error.strerror})"
            raise PyvmmError(name, cause, "make it again: mknod /dev/kvm c 10 232") from None
        if version != API_VERSION:
            self.close()
            raise PyvmmError(
                name, f"it has KVM API version {version}, not {API_VERSION}", "use Linux 2.6.22+"
            )
        self._mmap_size = 0
        self._supported_cpuid: Any = None

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION."""
        return self.ioctl("KVM_GET_API_VERSION")

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when absent. Ask the VM where VM types differ."""
        return self.ioctl("KVM_CHECK_EXTENSION", capability, f"capability {capability}")

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of a vCPU's shared memory."""
        if not self._mmap_size:
            self._mmap_size = self.ioctl("KVM_GET_VCPU_MMAP_SIZE")
        return self._mmap_size

    def create_vm(self, vm_type: int = lib.KVM_X86_DEFAULT_VM) -> Vm:
        """KVM_CREATE_VM."""
        fd = self.ioctl("KVM_CREATE_VM", vm_type, f"VM type {vm_type}")
        return Vm(fd, vm_type, self.get_vcpu_mmap_size())

    def get_supported_cpuid(self) -> Any:
        """KVM_GET_SUPPORTED_CPUID: a ``struct kvm_cpuid2 *``, asked once. Do not change it."""
        if self._supported_cpuid is None:
            entries = 128
            while True:
                cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": entries})
                cpuid.nent = entries
                try:
                    self.ioctl("KVM_GET_SUPPORTED_CPUID", cpuid)
                    break
                except KvmError as error:
                    if error.errno != 7 or entries > 4096:  # E2BIG
                        raise
                    entries *= 2
            self._supported_cpuid = cpuid
        return self._supported_cpuid
