"""A vCPU: the ioctls on the descriptor that KVM_CREATE_VCPU returns."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from pyvmm.errors import ClosedError, ConfigurationError, KvmError
from pyvmm.kvm import advice
from pyvmm.kvm.arguments import MOST_U32, listed, need, number, structure
from pyvmm.kvm.cpuid import ask_cpuid
from pyvmm.kvm.exits import Exit, exit_decoder
from pyvmm.kvm.fd import KvmFd
from pyvmm.kvm.ioctls import SIZED_BY_THE_HOST
from pyvmm.kvm.mapping import PROT_READ_WRITE, map_memory
from pyvmm.kvm.msrs import get_msrs, set_msrs
from pyvmm.kvm.stats import Stats
from pyvmm.native import ffi, lib

# What the kernel calls sigset_t: one bit for each of 64 signals.
_SIGNALS = 64


class Vcpu(KvmFd):
    """A virtual CPU. Made by :meth:`pyvmm.kvm.vm.Vm.create_vcpu`.

    Register files are pointers to the kernel's own structures, to be changed and given
    back; what they hold is in ``arch/x86/include/uapi/asm/kvm.h``. All methods raise
    :class:`KvmError`, and as :mod:`pyvmm.errors` says for what cannot be given; the sections
    are those of Documentation/virt/kvm/api.rst in Linux 7.3.

    Synchronization: KVM's vCPU ioctls belong to the thread that runs the vCPU.
    """

    def __init__(
        self,
        fd: int,
        index: int,
        mmap_size: int,
        vm_state: advice.VmState | None = None,
    ) -> None:
        super().__init__(fd, f"vCPU {index}")
        self._vm_state = vm_state
        self.index = index
        self.mmap_size = mmap_size
        try:
            # Whoever still holds the pointer after close() keeps the memory mapped.
            self._run = map_memory(
                mmap_size, PROT_READ_WRITE, mmap.MAP_SHARED, fd, 0, "struct kvm_run *", self.name
            )
        except KvmError:
            self.close()
            raise
        self.exit: Callable[[], Exit] = exit_decoder(self._run)
        """The exit that kvm_run holds, as an object; see :mod:`pyvmm.kvm.exits`."""

    @property
    def kvm_run(self) -> Any:
        """The ``struct kvm_run *`` that is shared with the kernel, to be read in place.

        With KVM_CAP_SYNC_REGS (6.74), ``kvm_valid_regs`` asks for registers in ``s.regs`` at
        every exit, and ``kvm_dirty_regs`` has changed ones loaded at the next entry.
        """
        if self._run is None:
            raise ClosedError(self.name)
        return self._run

    def close(self) -> None:
        super().close()
        self._run = None
        self.exit = self._refuse

    def _refuse(self) -> NoReturn:
        raise ClosedError(self.name)

    def _advice(self, call: str, argument: Any, number: int) -> str:
        return advice.of_vcpu(advice.VcpuState(self, self._vm_state), call, argument, number)

    @cached_property
    def _xsave_size(self) -> int:
        """What KVM_CAP_XSAVE2 says of the VM, or what there was before it."""
        asked = 0 if self._vm_state is None else self._vm_state.ask(lib.KVM_CAP_XSAVE2)
        return max(asked, ffi.sizeof("struct kvm_xsave"))

    def _least(self, name: str) -> int:
        return self._xsave_size if name in SIZED_BY_THE_HOST else 0

    def _get(self, name: str, type: str) -> Any:
        structure = ffi.new(f"{type} *")
        self.ioctl(name, structure)
        return structure

    # ---- running ----

    def run(self) -> None:
        """KVM_RUN (4.10), once. Raises :class:`KvmError` also for EINTR; see kvm_run.

        It cannot be stopped from Python: what may spin belongs into a
        :class:`pyvmm.loop.vcpu_loop.VcpuLoop`, which has a deadline.
        """
        self.ioctl("KVM_RUN")

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """KVM_SET_SIGNAL_MASK (4.21): block these signals, and only these, in KVM_RUN.

        None goes back to the thread's own mask.
        """
        if blocked is None:
            self.ioctl("KVM_SET_SIGNAL_MASK")
            return
        mask = ffi.new("struct kvm_signal_mask *", {"len": _SIGNALS // 8, "sigset": _SIGNALS // 8})
        for signal in listed("signals", blocked):
            bit = number("signal", signal, 1, _SIGNALS) - 1
            mask.sigset[bit // 8] |= 1 << bit % 8
        self.ioctl("KVM_SET_SIGNAL_MASK", mask)

    def set_guest_debug(self, control: int, debug_registers: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG (4.87): ``lib.KVM_GUESTDBG_*`` bits, 0 to end.

        With KVM_GUESTDBG_USE_HW_BP, ``debug_registers`` are DR0 to DR7.
        """
        request = structure("struct kvm_guest_debug", control=control)
        debug_registers = listed("debug registers", debug_registers)
        if len(debug_registers) > len(request.arch.debugreg):
            raise ConfigurationError(
                f"{len(debug_registers)} debug registers", "there are DR0 to DR7"
            )
        for at, value in enumerate(debug_registers):
            request.arch.debugreg[at] = number(f"DR{at}", value)
        self.ioctl("KVM_SET_GUEST_DEBUG", request, "%s, control %#x", self.name, control)

    def translate(self, linear: int) -> int | None:
        """KVM_TRANSLATE (4.15): the GPA of a linear address, None where it is not mapped."""
        request = structure("struct kvm_translation", linear_address=linear)
        self.ioctl("KVM_TRANSLATE", request, "linear address %#x", linear)
        return int(request.physical_address) if request.valid else None

    def pre_fault_memory(self, gpa: int, size: int, flags: int = 0) -> int:
        """KVM_PRE_FAULT_MEMORY (4.143, Linux 6.11): the number of bytes that are left."""
        request = structure("struct kvm_pre_fault_memory", gpa=gpa, size=size, flags=flags)
        self.ioctl("KVM_PRE_FAULT_MEMORY", request, "GPA %#x, %#x bytes", gpa, size)
        return int(request.size)

    def enable_cap(self, capability: int, *arguments: int, flags: int = 0) -> int:
        """KVM_ENABLE_CAP (4.37) on the vCPU, with up to four arguments."""
        return self._enable_cap(capability, arguments, flags)

    def get_stats_fd(self) -> Stats:
        """KVM_GET_STATS_FD (4.133, Linux 5.14): the counters of this vCPU."""
        return Stats(self.ioctl("KVM_GET_STATS_FD"), self.name)

    # ---- registers ----

    def get_regs(self) -> Any:
        """KVM_GET_REGS (4.11): a ``struct kvm_regs *``."""
        return self._get("KVM_GET_REGS", "struct kvm_regs")

    def set_regs(self, regs: Any) -> None:
        """KVM_SET_REGS (4.12) from a ``struct kvm_regs *``."""
        self.ioctl("KVM_SET_REGS", regs)

    def get_sregs(self) -> Any:
        """KVM_GET_SREGS (4.13): a ``struct kvm_sregs *``."""
        return self._get("KVM_GET_SREGS", "struct kvm_sregs")

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS (4.14) from a ``struct kvm_sregs *``."""
        self.ioctl("KVM_SET_SREGS", sregs)

    def get_sregs2(self) -> Any:
        """KVM_GET_SREGS2 (4.131, Linux 5.14): a ``struct kvm_sregs2 *``, with PDPTRs."""
        return self._get("KVM_GET_SREGS2", "struct kvm_sregs2")

    def set_sregs2(self, sregs: Any) -> None:
        """KVM_SET_SREGS2 (4.132) from a ``struct kvm_sregs2 *``."""
        self.ioctl("KVM_SET_SREGS2", sregs)

    def get_fpu(self) -> Any:
        """KVM_GET_FPU (4.22): a ``struct kvm_fpu *``; KVM does not fill in its ``mxcsr``."""
        return self._get("KVM_GET_FPU", "struct kvm_fpu")

    def set_fpu(self, fpu: Any) -> None:
        """KVM_SET_FPU (4.23) from a ``struct kvm_fpu *``."""
        self.ioctl("KVM_SET_FPU", fpu)

    def get_xsave(self) -> bytes:
        """KVM_GET_XSAVE (4.42): the first 4096 bytes, laid out as CPUID leaf 0xD says."""
        return bytes(ffi.buffer(self._get("KVM_GET_XSAVE", "struct kvm_xsave")))

    def get_xsave2(self) -> bytes:
        """KVM_GET_XSAVE2 (4.134, Linux 5.17): all of it, KVM_CAP_XSAVE2 bytes."""
        area = ffi.new("char[]", self._xsave_size)
        self.ioctl("KVM_GET_XSAVE2", area)
        return bytes(ffi.buffer(area))

    def set_xsave(self, area: bytes) -> None:
        """KVM_SET_XSAVE (4.43) from what :meth:`get_xsave` or :meth:`get_xsave2` gave."""
        if not isinstance(area, (bytes, bytearray, memoryview)):
            self.ioctl("KVM_SET_XSAVE", area)
            return
        least, most = ffi.sizeof("struct kvm_xsave"), self._xsave_size
        if not least <= len(area) <= most:
            raise ConfigurationError(
                "KVM_SET_XSAVE",
                f"wants struct kvm_xsave * ({least} to {most} bytes), "
                f"was given {type(area).__name__} ({len(area)} bytes)",
            )
        # The kernel reads all that this host has.
        self.ioctl("KVM_SET_XSAVE", bytes(area).ljust(most, b"\0"))

    def get_xcrs(self) -> dict[int, int]:
        """KVM_GET_XCRS (4.44): the extended control registers by number; XCR0 is 0."""
        xcrs = self._get("KVM_GET_XCRS", "struct kvm_xcrs")
        return {xcrs.xcrs[at].xcr: xcrs.xcrs[at].value for at in range(xcrs.nr_xcrs)}

    def set_xcrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_XCRS (4.45)."""
        need("XCRs", values, Mapping)
        xcrs = ffi.new("struct kvm_xcrs *", {"nr_xcrs": len(values)})
        if len(values) > len(xcrs.xcrs):
            raise ConfigurationError(f"{len(values)} XCRs", f"KVM takes {len(xcrs.xcrs)}")
        for at, (register, value) in enumerate(values.items()):
            xcrs.xcrs[at].xcr = number("XCR", register, 0, MOST_U32)
            xcrs.xcrs[at].value = number(f"value of XCR{register}", value)
        self.ioctl("KVM_SET_XCRS", xcrs, "%s, %s", self.name, dict(values))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS (4.18). Raises :class:`UnsupportedError` naming one it does not have."""
        return get_msrs(self, indices)

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_MSRS (4.19). Raises :class:`UnsupportedError` naming one that was refused."""
        set_msrs(self, values)

    def get_debugregs(self) -> Any:
        """KVM_GET_DEBUGREGS (4.33): a ``struct kvm_debugregs *``."""
        return self._get("KVM_GET_DEBUGREGS", "struct kvm_debugregs")

    def set_debugregs(self, registers: Any) -> None:
        """KVM_SET_DEBUGREGS (4.34) from a ``struct kvm_debugregs *``."""
        self.ioctl("KVM_SET_DEBUGREGS", registers)

    def get_vcpu_events(self) -> Any:
        """KVM_GET_VCPU_EVENTS (4.31): pending and injected events, ``struct kvm_vcpu_events *``."""
        return self._get("KVM_GET_VCPU_EVENTS", "struct kvm_vcpu_events")

    def set_vcpu_events(self, events: Any) -> None:
        """KVM_SET_VCPU_EVENTS (4.32); ``flags`` says which of the optional parts count."""
        self.ioctl("KVM_SET_VCPU_EVENTS", events)

    def get_nested_state(self) -> bytes:
        """KVM_GET_NESTED_STATE (4.114, Linux 4.20): a ``struct kvm_nested_state`` and its data."""
        header = ffi.sizeof("struct kvm_nested_state")
        size = header
        while True:
            area = ffi.new("char[]", size)
            state = ffi.cast("struct kvm_nested_state *", area)
            state.size = size
            try:
                self.ioctl("KVM_GET_NESTED_STATE", area)
                return bytes(ffi.buffer(area, max(header, min(state.size, size))))
            except KvmError:
                # With E2BIG the kernel says how much it needs.
                if state.size <= size:
                    raise
            size = state.size

    def set_nested_state(self, state: bytes) -> None:
        """KVM_SET_NESTED_STATE (4.115) from what :meth:`get_nested_state` gave."""
        self.ioctl("KVM_SET_NESTED_STATE", state)

    # ---- CPUID ----

    def set_cpuid2(self, cpuid: Any) -> None:
        """KVM_SET_CPUID2 (4.20) from a ``struct kvm_cpuid2 *``, before the first run."""
        self.ioctl("KVM_SET_CPUID2", cpuid)

    def get_cpuid2(self) -> Any:
        """KVM_GET_CPUID2 (4.20): a ``struct kvm_cpuid2 *``; see :mod:`pyvmm.kvm.cpuid`."""
        return ask_cpuid(self, "KVM_GET_CPUID2")

    # ---- interrupts ----

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT (4.16): queue an external interrupt, where KVM has no irqchip.

        The guest must be able to take it: see ``kvm_run.ready_for_interrupt_injection``.
        """
        request = structure("struct kvm_interrupt", irq=vector)
        self.ioctl("KVM_INTERRUPT", request, "%s, vector %#x", self.name, vector)

    def nmi(self) -> None:
        """KVM_NMI (4.64): queue a non-maskable interrupt."""
        self.ioctl("KVM_NMI")

    def smi(self) -> None:
        """KVM_SMI (4.96): queue a system management interrupt; not every KVM has them."""
        self.ioctl("KVM_SMI")

    def get_lapic(self) -> Any:
        """KVM_GET_LAPIC (4.57): a ``struct kvm_lapic_state *``, the APIC's register page."""
        return self._get("KVM_GET_LAPIC", "struct kvm_lapic_state")

    def set_lapic(self, lapic: Any) -> None:
        """KVM_SET_LAPIC (4.58) from a ``struct kvm_lapic_state *``."""
        self.ioctl("KVM_SET_LAPIC", lapic)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE (4.38): one of :class:`pyvmm.kvm.uapi.MpState`."""
        return int(self._get("KVM_GET_MP_STATE", "struct kvm_mp_state").mp_state)

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE (4.39); a secondary vCPU of an irqchip VM waits until runnable."""
        request = structure("struct kvm_mp_state", mp_state=state)
        self.ioctl("KVM_SET_MP_STATE", request, "%s, state %s", self.name, state)

    def tpr_access_reporting(self, enabled: bool) -> None:
        """KVM_TPR_ACCESS_REPORTING: exit when the guest touches its APIC's TPR."""
        request = structure("struct kvm_tpr_access_ctl", enabled=enabled)
        self.ioctl("KVM_TPR_ACCESS_REPORTING", request)

    # ---- time ----

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ (4.56): how fast the guest's TSC counts."""
        return self.ioctl("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ (4.55); other speeds than the host's need TSC scaling."""
        number("kHz", khz, 0, MOST_U32)  # the kernel would cut it
        self.ioctl("KVM_SET_TSC_KHZ", khz, "%s, %s kHz", self.name, khz)

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL (4.70): tell a guest with kvmclock that it was paused."""
        self.ioctl("KVM_KVMCLOCK_CTRL")
