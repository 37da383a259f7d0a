"""/dev/kvm's own ioctls, capabilities, errors and the raw way."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from bare_vm import BareVm
from conftest import holdings

from pyvmm.errors import ClosedError, ConfigurationError, KvmError, UnsupportedError
from pyvmm.kvm import Kvm, uapi
from pyvmm.kvm.cpuid import cpuid_entries, cpuid_table
from pyvmm.kvm.fd import KvmFd
from pyvmm.kvm.ioctls import ALSO_TAKEN, IOCTLS, io, iow
from pyvmm.kvm.uapi import VmType
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib

pytestmark = pytest.mark.usefixtures("no_leak")


def test_capabilities() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        ours, vms = kvm.capabilities(), vm.capabilities()
        assert ours.keys() == vms.keys() == uapi.capabilities().keys()
        assert ours["KVM_CAP_USER_MEMORY"] == kvm.check_extension(lib.KVM_CAP_USER_MEMORY) == 1
        assert vms["KVM_CAP_NR_MEMSLOTS"] > 100
        assert vm.has(lib.KVM_CAP_USER_MEMORY)
        assert not vm.has(0x7FFF_FFFF)
        assert str(uapi.Capability(lib.KVM_CAP_XSAVE2)) == "KVM_CAP_XSAVE2 (208)"


def test_vm_types_can_be_created() -> None:
    with Kvm() as kvm:
        types = kvm.vm_types()
        assert VmType.DEFAULT in types
        for vm_type in types:
            if vm_type in (VmType.DEFAULT, VmType.SW_PROTECTED):
                kvm.create_vm(vm_type).close()
        with pytest.raises(KvmError) as caught:
            kvm.create_vm(63)
        assert caught.value.errno == errno.EINVAL
        assert "VM type 63" in str(caught.value)


def test_cpuid_goes_round() -> None:
    with BareVm() as bare:
        supported = list(cpuid_entries(bare.kvm.get_supported_cpuid()))
        assert supported[0].function == 0
        vendor = supported[0]
        name = b"".join(part.to_bytes(4, "little") for part in (vendor.ebx, vendor.edx, vendor.ecx))
        assert name.isascii()
        with bare.vm.create_vcpu(1) as vcpu:
            vcpu.set_cpuid2(cpuid_table(supported[:3]))
            taken = list(cpuid_entries(vcpu.get_cpuid2()))
        # Some kernels add leaves of their own.
        assert {entry.function for entry in taken} >= {entry.function for entry in supported[:3]}
        assert (taken[0].ebx, taken[0].edx) == (vendor.ebx, vendor.edx)
        emulated = [each.function for each in cpuid_entries(bare.kvm.get_emulated_cpuid())]
        assert emulated == sorted(set(emulated))
        assert 1 in emulated  # MOVBE, by every kernel that has the call
        try:
            hyperv = bare.kvm.get_supported_hv_cpuid()
        except KvmError as error:
            pytest.skip(f"this KVM has no Hyper-V leaves: {error}")
        assert {entry.function for entry in cpuid_entries(hyperv)} >= {0x4000_0000}


def test_a_guest_sees_its_cpuid() -> None:
    with BareVm("mov $0x40000010, %eax\ncpuid\nhlt") as bare:
        entries = list(cpuid_entries(bare.kvm.get_supported_cpuid()))
        entries = [entry for entry in entries if entry.function >> 16 != 0x4000]
        made_up = type(entries[0])(0x40000010, 0, 0, 0x11111111, 0x22222222, 0x33333333, 0x44444444)
        bare.vcpu.set_cpuid2(cpuid_table([*entries, made_up]))
        bare.run_to_hlt()
        regs = bare.vcpu.get_regs()
        assert (regs.rax, regs.rbx, regs.rcx) == (0x11111111, 0x22222222, 0x33333333)


def test_msr_lists_and_feature_msrs() -> None:
    with Kvm() as kvm:
        indices = kvm.get_msr_index_list()
        assert len(indices) == len(set(indices)) > 10
        assert 0x10 in indices  # the time stamp counter
        features = kvm.get_msr_feature_index_list()
        values = kvm.get_msrs(features)
        assert values.keys() == set(features)
        with pytest.raises((UnsupportedError, KvmError), match="MSR 0xdead0000"):
            kvm.get_msrs([0xDEAD0000])


# ---- errors ----


def test_an_error_names_ioctl_object_errno_and_remedy() -> None:
    with BareVm() as bare:
        with pytest.raises(KvmError) as caught:
            bare.vm.set_user_memory_region(7, 0x1000, 0x1000, bare.ram.address)
        error = caught.value
        assert (error.call, error.errno) == ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST)
        assert "slot 7, GPA 0x1000" in str(error)
        assert "EEXIST" in str(error)
        assert error.remedy
        assert isinstance(error, OSError)
        with pytest.raises(KvmError, match=r"KVM_CAP_XSAVE2 \(208\)"):
            bare.vm.enable_cap(lib.KVM_CAP_XSAVE2)
        with pytest.raises(KvmError, match="vCPU 0"):
            bare.vm.create_vcpu(0)


def test_use_after_close_is_an_error() -> None:
    with BareVm() as bare:
        vcpu = bare.vm.create_vcpu(1)
        vcpu.close()
        vcpu.close()
        with pytest.raises(ClosedError):
            vcpu.get_regs()
        with pytest.raises(ClosedError):
            vcpu.kvm_run.exit_reason  # noqa: B018


def test_a_size_that_cannot_be_had_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a descriptor asks for all else first, and asks KVM once to make it."""

    failures = iter([errno.EINTR, errno.ENOMEM])

    def fail(self: KvmFd, *arguments: object) -> int:
        raise KvmError("size", next(failures))

    with Kvm() as kvm, monkeypatch.context() as patch:
        patch.setattr(Kvm, "get_vcpu_mmap_size", fail)
        before = holdings()
        for _ in range(2):
            with pytest.raises(KvmError, match="size"):
                kvm.create_vm()
            assert holdings() == before


def test_how_large_an_xsave_area_is_is_asked_when_somebody_wants_one() -> None:
    asked: list[int] = []

    class Asking(Vm):
        def _ask(self, capability: int) -> int:
            asked.append(capability)
            return super()._ask(capability)

    with Kvm() as kvm:
        vm_fd = kvm.ioctl("KVM_CREATE_VM", lib.KVM_X86_DEFAULT_VM)
        with Asking(vm_fd, 0, kvm.get_vcpu_mmap_size()) as vm, vm.create_vcpu(0) as vcpu:
            assert not asked
            assert len(vcpu.get_xsave2()) >= ffi.sizeof("struct kvm_xsave")
            vcpu.set_xsave(vcpu.get_xsave())
        assert asked == [lib.KVM_CAP_XSAVE2]


# ---- the raw way ----


def test_every_ioctl_is_reached_by_its_name() -> None:
    with BareVm() as bare:
        regs = ffi.new("struct kvm_regs *")
        bare.vcpu.ioctl("KVM_GET_REGS", regs)
        assert regs.rip == 0x7C00
        for name in IOCTLS:
            # Nothing listens behind a pipe: every name gives an errno, none an exception else.
            read, write = os.pipe()
            os.close(write)
            with pytest.raises(KvmError) as caught, type(bare.vm)(read, 0, 0) as pipe:
                kind = ALSO_TAKEN.get(name, (IOCTLS[name].type,))[0]
                pipe.ioctl(name, ffi.new(ffi.getctype(kind, "*")) if kind else 0)
            assert caught.value.call == name
            assert caught.value.errno == errno.ENOTTY


def test_an_ioctl_of_ones_own() -> None:
    with BareVm() as bare:
        assert bare.kvm.ioctl(io("KVM_MINE", 0x00)) == 12
        with pytest.raises(KvmError) as caught:
            bare.vm.ioctl(iow("KVM_NEW", 0xD9, "uint64_t[4]"), ffi.new("uint64_t[4]"))
        assert (caught.value.call, caught.value.errno) == ("KVM_NEW", errno.ENOTTY)
        with pytest.raises(ConfigurationError):
            bare.vm.ioctl("KVM_NEW")


def test_a_device_attribute_without_a_method() -> None:
    """The offset of the guest's TSC (Linux 5.16), through the raw ioctls."""
    with BareVm() as bare:
        value = ffi.new("int64_t *", -1234567)
        attribute = ffi.new(
            "struct kvm_device_attr *",
            {
                "group": lib.KVM_VCPU_TSC_CTRL,
                "attr": lib.KVM_VCPU_TSC_OFFSET,
                "addr": int(ffi.cast("uintptr_t", value)),
            },
        )
        try:
            bare.vcpu.ioctl("KVM_HAS_DEVICE_ATTR", attribute)
        except KvmError as error:
            pytest.skip(f"this KVM has no TSC offset attribute: {error}")
        bare.vcpu.ioctl("KVM_SET_DEVICE_ATTR", attribute)
        value[0] = 0
        bare.vcpu.ioctl("KVM_GET_DEVICE_ATTR", attribute)
        if value[0] == 0:
            pytest.skip("this KVM takes a TSC offset and does not keep it")
        assert value[0] == -1234567


def test_a_vm_is_made_in_spite_of_signals() -> None:
    """The kernel gives up making one when any signal is pending."""
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        with Kvm() as kvm:
            for _ in range(40):
                kvm.create_vm().close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen
