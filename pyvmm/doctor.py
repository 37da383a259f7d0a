"""What this host's KVM can do, what is missing for what, and the remedy.

Where a capability's answer may be wrong, a few instructions are run under a deadline
and what happens decides.
"""

from __future__ import annotations

import importlib.util
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from pyvmm.errors import KvmError, PyvmmError
from pyvmm.guest.boot import MAX_VCPUS
from pyvmm.guest.linux_probe import try_kernel_code
from pyvmm.guest.paging_probe import try_protected_paging
from pyvmm.host import kvm_modules, nested_modules
from pyvmm.kvm.mapping import PAGE_SIZE, Mapping
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.uapi import reason_name
from pyvmm.kvm.vm import Vm
from pyvmm.memory.backends import BACKENDS, probe
from pyvmm.memory.backing import NO_PROTECTED_VM
from pyvmm.memory.conversion_mode import (
    states_are_the_files,
    states_are_the_vms,
    why_in_place,
    why_not_in_place,
)
from pyvmm.memory.probe_guest import run_probe
from pyvmm.native import lib
from pyvmm.page_states import Mechanism

# Those that pyvmm uses or that test guests often want; KVM_CAP_ is left out.
_CAPABILITIES = (
    "NR_MEMSLOTS",
    "NR_VCPUS",
    "MAX_VCPUS",
    "MAX_VCPU_ID",
    "VM_TYPES",
    "USER_MEMORY",
    "USER_MEMORY2",
    "MEMORY_ATTRIBUTES",
    "MEMORY_FAULT_INFO",
    "GUEST_MEMFD",
    "GUEST_MEMFD_FLAGS",
    "GUEST_MEMFD_MEMORY_ATTRIBUTES",
    "PRE_FAULT_MEMORY",
    "EXIT_HYPERCALL",
    "SYNC_REGS",
    "IMMEDIATE_EXIT",
    "READONLY_MEM",
    "MANUAL_DIRTY_LOG_PROTECT2",
    "DIRTY_LOG_RING",
    "DIRTY_LOG_RING_ACQ_REL",
    "IRQCHIP",
    "SPLIT_IRQCHIP",
    "PIT2",
    "IRQFD",
    "IOEVENTFD",
    "COALESCED_MMIO",
    "COALESCED_PIO",
    "X86_USER_SPACE_MSR",
    "X86_MSR_FILTER",
    "XSAVE2",
    "SET_GUEST_DEBUG",
    "EXIT_ON_EMULATION_FAILURE",
    "X86_DISABLE_EXITS",
    "X86_NOTIFY_VMEXIT",
    "DISABLE_QUIRKS2",
    "TSC_CONTROL",
    "NESTED_STATE",
    "BINARY_STATS_FD",
)

# A machine of 28 vCPUs has that many descriptors open, and a few for assembling.
_OPEN_FILES = 64
_ADDRESS_SPACE = 512 << 20


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """/dev/kvm: ``problem`` and ``remedy`` are empty when it is usable."""

    path: str
    usable: bool
    problem: str
    remedy: str
    api_version: int | None
    modules: tuple[str, ...]
    nested: dict[str, bool]


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """A backend: its ``mechanism`` here, or what is ``missing`` for it and the ``remedy``."""

    usable: bool
    mechanism: str
    missing: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CapabilityFacts:
    """KVM_CHECK_EXTENSION's answers: of /dev/kvm, and of a VM of each type (None: no answer)."""

    system: int | None
    vm: dict[str, int | None]


@dataclass(frozen=True, slots=True)
class BehaviourFacts:
    """What was tried: whether it ``works`` and what was seen; ``purpose`` says what needs it."""

    works: bool
    seen: str
    purpose: str


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """A resource limit of this process, None for none, and the remedy if it is too low."""

    value: int | None
    enough: bool
    remedy: str


@dataclass(frozen=True, slots=True)
class ToolFacts:
    """A program or Python package: where it is, "" if it is not there."""

    path: str
    purpose: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Checkup:
    """Everything. ``kernels`` are the lab's, by name: their release."""

    device: DeviceFacts
    vm_types: dict[str, int]
    backends: dict[str, BackendFacts]
    behaviours: dict[str, BehaviourFacts]
    capabilities: dict[str, CapabilityFacts]
    limits: dict[str, LimitFacts]
    tools: dict[str, ToolFacts]
    kernels: dict[str, str]

    @property
    def usable(self) -> bool:
        """Whether at least one backend works, so that guests can run."""
        return any(backend.usable for backend in self.backends.values())


def examine(path: str = "/dev/kvm") -> Checkup:
    """Look at everything. Never raises for what is missing: that is what it reports."""
    try:
        kvm = Kvm(path)
    except PyvmmError as error:
        device = DeviceFacts(
            path, False, error.cause, error.remedy, None, tuple(kvm_modules()), nested_modules()
        )
        unusable = BackendFacts(False, "", f"{path} is not usable", "")
        backends = dict.fromkeys(BACKENDS, unusable)
        return Checkup(device, {}, backends, {}, {}, _limits(), _tools(), _lab_kernels())
    with kvm:
        device = DeviceFacts(
            path,
            True,
            "",
            "",
            kvm.get_api_version(),
            tuple(kvm_modules()),
            nested_modules(),
        )
        vm_types = _vm_types(kvm)
        return Checkup(
            device,
            vm_types,
            {name: _backend(kvm, name) for name in BACKENDS},
            dict(_behaviours(kvm, vm_types)),
            dict(_capabilities(kvm, vm_types)),
            _limits(),
            _tools(),
            _lab_kernels(),
        )


# ---- KVM ----


def _vm_types(kvm: Kvm) -> dict[str, int]:
    """The VM types that can be created, by name; type 0 needs no announcement."""
    names = {lib.KVM_X86_DEFAULT_VM: "default", lib.KVM_X86_SW_PROTECTED_VM: "sw_protected"}
    announced = _answer(kvm, lib.KVM_CAP_VM_TYPES) or 0
    types = {}
    for number in range(32):
        if number != lib.KVM_X86_DEFAULT_VM and not announced >> number & 1:
            continue
        try:
            kvm.create_vm(number).close()
        except KvmError:
            continue
        types[names.get(number, f"type_{number}")] = number
    return types


def _backend(kvm: Kvm, name: str) -> BackendFacts:
    try:
        support = probe(kvm, BACKENDS[name])
    except PyvmmError as error:  # too few descriptors, no memory
        return BackendFacts(
            False, "", f"its probe failed: {error.thing}: {error.cause}", error.remedy
        )
    if support.mechanism is None:
        return BackendFacts(False, "", support.missing, support.remedy)
    return BackendFacts(True, support.mechanism.name.lower(), "", "")


def _answer(asked: Kvm | Vm, capability: int) -> int | None:
    try:
        return asked.check_extension(capability)
    except KvmError:
        return None


def _capabilities(kvm: Kvm, vm_types: dict[str, int]) -> Iterator[tuple[str, CapabilityFacts]]:
    vms = {}
    try:
        for type_name, number in vm_types.items():
            with suppress(KvmError):  # too few descriptors for all of them
                vms[type_name] = kvm.create_vm(number)
        for short in _CAPABILITIES:
            name = f"KVM_CAP_{short}"
            capability = getattr(lib, name, None)
            if capability is None:  # the headers of the build did not know it
                continue
            answers = {type_name: _answer(vm, capability) for type_name, vm in vms.items()}
            yield name, CapabilityFacts(_answer(kvm, capability), answers)
    finally:
        for vm in vms.values():
            vm.close()


# ---- behaviour ----

_OUT = bytes.fromhex("e680 f4")  # out %al, $0x80; hlt
_VMCALL, _VMMCALL = bytes.fromhex("0f01c1"), bytes.fromhex("0f01d9")
_START, _HALT, _SIZE = 0x1000, 0x2000, 0x3000
_INVALID_OPCODE = 6


def _behaviours(kvm: Kvm, vm_types: dict[str, int]) -> Iterator[tuple[str, BehaviourFacts]]:
    """Each thing that is tried, in a VM of its own."""
    private_type = vm_types.get("sw_protected", lib.KVM_X86_DEFAULT_VM)
    trials: tuple[tuple[str, str, Callable[[], tuple[bool, str]]], ...] = (
        ("real_mode", "running guests", lambda: _try_real_mode(kvm)),
        (
            "prot_none",
            "conversions of the emulated backend without memslot changes",
            lambda: _try_prot_none(kvm),
        ),
        (
            "hypercall_exit",
            "explicit conversions by KVM_HC_MAP_GPA_RANGE",
            lambda: _try_hypercall(kvm, private_type),
        ),
        ("kernel_code", "a Linux kernel as the guest", lambda: try_kernel_code(kvm)),
        (
            "protected_paging",
            "guests in protected mode that turn paging on",
            lambda: try_protected_paging(kvm),
        ),
        (
            "in_place_conversion",
            "page states that belong to the guest_memfd",
            lambda: _try_in_place(kvm, vm_types.get("sw_protected")),
        ),
        ("irqchip", "--irqchip: PIC, LAPIC and PIT", lambda: _try_irqchip(kvm)),
        ("guest_memfd_default_vm", "guest_memfd without VM type 1", lambda: _try_memfd(kvm)),
        ("dirty_ring", "dirty pages in a ring", lambda: _try_dirty_ring(kvm)),
        ("stats_fd", "the kernel's own exit counts", lambda: _try_stats(kvm)),
        ("sync_regs", "registers without an ioctl", lambda: _try_sync_regs(kvm)),
    )
    for name, purpose, attempt in trials:
        try:
            works, seen = attempt()
        except PyvmmError as error:
            works, seen = False, f"{error.thing}: {error.cause}"
        yield name, BehaviourFacts(works, seen, purpose)


def _try_code(kvm: Kvm, vm: Vm, code: bytes) -> str:
    """Run ``code`` in real mode; the exit's name, "" if there was none before the deadline."""
    with_code = Mapping(_SIZE)
    try:
        view = with_code.view
        struct.pack_into("<HH", view, _INVALID_OPCODE * 4, _HALT, 0)
        view[_HALT] = 0xF4
        view[_START : _START + len(code)] = code
        del view
        vm.set_user_memory_region(0, 0, _SIZE, with_code.address)
        run = run_probe(vm, _START)
        return "" if run is None else reason_name(run.exit_reason)
    finally:
        vm.close()
        with_code.close()


def _try_real_mode(kvm: Kvm) -> tuple[bool, str]:
    exit = _try_code(kvm, kvm.create_vm(), _OUT)
    return exit == "io", f"an OUT instruction gives {_exit_words(exit)}"


def _try_prot_none(kvm: Kvm) -> tuple[bool, str]:
    works = probe(kvm, BACKENDS["emulated"]).mechanism == Mechanism.PROT_NONE
    outcome = "KVM_EXIT_MMIO with its GPA" if works else "no KVM_EXIT_MMIO, so memslots are changed"
    return works, f"a touch of PROT_NONE memory gives {outcome}"


def _try_hypercall(kvm: Kvm, vm_type: int) -> tuple[bool, str]:
    """KVM_HC_MAP_GPA_RANGE with the instruction of either vendor."""
    seen = "KVM_CAP_EXIT_HYPERCALL does not offer KVM_HC_MAP_GPA_RANGE"
    for name, instruction in (("vmcall", _VMCALL), ("vmmcall", _VMMCALL)):
        vm = kvm.create_vm(vm_type)
        with vm:
            if not vm.map_gpa_range_exits():
                return False, seen
            code = _hypercall(lib.KVM_HC_MAP_GPA_RANGE, _START, 1, 0) + instruction + b"\xf4"
            exit = _try_code(kvm, vm, code)
        if exit == "hypercall":
            return True, f"{name} gives KVM_EXIT_HYPERCALL"
        seen = f"the capability can be enabled, but {name} gives {_exit_words(exit)}"
    return False, seen


def _hypercall(*arguments: int) -> bytes:
    """mov $argument, to eax, ebx, ecx, edx: the registers of a hypercall."""
    opcodes = (0xB8, 0xBB, 0xB9, 0xBA)
    moves = zip(opcodes, arguments, strict=True)
    return b"".join(struct.pack("<BBI", 0x66, opcode, argument) for opcode, argument in moves)


def _exit_words(exit: str) -> str:
    return f"KVM_EXIT_{exit.upper()}" if exit else "no exit at all"


def _try_irqchip(kvm: Kvm) -> tuple[bool, str]:
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.create_pit2()
    return True, "KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2 succeed"


def _try_memfd(kvm: Kvm) -> tuple[bool, str]:
    with kvm.create_vm() as vm, vm.create_guest_memfd(PAGE_SIZE):
        pass
    return True, "KVM_CREATE_GUEST_MEMFD succeeds on a default VM"


def _try_in_place(kvm: Kvm, vm_type: int | None) -> tuple[bool, str]:
    if vm_type is None:  # a default VM's file may have the ioctl, which refuses all that is asked
        return False, NO_PROTECTED_VM
    with kvm.create_vm(vm_type) as vm:
        if states_are_the_files(vm):
            return True, f"KVM_SET_MEMORY_ATTRIBUTES2 is there: {why_in_place()}"
        if states_are_the_vms(vm):
            return False, f"page states belong to the VM: {why_not_in_place()}"
    return False, "no VM has private memory here"


def _try_dirty_ring(kvm: Kvm) -> tuple[bool, str]:
    with kvm.create_vm() as vm:
        size = 0
        for capability in (lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL, lib.KVM_CAP_DIRTY_LOG_RING):
            size = _answer(vm, capability) or 0
            if size:
                vm.enable_cap(capability, PAGE_SIZE)
                return True, f"it can be enabled, up to {size} bytes"
    return False, "no capability offers it"


def _try_stats(kvm: Kvm) -> tuple[bool, str]:
    with kvm.create_vm() as vm:
        works = bool(_answer(vm, lib.KVM_CAP_BINARY_STATS_FD))
    return works, f"KVM_CAP_BINARY_STATS_FD is {int(works)}"


def _try_sync_regs(kvm: Kvm) -> tuple[bool, str]:
    mask = _answer(kvm, lib.KVM_CAP_SYNC_REGS) or 0
    return bool(mask & lib.KVM_SYNC_X86_REGS), f"KVM_CAP_SYNC_REGS is {mask:#x}"


# ---- the rest of the host ----


def _limits() -> dict[str, LimitFacts]:
    wanted = (
        ("open_files", resource.RLIMIT_NOFILE, _OPEN_FILES, f"ulimit -n {_OPEN_FILES}"),
        ("address_space", resource.RLIMIT_AS, _ADDRESS_SPACE, "ulimit -v unlimited"),
        ("locked_memory", resource.RLIMIT_MEMLOCK, 0, ""),
        ("processes", resource.RLIMIT_NPROC, MAX_VCPUS, "ulimit -u unlimited"),
        ("file_size", resource.RLIMIT_FSIZE, 1 << 20, "ulimit -f unlimited"),
        ("pending_signals", resource.RLIMIT_SIGPENDING, MAX_VCPUS, "ulimit -i unlimited"),
    )
    limits = {}
    for name, number, needed, remedy in wanted:
        soft, _ = resource.getrlimit(number)
        value = None if soft == resource.RLIM_INFINITY else soft
        enough = value is None or value >= needed
        limits[name] = LimitFacts(value, enough, "" if enough else remedy)
    return limits


def _tools() -> dict[str, ToolFacts]:
    programs = (
        ("as", "assembling guests", "install binutils"),
        ("ld", "assembling guests", "install binutils"),
        ("gcc", "building the lab's kernels", "pyvmm lab setup"),
        ("qemu-system-x86_64", "the lab", "pyvmm lab setup"),
    )
    packages = (
        ("capstone", "disassembly of failing instructions", "pip install pyvmm-kvm[disasm]"),
        ("matplotlib", "plots", "pip install pyvmm-kvm[report]"),
    )
    tools = {
        name: ToolFacts(shutil.which(name) or "", purpose, remedy)
        for name, purpose, remedy in programs
    }
    for name, purpose, remedy in packages:
        spec = importlib.util.find_spec(name)
        path = (spec.origin or "") if spec is not None else ""
        tools[name] = ToolFacts(path, purpose, remedy)
    return tools


def _lab_kernels() -> dict[str, str]:
    from pyvmm.lab.kernels import built_kernels

    try:
        return {kernel.name: kernel.release for kernel in built_kernels()}
    except (OSError, ValueError, KeyError):  # a cache that cannot be read has no kernels
        return {}
