"""The clock that a VM's kvmclock shows (Documentation/virt/kvm/api.rst, 4.29)."""

from __future__ import annotations

from typing import NamedTuple


class Clock(NamedTuple):
    """A reading. ``clock_ns`` is the guest's clock, nanoseconds.

    ``realtime_ns`` and ``host_tsc`` were read at the same moment; None where the kernel
    cannot tell (before Linux 5.16, or without a stable TSC).
    """

    clock_ns: int
    realtime_ns: int | None
    host_tsc: int | None
    is_tsc_stable: bool
