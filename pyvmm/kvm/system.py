"""/dev/kvm: the system ioctls."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from functools import cache
from typing import Any

from pyvmm.errors import ConfigurationError, KvmError, PyvmmError
from pyvmm.kvm import advice, uapi
from pyvmm.kvm.arguments import need
from pyvmm.kvm.cpuid import ask_cpuid
from pyvmm.kvm.fd import KvmFd
from pyvmm.kvm.msrs import get_msr_list, get_msrs
from pyvmm.kvm.vm import Vm
from pyvmm.native import lib

# The stable API; Documentation/virt/kvm/api.rst, 4.1: refuse to run with any other.
API_VERSION = 12
# Set in a lab whose CPUs must not run guests at the same time; see csrc/guest_cpu.h.
_GUEST_CPU = "PYVMM_GUEST_CPU"


@cache
def _choose_guest_cpu() -> None:
    """Let guests of this process run on the CPU that the environment names, if it names one."""
    cpu = os.environ.get(_GUEST_CPU)
    if cpu is None:
        return
    number = int(cpu) if cpu.isascii() and cpu.isdecimal() and len(cpu) < 5 else -1
    if lib.guest_cpu_choose(number) < 0:
        raise ConfigurationError(
            f"{_GUEST_CPU}={cpu}",
            "this process may not run there",
            f"unset it, or name one of {sorted(os.sched_getaffinity(0))}",
        )


class Kvm(KvmFd):
    """An open /dev/kvm.

    Raises :class:`KvmError` when it cannot be opened and :class:`PyvmmError`
    when it is something else or speaks another API version.
    """

    def __init__(self, path: str | os.PathLike[str] = "/dev/kvm") -> None:
        _choose_guest_cpu()
        need("path", path, str, os.PathLike)
        name = os.fspath(path)
        try:
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmError("open", error.errno or 0, name) from None
        except ValueError as error:  # a null character
            raise ConfigurationError(repr(name), str(error)) from None
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

    def _advice(self, call: str, argument: Any, number: int) -> str:
        return advice.wrong_owner("/dev/kvm", call, number)

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION."""
        return self.ioctl("KVM_GET_API_VERSION")

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when absent. Ask the VM where VM types differ."""
        return self.ioctl("KVM_CHECK_EXTENSION", capability, "capability %s", capability)

    def capabilities(self) -> dict[str, int]:
        """KVM_CHECK_EXTENSION for every capability with a name: its answer, 0 when absent."""
        return {name: self.check_extension(cap) for name, cap in uapi.capabilities().items()}

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of a vCPU's shared memory."""
        if not self._mmap_size:
            self._mmap_size = self.ioctl("KVM_GET_VCPU_MMAP_SIZE")
        return self._mmap_size

    def create_vm(self, vm_type: int = lib.KVM_X86_DEFAULT_VM) -> Vm:
        """KVM_CREATE_VM. A signal that comes meanwhile makes the kernel give up: tried again."""
        mmap_size = self.get_vcpu_mmap_size()  # first: nobody would close the VM if this failed
        while True:
            try:
                fd = self.ioctl("KVM_CREATE_VM", vm_type, "VM type %s", vm_type)
            except KvmError as error:
                if error.errno != errno.EINTR:
                    raise
            else:
                return Vm(fd, vm_type, mmap_size)

    def vm_types(self) -> tuple[int, ...]:
        """The VM types that can be created (KVM_CAP_VM_TYPES, Linux 6.8); see VmType."""
        types = self.check_extension(lib.KVM_CAP_VM_TYPES) or 1 << lib.KVM_X86_DEFAULT_VM
        return tuple(bit for bit in range(types.bit_length()) if types >> bit & 1)

    def get_supported_cpuid(self) -> Any:
        """KVM_GET_SUPPORTED_CPUID (4.46): a ``struct kvm_cpuid2 *``, asked once. Do not change it.

        :mod:`pyvmm.kvm.cpuid` turns it into tuples and back.
        """
        if self._supported_cpuid is None:
            self._supported_cpuid = ask_cpuid(self, "KVM_GET_SUPPORTED_CPUID")
        return self._supported_cpuid

    def get_emulated_cpuid(self) -> Any:
        """KVM_GET_EMULATED_CPUID (4.88): what KVM can emulate only; ``struct kvm_cpuid2 *``."""
        return ask_cpuid(self, "KVM_GET_EMULATED_CPUID")

    def get_supported_hv_cpuid(self) -> Any:
        """KVM_GET_SUPPORTED_HV_CPUID (4.118): Hyper-V's leaves; ``struct kvm_cpuid2 *``."""
        return ask_cpuid(self, "KVM_GET_SUPPORTED_HV_CPUID")

    def get_msr_index_list(self) -> tuple[int, ...]:
        """KVM_GET_MSR_INDEX_LIST (4.3): the MSRs that make up a vCPU's state."""
        return get_msr_list(self, "KVM_GET_MSR_INDEX_LIST")

    def get_msr_feature_index_list(self) -> tuple[int, ...]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST (4.3): those that :meth:`get_msrs` takes here."""
        return get_msr_list(self, "KVM_GET_MSR_FEATURE_INDEX_LIST")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS (4.18) of the system: the values of MSR-based features."""
        return get_msrs(self, indices)
