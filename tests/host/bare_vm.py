"""A VM with RAM, one vCPU and a few instructions, for tests of the bindings."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import pytest

from pyvmm.errors import KvmError
from pyvmm.guest.assembler import assemble
from pyvmm.guest.boot import START, low_memory, set_real_mode
from pyvmm.kvm import Kvm
from pyvmm.kvm.exits import Exit, HltExit
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.vm import Vm
from pyvmm.loop.bare import BareVcpu
from pyvmm.native import ffi, lib

RAM_SIZE = 0x20000
RAM_SLOT = 0
STACK = 0x7000
# Nothing here takes a tenth of it; a guest that spins must not hold up the tests.
DEADLINE_S = 10.0


def irqchip(vm: Vm) -> None:
    """Prepare with PIC, IOAPIC and LAPICs in the kernel."""
    try:
        vm.create_irqchip()
    except KvmError as error:
        if error.errno != errno.ENOTTY:
            raise
        pytest.skip("this kernel has no PIC and IOAPIC (CONFIG_KVM_IOAPIC)")


def lapics(vm: Vm) -> None:
    """Prepare with LAPICs in the kernel, and nothing else."""
    if not vm.has(lib.KVM_CAP_SPLIT_IRQCHIP):
        pytest.skip("no KVM_CAP_SPLIT_IRQCHIP")
    vm.split_irqchip()


class BareVm:
    """Runs ``code`` (GNU as, real mode) at 0x7C00. A context manager.

    ``prepare`` is called with the VM before there is a vCPU.
    """

    def __init__(
        self,
        code: str = "hlt",
        *,
        prepare: Callable[[Vm], object] = lambda vm: None,
        slot_flags: int = 0,
    ) -> None:
        self._resources = ExitStack()
        try:
            self._build(code, prepare, slot_flags)
        except BaseException:
            self._resources.close()
            raise

    def _build(self, code: str, prepare: Callable[[Vm], object], slot_flags: int) -> None:
        self.kvm = self._resources.enter_context(Kvm())
        self.ram = Mapping(RAM_SIZE)
        self._resources.callback(self.ram.close)
        self.vm = self._resources.enter_context(self.kvm.create_vm())
        self.vm.set_tss_addr(0xFFFB_D000)
        self.vm.set_identity_map_addr(0xFFFB_C000)
        self.vm.set_user_memory_region(RAM_SLOT, 0, RAM_SIZE, self.ram.address, slot_flags)
        prepare(self.vm)
        low = low_memory()
        self.ram.view[: len(low)] = low
        for segment in assemble(f".code16\n.globl _start\n_start:\n{code}\n").segments:
            self.ram.view[segment.gpa : segment.gpa + len(segment.data)] = segment.data
        self.vcpu = self._resources.enter_context(self.vm.create_vcpu(0))
        self.vcpu.set_cpuid2(self.kvm.get_supported_cpuid())
        set_real_mode(self.vcpu, START, rsp=STACK)
        self.bare = self._resources.enter_context(BareVcpu(self.vcpu))

    def run(self) -> Exit:
        """Run to the next exit. Fails when none comes in time."""
        return self.bare.run(DEADLINE_S)

    def run_to_stub(self) -> int:
        """Run to the stub of a vector that nothing handles; which vector that is."""
        self.run()
        memory = ffi.new("struct memory *")
        lib.memory_init(memory, self.vm.fileno(), b"emulated", lib.POLICY_CONVERT)
        lib.memory_add_ram(memory, 0, RAM_SIZE, self.ram.pointer)
        vector: int = lib.vector_of_stub(
            self.vcpu.fileno(), memory, self.vcpu.kvm_run, lib.VECTOR_STUBS
        )
        return vector

    def run_to_hlt(self) -> None:
        assert self.run() == HltExit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()
