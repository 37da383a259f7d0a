"""What a case may need of the host: by name, and found out by trying.

Each probe returns "" where the thing is there, else what is missing and the remedy.
A process asks once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from pyvmm.errors import KvmError, PyvmmError
from pyvmm.kvm.exits import HltExit, HypercallExit
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.system import Kvm
from pyvmm.memory.backends import BACKENDS
from pyvmm.memory.backends import probe as probe_backend
from pyvmm.memory.conversion_mode import states_are_the_files
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.check import CheckFailed, Missing
from pyvmm.validate.kit.guest import GuestVm

_SW_PROTECTED: int = lib.KVM_X86_SW_PROTECTED_VM
_DEFAULT: int = lib.KVM_X86_DEFAULT_VM


@cache
def missing(name: str) -> str:
    """What is missing for the capability called ``name``, "" for nothing."""
    probe, _ = CAPABILITIES[name]
    try:
        with Kvm() as kvm:
            return probe(kvm)
    except PyvmmError as error:
        return str(error)


def need_of(backend: str) -> str:
    """The capability that a case needs for this backend."""
    # "guest_memfd" is the file alone, which a kernel may have without the rest of the ABI.
    return "private_memory" if backend == "guest_memfd" else backend


def _backend(name: str) -> Callable[[Kvm], str]:
    def probe(kvm: Kvm) -> str:
        support = probe_backend(kvm, BACKENDS[name])
        if support.mechanism is not None:
            return ""
        return f"{support.missing}; {support.remedy}" if support.remedy else support.missing

    return probe


def _guests(kvm: Kvm) -> str:
    vm = GuestVm(kvm, _DEFAULT, 1)
    try:
        outcome = vm.cpu.run(routines.HALT)
        return "" if isinstance(outcome.exit, HltExit) else f"a 64-bit guest gets {outcome}"
    except CheckFailed as error:
        return f"a 64-bit guest: {error}"
    finally:
        vm.close()


def _native_guests(kvm: Kvm) -> str:
    """KVM's emulator counts what it does; it also helps the CPU over single instructions."""
    vm = GuestVm(kvm, _DEFAULT, 1)
    try:
        before = vm.cpu.counter("insn_emulation")
        vm.cpu.fill(0x9000, PAGE_SIZE, 0, 8)
        emulated = vm.cpu.counter("insn_emulation") - before
    except (CheckFailed, Missing, KvmError) as error:
        return str(error)
    finally:
        vm.close()
    if emulated < PAGE_SIZE // 8:
        return ""
    return "this KVM runs kernel-mode guests in its emulator, not on the CPU"


def _attributes(kvm: Kvm) -> str:
    with kvm.create_vm(_vm_type_with_private_memory(kvm)) as vm:
        return "" if vm.has(lib.KVM_CAP_MEMORY_ATTRIBUTES) else "KVM_SET_MEMORY_ATTRIBUTES"


def _in_place(kvm: Kvm) -> str:
    vm_type = _vm_type_with_private_memory(kvm)
    with kvm.create_vm(vm_type) as vm:
        # As the backend asks, and not the capability, whose number may change.
        if vm_type and states_are_the_files(vm):
            return ""
    return (
        "KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd: Linux 7.4 (pyvmm lab has a kernel with it), "
        "with kvm.gmem_in_place_conversion=1"
    )


def _guest_memfd(kvm: Kvm) -> str:
    try:
        with kvm.create_vm(_vm_type_with_private_memory(kvm)) as vm:
            vm.create_guest_memfd(PAGE_SIZE).close()
    except KvmError as error:
        return f"guest_memfd: {error.strerror}"
    return ""


def _vm_type_with_private_memory(kvm: Kvm) -> int:
    types = kvm.check_extension(lib.KVM_CAP_VM_TYPES)
    return _SW_PROTECTED if types >> _SW_PROTECTED & 1 else _DEFAULT


def _guest_memfd_flags(kvm: Kvm) -> int:
    with kvm.create_vm(_DEFAULT) as vm:
        return vm.check_extension(lib.KVM_CAP_GUEST_MEMFD_FLAGS)


def _mappable_guest_memfd(kvm: Kvm) -> str:
    wanted = lib.GUEST_MEMFD_FLAG_MMAP | lib.GUEST_MEMFD_FLAG_INIT_SHARED
    if _guest_memfd_flags(kvm) & wanted == wanted:
        return ""
    return "GUEST_MEMFD_FLAG_MMAP and GUEST_MEMFD_FLAG_INIT_SHARED on a default VM (Linux 6.18)"


def _default_guest_memfd(kvm: Kvm) -> str:
    with kvm.create_vm(_DEFAULT) as vm:
        if vm.has(lib.KVM_CAP_GUEST_MEMFD):
            return ""
    return "guest_memfd on a default VM (Linux 6.18)"


def _bindable_guest_memfd(kvm: Kvm) -> str:
    with kvm.create_vm(_vm_type_with_private_memory(kvm)) as vm:
        if vm.has(lib.KVM_CAP_GUEST_MEMFD):
            return ""
    return "memslots with a guest_memfd"


def _pre_fault(kvm: Kvm) -> str:
    vm = GuestVm(kvm, _DEFAULT, 1)
    try:
        vm.cpu.prepare(routines.HALT)
        vm.cpu.vcpu.pre_fault_memory(0, PAGE_SIZE)
    except KvmError as error:
        return f"KVM_PRE_FAULT_MEMORY: {error.strerror}"
    finally:
        vm.close()
    return ""


def hypercall_routine(vm: GuestVm) -> routines.Routine | None:
    """The instruction that gives KVM_EXIT_HYPERCALL here; None if neither does."""
    if not vm.vm.map_gpa_range_exits():
        return None
    for routine in (routines.VMMCALL, routines.VMCALL):
        vm.cpu.prepare(routine, rax=lib.KVM_HC_MAP_GPA_RANGE, rbx=0, rcx=1, rdx=0)
        try:
            outcome = vm.cpu.enter(deadline_s=0.5)
        except CheckFailed:
            continue
        if isinstance(outcome.exit, HypercallExit):
            vm.cpu.answer(0)
            vm.cpu.finish("after a hypercall")
            return routine
    return None


def _hypercall(kvm: Kvm) -> str:
    vm = GuestVm(kvm, _vm_type_with_private_memory(kvm), 1)
    try:
        if hypercall_routine(vm) is None:
            return "KVM_EXIT_HYPERCALL: neither vmcall nor vmmcall gives it"
    finally:
        vm.close()
    return ""


def _statistics(kvm: Kvm) -> str:
    if kvm.check_extension(lib.KVM_CAP_BINARY_STATS_FD):
        return ""
    return "KVM_GET_STATS_FD"


def _two_cpus(kvm: Kvm) -> str:
    count = len(os.sched_getaffinity(0))
    return "" if count >= 2 else f"two CPUs: this process may use {count}"


def _capability(number: int, name: str) -> Callable[[Kvm], str]:
    def probe(kvm: Kvm) -> str:
        return "" if kvm.check_extension(number) > 0 else name

    return probe


# Name: the probe, and what it is in a few words.
CAPABILITIES: dict[str, tuple[Callable[[Kvm], str], str]] = {
    "kvm": (lambda kvm: "", "/dev/kvm"),
    "guests": (_guests, "guests in 64-bit mode"),
    "native_guests": (_native_guests, "guests that run on the CPU"),
    "in_place": (_in_place, "guest_memfd that converts in place"),
    **{need_of(name): (_backend(name), backend.title) for name, backend in BACKENDS.items()},
    "attributes": (_attributes, "KVM_SET_MEMORY_ATTRIBUTES"),
    "guest_memfd": (_guest_memfd, "guest_memfd"),
    "bindable_guest_memfd": (_bindable_guest_memfd, "memslots with a guest_memfd"),
    "default_guest_memfd": (_default_guest_memfd, "guest_memfd on a default VM"),
    "mappable_guest_memfd": (_mappable_guest_memfd, "guest_memfd that the host can map"),
    "pre_fault": (_pre_fault, "KVM_PRE_FAULT_MEMORY"),
    "hypercall_exit": (_hypercall, "KVM_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE"),
    "memory2": (_capability(lib.KVM_CAP_USER_MEMORY2, "KVM_CAP_USER_MEMORY2"), "REGION2"),
    "statistics": (_statistics, "KVM_GET_STATS_FD"),
    "two_cpus": (_two_cpus, "two CPUs"),
}
