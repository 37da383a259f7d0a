"""A vCPU's registers: what was set is what is got, and what the guest sees."""

from __future__ import annotations

import errno

import pytest
from bare_vm import BareVm, lapics

from pyvmm.errors import KvmError, UnsupportedError
from pyvmm.kvm.exits import HltExit
from pyvmm.kvm.uapi import MpState
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib

pytestmark = pytest.mark.usefixtures("no_leak")

MSR_IA32_SYSENTER_CS = 0x174
MSR_IA32_SYSENTER_ESP = 0x175
MSR_TSC = 0x10


def test_regs() -> None:
    with BareVm("add %ebx, %eax\nhlt") as bare:
        regs = bare.vcpu.get_regs()
        regs.rax, regs.rbx, regs.r15 = 40, 2, 0x1122334455667788
        bare.vcpu.set_regs(regs)
        bare.run_to_hlt()
        regs = bare.vcpu.get_regs()
        assert (regs.rax, regs.rip, regs.r15) == (42, 0x7C04, 0x1122334455667788)


def test_sregs() -> None:
    with BareVm("mov %cs:0, %al\nhlt") as bare:
        sregs = bare.vcpu.get_sregs()
        sregs.fs.selector, sregs.fs.base = 0x1234, 0x12340
        bare.vcpu.set_sregs(sregs)
        assert bare.vcpu.get_sregs().fs.base == 0x12340
        bare.run_to_hlt()


def test_sregs2() -> None:
    with BareVm() as bare:
        if not bare.vm.has(lib.KVM_CAP_SREGS2):
            pytest.skip("no KVM_CAP_SREGS2")
        sregs = bare.vcpu.get_sregs2()
        assert sregs.flags & lib.KVM_SREGS2_FLAGS_PDPTRS_VALID == 0
        sregs.gs.base = 0x5550
        bare.vcpu.set_sregs2(sregs)
        assert bare.vcpu.get_sregs2().gs.base == bare.vcpu.get_sregs().gs.base == 0x5550


def test_fpu() -> None:
    with BareVm() as bare:
        fpu = bare.vcpu.get_fpu()
        fpu.fcw = 0x27F
        fpu.xmm[3][0] = 0x77
        bare.vcpu.set_fpu(fpu)
        again = bare.vcpu.get_fpu()
        assert (again.fcw, again.xmm[3][0]) == (0x27F, 0x77)


def test_xsave() -> None:
    with BareVm() as bare:
        area = bytearray(bare.vcpu.get_xsave())
        assert len(area) == 4096
        # The legacy area: XMM registers from byte 160 on, 16 bytes each.
        area[160 + 16 + 5] = 0x43
        area[512] |= 2  # XSTATE_BV: the SSE part is there
        bare.vcpu.set_xsave(bytes(area))
        assert bare.vcpu.get_fpu().xmm[1][5] == 0x43
        assert bare.vcpu.get_xsave()[160 + 16 + 5] == 0x43


def test_xsave2() -> None:
    with BareVm() as bare:
        size = bare.vm.check_extension(lib.KVM_CAP_XSAVE2)
        if not size:
            pytest.skip("no KVM_CAP_XSAVE2")
        area = bare.vcpu.get_xsave2()
        assert len(area) == size
        assert area[:4096] == bare.vcpu.get_xsave()
        bare.vcpu.set_xsave(area)
        assert bare.vcpu.get_xsave2() == area


def test_xcrs() -> None:
    with BareVm() as bare:
        if not bare.vm.has(lib.KVM_CAP_XCRS):
            pytest.skip("no KVM_CAP_XCRS")
        assert bare.vcpu.get_xcrs() == {0: 1}
        bare.vcpu.set_xcrs({0: 3})
        assert bare.vcpu.get_xcrs() == {0: 3}
        with pytest.raises(KvmError, match="KVM_SET_XCRS"):
            bare.vcpu.set_xcrs({0: 0})


def test_msrs() -> None:
    with BareVm("mov $0x174, %ecx\nrdmsr\nhlt") as bare:
        bare.vcpu.set_msrs({MSR_IA32_SYSENTER_CS: 0x30, MSR_IA32_SYSENTER_ESP: 0x1000})
        values = bare.vcpu.get_msrs([MSR_IA32_SYSENTER_ESP, MSR_IA32_SYSENTER_CS])
        assert values == {MSR_IA32_SYSENTER_ESP: 0x1000, MSR_IA32_SYSENTER_CS: 0x30}
        bare.run_to_hlt()
        assert bare.vcpu.get_regs().rax == 0x30


def test_all_saved_msrs_go_round() -> None:
    with BareVm() as bare:
        readable: dict[int, int] = {}
        for index in bare.kvm.get_msr_index_list():
            try:
                readable |= bare.vcpu.get_msrs([index])
            except UnsupportedError:
                continue  # the guest's CPUID does not have it
        assert len(readable) > 5
        # Many at once, more than the kernel takes in one call.
        many = list(readable) * (600 // len(readable) + 1)
        assert bare.vcpu.get_msrs(many).keys() == readable.keys()


def test_an_msr_that_is_not_there_is_named() -> None:
    with BareVm() as bare:
        with pytest.raises(UnsupportedError, match=r"MSR 0xdead0000.*KVM_GET_MSRS"):
            bare.vcpu.get_msrs([MSR_TSC, 0xDEAD0000, 0xDEAD0001])
        with pytest.raises(UnsupportedError, match=r"MSR 0xdead0000.*KVM_SET_MSRS"):
            bare.vcpu.set_msrs({MSR_IA32_SYSENTER_CS: 1, 0xDEAD0000: 1})
        assert bare.vcpu.get_msrs([MSR_IA32_SYSENTER_CS]) == {MSR_IA32_SYSENTER_CS: 1}


def test_debug_registers() -> None:
    with BareVm("mov %dr2, %eax\nhlt") as bare:
        registers = bare.vcpu.get_debugregs()
        registers.db[2] = 0x1234
        bare.vcpu.set_debugregs(registers)
        bare.run_to_hlt()
        assert bare.vcpu.get_regs().rax == 0x1234


def test_vcpu_events() -> None:
    with BareVm() as bare:
        events = bare.vcpu.get_vcpu_events()
        events.nmi.masked = 1
        events.interrupt.shadow = 0
        bare.vcpu.set_vcpu_events(events)
        assert bare.vcpu.get_vcpu_events().nmi.masked == 1


def test_an_injected_exception_reaches_the_guest() -> None:
    """#UD through KVM_SET_VCPU_EVENTS, to the stub of its vector."""
    with BareVm("nop\nhlt") as bare:
        events = bare.vcpu.get_vcpu_events()
        events.exception.injected, events.exception.nr = 1, 6
        bare.vcpu.set_vcpu_events(events)
        vector = bare.run_to_stub()
        if bare.vcpu.exit() == HltExit():
            pytest.skip("this KVM drops exceptions that are injected in real mode")
        assert vector == 6


def test_mp_state() -> None:
    with BareVm(prepare=lapics) as bare:
        assert bare.vcpu.get_mp_state() == MpState.RUNNABLE
        with bare.vm.create_vcpu(1) as secondary:
            assert secondary.get_mp_state() == MpState.UNINITIALIZED
            secondary.set_mp_state(MpState.RUNNABLE)
            assert secondary.get_mp_state() == MpState.RUNNABLE
            with pytest.raises(KvmError, match="state 77"):
                secondary.set_mp_state(77)


def test_boot_cpu() -> None:
    def prepare(vm: Vm) -> None:
        lapics(vm)
        vm.set_boot_cpu_id(1)

    with BareVm(prepare=prepare) as bare, bare.vm.create_vcpu(1) as boots:
        assert bare.vcpu.get_mp_state() == MpState.UNINITIALIZED
        assert boots.get_mp_state() == MpState.RUNNABLE


def test_translate() -> None:
    """Without paging a linear address is a GPA."""
    with BareVm() as bare:
        assert bare.vcpu.translate(0x7C00) == 0x7C00


def test_sync_regs() -> None:
    """Registers in kvm_run, both ways, without an ioctl."""
    with BareVm("inc %ebx\nhlt\ninc %ebx\nhlt") as bare:
        if not bare.vm.check_extension(lib.KVM_CAP_SYNC_REGS) & lib.KVM_SYNC_X86_REGS:
            pytest.skip("no KVM_CAP_SYNC_REGS")
        run = bare.vcpu.kvm_run
        run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS
        bare.run_to_hlt()
        assert run.s.regs.regs.rbx == 1
        run.s.regs.regs.rbx = 41
        run.kvm_dirty_regs = lib.KVM_SYNC_X86_REGS
        bare.run_to_hlt()
        assert run.s.regs.regs.rbx == bare.vcpu.get_regs().rbx == 42


def test_nested_state() -> None:
    with BareVm() as bare:
        if not bare.vm.has(lib.KVM_CAP_NESTED_STATE):
            pytest.skip("no KVM_CAP_NESTED_STATE")
        state = bare.vcpu.get_nested_state()
        assert len(state) >= ffi.sizeof("struct kvm_nested_state")
        bare.vcpu.set_nested_state(state)


def test_what_is_refused_is_a_kvm_error() -> None:
    with BareVm() as bare:
        for call in (bare.vcpu.get_nested_state, bare.vcpu.smi, bare.vcpu.kvmclock_ctrl):
            try:
                call()
            except KvmError as error:
                assert error.call.startswith("KVM_")
                assert error.errno in (errno.EINVAL, errno.ENOTTY)
                assert error.remedy
