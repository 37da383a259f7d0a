"""Single step, breakpoints, MSR exits, signal masks and time."""

from __future__ import annotations

import errno
import signal
import threading
import time

import pytest
from bare_vm import BareVm

from pyvmm.errors import ConfigurationError, KvmError
from pyvmm.kvm.exits import DebugExit, HltExit, MsrExit
from pyvmm.kvm.msrs import MsrFilterRange
from pyvmm.kvm.vm import Vm
from pyvmm.native import lib

pytestmark = pytest.mark.usefixtures("no_leak")

MSR_IA32_SYSENTER_CS = 0x174


def test_single_step() -> None:
    with BareVm("nop\nnop\nnop\nhlt") as bare:
        bare.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
        for pc in (0x7C01, 0x7C02, 0x7C03):
            exit = bare.run()
            assert isinstance(exit, DebugExit)
            assert (exit.exception, exit.pc) == (1, pc)
            assert exit.dr6 & 1 << 14  # BS
        bare.vcpu.set_guest_debug(0)
        bare.run_to_hlt()


def test_hardware_breakpoint() -> None:
    with BareVm("nop\nnop\nnop\nhlt") as bare:
        bare.vcpu.set_guest_debug(
            lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP,
            (0x7C02, 0, 0, 0, 0, 0, 0, 0x402),  # DR7: breakpoint 0, globally
        )
        exit = bare.run()
        if exit == HltExit():
            pytest.skip("this CPU does not stop guests at breakpoints")
        assert isinstance(exit, DebugExit)
        assert exit.pc == 0x7C02
        bare.vcpu.set_guest_debug(0)
        bare.run_to_hlt()


def msr_exits(vm: Vm) -> None:
    if not vm.check_extension(lib.KVM_CAP_X86_USER_SPACE_MSR):
        pytest.skip("no KVM_CAP_X86_USER_SPACE_MSR")
    every = (
        lib.KVM_MSR_EXIT_REASON_INVAL
        | lib.KVM_MSR_EXIT_REASON_UNKNOWN
        | lib.KVM_MSR_EXIT_REASON_FILTER
    )
    vm.enable_cap(lib.KVM_CAP_X86_USER_SPACE_MSR, every)


RDMSR_WRMSR = "mov $0x174, %ecx\nrdmsr\ninc %eax\nwrmsr\nhlt"


def test_filtered_msr_accesses_exit() -> None:
    def prepare(vm: Vm) -> None:
        msr_exits(vm)
        if not vm.has(lib.KVM_CAP_X86_MSR_FILTER):
            pytest.skip("no KVM_CAP_X86_MSR_FILTER")
        # One bit, 0: denied.
        vm.x86_set_msr_filter([MsrFilterRange(MSR_IA32_SYSENTER_CS, 1, b"\0")])

    with BareVm(RDMSR_WRMSR, prepare=prepare) as bare:
        reason = lib.KVM_MSR_EXIT_REASON_FILTER
        assert bare.run() == MsrExit(MSR_IA32_SYSENTER_CS, False, 0, reason)
        bare.vcpu.kvm_run.msr.data = 0x1122
        assert bare.run() == MsrExit(MSR_IA32_SYSENTER_CS, True, 0x1123, reason)
        bare.run_to_hlt()
        # The filter is for guests: we may, and KVM's own value was never touched.
        assert bare.vcpu.get_msrs([MSR_IA32_SYSENTER_CS]) == {MSR_IA32_SYSENTER_CS: 0}


def test_a_filtered_msr_access_can_fault() -> None:
    def prepare(vm: Vm) -> None:
        msr_exits(vm)
        vm.x86_set_msr_filter([MsrFilterRange(MSR_IA32_SYSENTER_CS, 1, b"\0")])

    with BareVm(RDMSR_WRMSR, prepare=prepare) as bare:
        assert isinstance(bare.run(), MsrExit)
        bare.vcpu.kvm_run.msr.error = 1
        assert bare.run_to_stub() == 13


def test_an_empty_filter_allows_all_again() -> None:
    with BareVm(RDMSR_WRMSR) as bare:
        bare.vm.x86_set_msr_filter([MsrFilterRange(MSR_IA32_SYSENTER_CS, 1, b"\0")])
        bare.vm.x86_set_msr_filter(())
        bare.run_to_hlt()
        assert bare.vcpu.get_msrs([MSR_IA32_SYSENTER_CS]) == {MSR_IA32_SYSENTER_CS: 1}


def test_unknown_msr_exits() -> None:
    with BareVm("mov $0xdead0000, %ecx\nrdmsr\nhlt", prepare=msr_exits) as bare:
        exit = bare.run()
        assert isinstance(exit, MsrExit)
        assert (exit.msr, exit.reason) == (0xDEAD0000, lib.KVM_MSR_EXIT_REASON_UNKNOWN)


def test_filters_that_cannot_be() -> None:
    with BareVm() as bare:
        with pytest.raises(ConfigurationError, match="1 bytes of bitmap for 9 MSRs"):
            bare.vm.x86_set_msr_filter([MsrFilterRange(0x10, 9, b"\0")])
        with pytest.raises(ConfigurationError, match="17 ranges"):
            bare.vm.x86_set_msr_filter([MsrFilterRange(0x10, 1, b"\0")] * 17)
        with pytest.raises(KvmError, match="1 ranges"):
            bare.vm.x86_set_msr_filter([MsrFilterRange(0x10, 1, b"\0", flags=0x80)])


def test_signal_mask() -> None:
    """A signal that is blocked outside KVM_RUN and not inside ends it, and stays pending."""
    with BareVm("again: jmp again") as bare:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            bare.vcpu.set_signal_mask(blocked - {signal.SIGUSR1})
            target = threading.get_ident()
            sender = threading.Timer(0.05, signal.pthread_kill, (target, signal.SIGUSR1))
            sender.start()
            # Bare KVM_RUN: what ends it is what is tested; pytest's timeout is behind it.
            with pytest.raises(KvmError) as caught:
                bare.vcpu.run()
            sender.join()
            assert caught.value.errno == errno.EINTR
            assert signal.sigtimedwait([signal.SIGUSR1], 0) is not None
            bare.vcpu.set_signal_mask(None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def test_clock() -> None:
    with BareVm() as bare:
        if not bare.vm.has(lib.KVM_CAP_ADJUST_CLOCK):
            pytest.skip("no KVM_CAP_ADJUST_CLOCK")
        bare.vm.set_clock(1_000_000_000_000)
        first = bare.vm.get_clock()
        assert 1_000_000_000_000 <= first.clock_ns < 1_100_000_000_000
        assert bare.vm.get_clock().clock_ns >= first.clock_ns
        if first.realtime_ns is not None:
            assert abs(first.realtime_ns - time.time_ns()) < 10_000_000_000
            # An hour ago by the host's clock: the guest's has gone on since.
            bare.vm.set_clock(5, first.realtime_ns - 3_600_000_000_000)
            assert bare.vm.get_clock().clock_ns > 3_600_000_000_000


def test_tsc_khz() -> None:
    with BareVm("rdtsc\nhlt") as bare:
        if not bare.vm.has(lib.KVM_CAP_GET_TSC_KHZ):
            pytest.skip("no KVM_CAP_GET_TSC_KHZ")
        khz = bare.vcpu.get_tsc_khz()
        assert khz > 100_000
        if not bare.vm.has(lib.KVM_CAP_TSC_CONTROL):
            with pytest.raises(KvmError) as caught:
                bare.vcpu.set_tsc_khz(khz // 2)
            assert f"{khz // 2} kHz" in str(caught.value)
            assert caught.value.remedy
            pytest.skip("no KVM_CAP_TSC_CONTROL")
        bare.vcpu.set_tsc_khz(khz // 2)
        assert abs(bare.vcpu.get_tsc_khz() - khz // 2) <= 1


def test_vm_tsc_khz() -> None:
    def prepare(vm: Vm) -> None:
        if not vm.has(lib.KVM_CAP_VM_TSC_CONTROL):
            pytest.skip("no KVM_CAP_VM_TSC_CONTROL")
        vm.set_tsc_khz(vm.get_tsc_khz())

    with BareVm(prepare=prepare) as bare:
        assert bare.vm.get_tsc_khz() == bare.vcpu.get_tsc_khz()


def test_hlt_is_the_end() -> None:
    with BareVm("hlt") as bare:
        assert bare.run() == HltExit()
