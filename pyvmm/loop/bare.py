"""One vCPU run to its next exit under a deadline: no private memory, no protocol, no devices."""

from __future__ import annotations

import time

from pyvmm.closing import Closing
from pyvmm.errors import KvmError, PyvmmError
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.native import lib


class NoExitError(PyvmmError):
    """A vCPU did not come back within its deadline; it is still somewhere in its guest."""


class BareVcpu(Closing):
    """Runs ``vcpu``, which stays its owner's. A context manager.

    Every exit is the caller's to answer, in ``vcpu.kvm_run``.

    Synchronization: one thread at a time.
    """

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.loop = VcpuLoop(vcpu)

    def enter(self, deadline_s: float) -> int:
        """KVM_RUN to the next exit: 0, or the errno that it failed with.

        Raises :class:`NoExitError` when ``deadline_s`` seconds are over. No signal of the
        deadline's comes after it, which would end another call of the caller's.
        """
        loop = self.loop
        loop.limit(time.monotonic_ns() + int(deadline_s * 1e9))
        try:
            while (stop := loop.run()) == lib.STOP_SIGNAL:
                pass
        finally:
            loop.pause()
        if stop == lib.STOP_RUN_FAILED:
            return int(loop.raw.error)
        if stop != lib.STOP_EXIT:
            raise NoExitError(self.vcpu.name, f"it got no exit within {deadline_s:g} s")
        return 0

    def run(self, deadline_s: float) -> Exit:
        """The next exit. Raises :class:`NoExitError`, and :class:`KvmError` if KVM_RUN fails."""
        if error := self.enter(deadline_s):
            raise KvmError("KVM_RUN", error, self.vcpu.name)
        return self.vcpu.exit()

    def close(self) -> None:
        """Give the loop's timer back; the vCPU stays open."""
        self.loop.close()
