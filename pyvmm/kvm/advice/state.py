"""What the methods of a VM and its vCPUs have made so far, for advice and for nothing else.

What ``ioctl()`` alone makes, and the slots that C makes, are not here; so a rule about what
is not there must not be told from this alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from pyvmm.native import lib


class Slot(NamedTuple):
    """A memslot as it was made, or is asked for; ``file`` is its guest_memfd (:func:`file_of`)."""

    gpa: int
    size: int
    address: int
    flags: int
    offset: int = 0
    file: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class IoEvent:
    """What an ioeventfd listens to; ``value`` is None for every value."""

    is_port: bool
    address: int
    size: int
    value: int | None
    fd: int

    def __str__(self) -> str:
        place = f"{'port' if self.is_port else 'GPA'} {self.address:#x}"
        value = "" if self.value is None else f", value {self.value:#x}"
        return f"{place}, {self.size or 'any number of'} bytes{value}"


@dataclass(slots=True)
class VmState:
    """``ask`` is KVM_CHECK_EXTENSION of the VM, 0 where the question is unknown.

    ``has_pic`` asks KVM whether there is one, which ``ioctl()`` may have made.
    """

    vm_type: int
    ask: Callable[[int], int]
    has_pic: Callable[[], bool]
    slots: dict[int, Slot] = field(default_factory=dict)
    vcpus: set[int] = field(default_factory=set)
    irqchip: str = ""  # "full" or "split"
    has_pit: bool = False
    has_dirty_ring: bool = False
    io_events: list[IoEvent] = field(default_factory=list)

    def controller(self) -> str:
        """What is in the kernel: "full", "split" or ""."""
        if not self.irqchip and self.has_pic():
            self.irqchip = "full"
        return self.irqchip

    def before_vcpus(self) -> str:
        return "it must come before the first vCPU" if self.vcpus else ""


@dataclass(slots=True)
class VcpuState:
    """``vcpu`` is the :class:`pyvmm.kvm.vcpu.Vcpu`, ``vm`` None where its VM is not known."""

    vcpu: Any
    vm: VmState | None = None


# Every guest_memfd that a VM's method made, and the state of that VM.
FILES: WeakKeyDictionary[Any, VmState] = WeakKeyDictionary()


def file_of(fd: int) -> tuple[int, int] | None:
    """What tells the file behind a descriptor from others; None when it is not open."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def kind_of(fd: int) -> str:
    """What a descriptor is, as /proc names it; "" when it is not open."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def is_guest_memfd(fd: int) -> bool:
    return any(name in kind_of(fd) for name in ("kvm-gmem", "guest_memfd"))


def number_of_slots(state: VmState) -> int:
    return state.ask(lib.KVM_CAP_NR_MEMSLOTS)
