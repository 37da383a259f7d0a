"""Errors: each message names the thing, the cause and, where known, the remedy.

One rule for what callers give. A number that cannot be is a :class:`ConfigurationError`,
which is a ValueError too; something of another type, a float, a str or None for an integer,
another structure for an ioctl's, is a :class:`WrongTypeError`, which is a TypeError too. So
every call that cannot be made raises a :class:`PyvmmError`, and changes nothing.
"""

from __future__ import annotations

import errno as errno_module
import os
from typing import Self


class PyvmmError(Exception):
    """Base of every error that pyvmm raises on purpose.

    ``thing`` is what failed, ``cause`` why, ``remedy`` what to do about it ("" when
    nobody knows). ``str()`` is one line with all three.
    """

    def __init__(self, thing: str, cause: str, remedy: str = "") -> None:
        self.thing = thing
        self.cause = cause
        self.remedy = remedy
        super().__init__(thing, cause, remedy)

    def __str__(self) -> str:
        line = f"{self.thing}: {self.cause}"
        return f"{line}; {self.remedy}" if self.remedy else line


class ConfigurationError(PyvmmError, ValueError):
    """What was asked for cannot be: overlapping regions, too many vCPUs, a bad option."""


class WrongTypeError(PyvmmError, TypeError):
    """Something of another type than what is wanted; the cause names both."""


class GuestError(PyvmmError):
    """The guest's file cannot become an image: missing, empty, too large, not assembling."""


class UnsupportedError(PyvmmError):
    """This host lacks something that was asked for; the cause names it."""


class ClosedError(PyvmmError, ValueError):
    """Something was used after it had been closed."""

    def __init__(self, thing: str) -> None:
        super().__init__(thing, "it has been closed")

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        # What pickle gives to __init__(): not `args`, which the base class has made of it.
        return type(self), (self.thing,)


class KvmError(PyvmmError, OSError):
    """A system call failed.

    ``errno`` is the kernel's, ``call`` the ioctl's or system call's name, ``about``
    the object it was about (a slot, a GPA, a capability) or "".
    """

    def __init__(self, call: str, number: int, about: str = "", remedy: str = "") -> None:
        name = _NAMES.get(number) or errno_module.errorcode.get(number, str(number))
        remedy = remedy or REMEDIES.get((call, number)) or REMEDIES.get(("", number), "")
        thing = f"{call} ({about})" if about else call
        PyvmmError.__init__(self, thing, f"{os.strerror(number)} ({name})", remedy)
        self.errno = number
        self.strerror = os.strerror(number)
        self.call = call
        self.about = about

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, str, str]]:
        return type(self), (self.call, self.errno or 0, self.about, self.remedy)


# Numbers with two names, by the one that the kernel's documentation uses.
_NAMES = {errno_module.EOPNOTSUPP: "EOPNOTSUPP"}

_HOLDERS = "I/O under way, a pipe, a pin (io_uring, VFIO) or a poisoned page may hold it"
_NO_ROOM = (
    "the memslots of the region, one for each run of pages in one state, are used up, "
    "or the memory behind it is"
)
_NOT_REACHED = "somebody else made a page of it private, or its memory has failed"
_NEEDS_IRQCHIP = "call create_irqchip() first, before the first vCPU"

# What has one cause alone, by call and errno; "" stands for every call. Where there are
# several, pyvmm.kvm.advice looks at what was asked.
REMEDIES: dict[tuple[str, int], str] = {
    ("open", errno_module.ENOENT): (
        "load KVM (modprobe kvm_amd or kvm_intel) and enable virtualisation in the firmware"
    ),
    ("open", errno_module.EACCES): (
        "add yourself to the group that owns /dev/kvm (usermod -aG kvm $USER, log in again)"
    ),
    ("KVM_CREATE_VM", errno_module.EINVAL): "this KVM does not have that VM type; see pyvmm doctor",
    ("KVM_CREATE_VM", errno_module.EBUSY): "another hypervisor holds the CPU's virtualisation",
    ("KVM_PRE_FAULT_MEMORY", errno_module.EOPNOTSUPP): (
        "pre-faulting needs two-dimensional paging (kvm_intel.ept=1, kvm_amd.npt=1)"
    ),
    ("KVM_GET_PIT2", errno_module.ENXIO): "call create_pit2() first",
    ("KVM_SET_PIT2", errno_module.ENXIO): "call create_pit2() first",
    ("convert", errno_module.EAGAIN): _HOLDERS,
    ("conversion", errno_module.EAGAIN): _HOLDERS,
    ("convert", errno_module.ENOTRECOVERABLE): "close the machine",
    ("conversion", errno_module.ENOTRECOVERABLE): (
        "an earlier conversion, or this one, has failed and could not be undone; close the machine"
    ),
    ("read", errno_module.EFAULT): _NOT_REACHED,
    ("write", errno_module.EFAULT): _NOT_REACHED,
    ("convert", errno_module.ENOSPC): _NO_ROOM,
    ("conversion", errno_module.ENOSPC): _NO_ROOM,
    ("mmap", errno_module.ENODEV): (
        "it cannot be mapped; of guest_memfds those that were made with GUEST_MEMFD_FLAG_MMAP can"
    ),
    ("KVM_IRQ_LINE", errno_module.ENXIO): _NEEDS_IRQCHIP,
    ("KVM_IRQ_LINE_STATUS", errno_module.ENXIO): _NEEDS_IRQCHIP,
    ("KVM_REGISTER_COALESCED_MMIO", errno_module.ENOSPC): (
        "the VM has as many zones and devices as KVM takes: unregister some, or make them larger"
    ),
    ("KVM_SET_TSC_KHZ", errno_module.EINVAL): "this host's TSC cannot be scaled to that",
    ("KVM_SMI", errno_module.EINVAL): "this KVM has no system management mode",
    ("KVM_KVMCLOCK_CTRL", errno_module.EINVAL): "the guest does not use kvmclock",
    ("", errno_module.ENOTTY): "this kernel's KVM does not have it",
    ("", errno_module.EMFILE): "raise the limit of open files (ulimit -n)",
    ("", errno_module.ENFILE): "the system has no open files left (sysctl fs.file-max)",
    (
        "",
        errno_module.ENOMEM,
    ): "there is not enough memory, or a limit on it (ulimit -v) is reached",
    ("", errno_module.EFBIG): "raise the limit of file sizes (ulimit -f)",
    ("", errno_module.ENOSPC): "the memory that backs it is used up",
    # The kernel's virt/kvm/kvm_main.c: kvm->mm != current->mm, or kvm->vm_dead.
    (
        "",
        errno_module.EIO,
    ): "another process made the VM (a fork cannot use it), or KVM has given the VM up (dmesg)",
}
