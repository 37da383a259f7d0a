"""Who keeps page states here: the VM, by its attributes (6.8), or each guest_memfd (7.4)."""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.host import in_place_conversion
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib

_PARAMETER = "kvm.gmem_in_place_conversion"
# What a kernel says where it does not have an ioctl, or not for such a VM.
_HAS_NOT = (errno.ENOTTY, errno.EINVAL)


def states_are_the_files(vm: Vm) -> bool:
    """Ask a guest_memfd of a software-protected VM for KVM_SET_MEMORY_ATTRIBUTES2.

    An empty request is refused with EINVAL where the ioctl is there and on, with ENOTTY
    elsewhere. The capability alone does not say: its number may change until Linux 7.4.

    Raises :class:`KvmError` for any other reason, which says nothing about the kernel: too few
    descriptors, no memory.
    """
    nothing = ffi.new("struct kvm_memory_attributes2 *")
    try:
        with vm.create_guest_memfd(PAGE_SIZE) as file:
            file.ioctl("KVM_SET_MEMORY_ATTRIBUTES2", nothing)
    except KvmError as error:
        if error.errno not in _HAS_NOT:
            raise
        return error.call == "KVM_SET_MEMORY_ATTRIBUTES2" and error.errno == errno.EINVAL
    return False


def states_are_the_vms(vm: Vm) -> bool:
    """Whether this VM has KVM_SET_MEMORY_ATTRIBUTES with the private attribute."""
    known = vm.check_extension(lib.KVM_CAP_MEMORY_ATTRIBUTES)
    return bool(known & lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)


def why_in_place() -> str:
    """The reason for the mode of a KVM whose guest_memfds keep page states."""
    if (parameter := in_place_conversion()) is None:
        return "this kernel has no other mode (CONFIG_KVM_VM_MEMORY_ATTRIBUTES is off)"
    return f"{_PARAMETER} is on" if parameter else f"and yet {_PARAMETER} is off"


def why_not_in_place() -> str:
    """The reason for the mode of a KVM whose guest_memfds keep none."""
    if (parameter := in_place_conversion()) is None:
        return "this kernel has no in-place conversion"
    return f"and yet {_PARAMETER} is on" if parameter else f"{_PARAMETER} is off"


def other_mode() -> str:
    """How a KVM whose guest_memfds keep page states comes to keep them itself."""
    if in_place_conversion() is None:
        return "use a kernel with CONFIG_KVM_VM_MEMORY_ATTRIBUTES=y"
    return "load kvm with gmem_in_place_conversion=0"
