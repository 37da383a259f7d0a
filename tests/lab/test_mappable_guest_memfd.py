"""Why a guest_memfd that the host can map (Linux 6.18) is no use to the guest_memfd backend."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from snippets import PAGE

from pyvmm import Kvm, KvmError
from pyvmm.guest.boot import set_real_mode
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib

pytestmark = pytest.mark.lab(kernel="7.3")

CODE, DATA = 0x1000, 0x2000
# mov 0x2000, %al; out %al, $0x20
READ = bytes([0xA0, 0x00, 0x20, 0xE6, 0x20])
SECRET = 0x5A


def protected_vm() -> Vm:
    with Kvm() as kvm:
        return kvm.create_vm(lib.KVM_X86_SW_PROTECTED_VM)


def test_its_pages_cannot_begin_shared() -> None:
    with protected_vm() as vm, pytest.raises(KvmError) as caught:
        vm.create_guest_memfd(PAGE, lib.GUEST_MEMFD_FLAG_MMAP | lib.GUEST_MEMFD_FLAG_INIT_SHARED)
    assert caught.value.errno == errno.EINVAL


def test_the_host_gets_no_further_than_with_prot_none() -> None:
    with (
        protected_vm() as vm,
        vm.create_guest_memfd(PAGE, lib.GUEST_MEMFD_FLAG_MMAP) as file,
    ):
        mapping = Mapping(PAGE, fd=file.fileno())
        child = os.fork()
        if child == 0:
            bytes(mapping.view[:1])
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGBUS
        mapping.close()


@pytest.mark.parametrize(
    ("flags", "seen"),
    [
        pytest.param(0, SECRET, id="not-mappable"),
        pytest.param(lib.GUEST_MEMFD_FLAG_MMAP, 0, id="mappable"),
    ],
)
def test_a_slot_of_it_has_one_memory_for_both_states(flags: int, seen: int) -> None:
    """A shared page is then the private file's as well, where the host cannot write."""
    code, shared = Mapping(PAGE), Mapping(PAGE)
    code.view[: len(READ)] = READ
    shared.view[0] = SECRET
    with protected_vm() as vm, vm.create_guest_memfd(PAGE, flags) as file:
        vm.set_user_memory_region(0, CODE, PAGE, code.address)
        vm.set_user_memory_region2(
            1, DATA, PAGE, shared.address, lib.KVM_MEM_GUEST_MEMFD, file.fileno()
        )
        with vm.create_vcpu(0) as vcpu:
            set_real_mode(vcpu, CODE)
            vcpu.run()
            run = vcpu.kvm_run
            assert run.exit_reason == lib.KVM_EXIT_IO
            data = ffi.cast("unsigned char *", run) + run.io.data_offset
            assert data[0] == seen
    code.close()
    shared.close()
