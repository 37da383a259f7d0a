"""What KVM says it can do, against what it does."""

from __future__ import annotations

import errno

from pyvmm.errors import KvmError
from pyvmm.kvm.vm import Vm
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import PAGE, case
from pyvmm.validate.kit.check import Missing, check, errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.toolbox import Toolbox

_TYPES = (0, 1)
_PRIVATE: int = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE


def a_vm(tools: Toolbox, vm_type: int) -> Vm:
    try:
        return tools.keep(tools.kvm.create_vm(vm_type))
    except KvmError:
        raise Missing(f"VM type {vm_type}") from None


@case("CP1", "a capability that nobody has is 0", vary={"vm_type": _TYPES})
def unknown(tools: Toolbox, vm_type: int) -> None:
    vm = a_vm(tools, vm_type)
    expect(vm.check_extension(lib.KVM_CAP_USER_MEMORY), 1, "KVM_CAP_USER_MEMORY")
    for number in (0x7FFF, 1 << 20, (1 << 31) - 1):
        expect(tools.kvm.check_extension(number), 0, f"capability {number:#x} of /dev/kvm")
        expect(vm.check_extension(number), 0, f"capability {number:#x} of a VM")
        expect_errno(
            lambda number=number: vm.enable_cap(number),  # type: ignore[misc]
            errno.EINVAL,
            f"enabling capability {number:#x}",
        )


@case(
    "CP2",
    "a software-protected VM has all that private memory needs",
    needs=("private_memory",),
    backend="guest_memfd",
)
def private_memory(tools: Toolbox) -> None:
    vm = a_vm(tools, 1)
    expect(vm.check_extension(lib.KVM_CAP_MEMORY_ATTRIBUTES), _PRIVATE, "KVM_CAP_MEMORY_ATTRIBUTES")
    for name in ("USER_MEMORY2", "MEMORY_FAULT_INFO", "GUEST_MEMFD"):
        capability = getattr(lib, f"KVM_CAP_{name}")
        expect(vm.check_extension(capability), 1, f"KVM_CAP_{name} of a software-protected VM")


@case(
    "CP3",
    "a VM can have a guest_memfd in a memslot exactly if it says so",
    needs=("memory2", "guest_memfd"),
    vary={"vm_type": _TYPES},
)
def guest_memfd(tools: Toolbox, vm_type: int) -> None:
    vm = a_vm(tools, vm_type)
    said = vm.has(lib.KVM_CAP_GUEST_MEMFD)
    shared = tools.shared_side(0, PAGE)
    # Only kernels that can map it on such a VM can put it into a slot there.
    flags = vm.check_extension(lib.KVM_CAP_GUEST_MEMFD_FLAGS)
    try:
        file = tools.keep(vm.create_guest_memfd(PAGE, flags))
    except KvmError as error:
        check(not said, f"guest_memfd on a VM that says it has it: {error.strerror}")
        return
    slot = (0, 0, PAGE, shared.address, lib.KVM_MEM_GUEST_MEMFD, file.fileno())
    expect_errno(
        lambda: vm.set_user_memory_region2(*slot),
        0 if said else errno.EINVAL,
        f"a guest_memfd slot on a VM that says it has {'' if said else 'no '}guest_memfd",
    )


@case("CP4", "KVM_PRE_FAULT_MEMORY works exactly if the VM says so", needs=("guests",))
def pre_fault(tools: Toolbox) -> None:
    vm = tools.vm()
    vm.cpu.prepare(routines.HALT)
    said = vm.vm.has(lib.KVM_CAP_PRE_FAULT_MEMORY)
    seen = errno_of(lambda: vm.cpu.vcpu.pre_fault_memory(0, PAGE))
    if said:
        expect(errno_name(seen), "success", "KVM_PRE_FAULT_MEMORY on a VM that says it has it")
    else:
        check(seen != 0, "KVM_PRE_FAULT_MEMORY works though the VM says it has it not")


@case(
    "CP5",
    "immediate_exit ends KVM_RUN with EINTR before the guest does anything",
    needs=("guests",),
)
def immediate_exit(tools: Toolbox) -> None:
    vm = tools.vm()
    for _ in range(3):
        vm.cpu.prepare(routines.WRITE[8], rdi=0x9000, rax=0x77)
        rip = int(vm.cpu.vcpu.get_regs().rip)
        vm.cpu.vcpu.kvm_run.immediate_exit = 1
        expect_errno(vm.cpu.vcpu.run, errno.EINTR, "KVM_RUN with immediate_exit")
        vm.cpu.vcpu.kvm_run.immediate_exit = 0
        expect(int(vm.cpu.vcpu.get_regs().rip), rip, "RIP after KVM_RUN with immediate_exit")
        expect(vm.plain.view[0x9000], 0, "memory after KVM_RUN with immediate_exit")
    vm.cpu.finish("after immediate_exit")
    expect(vm.plain.view[0x9000], 0x77, "memory after KVM_RUN")


@case("CP6", "registers in kvm_run are those of the ioctl (KVM_CAP_SYNC_REGS)", needs=("guests",))
def sync_regs(tools: Toolbox) -> None:
    vm = tools.vm()
    if not vm.vm.check_extension(lib.KVM_CAP_SYNC_REGS) & lib.KVM_SYNC_X86_REGS:
        raise Missing("KVM_CAP_SYNC_REGS")
    run = vm.cpu.vcpu.kvm_run
    run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS
    vm.cpu.prepare(routines.READ[8], rdi=0x9000, rsi=0x1122334455667788)
    regs = vm.cpu.finish("a guest with synchronised registers")
    for name in ("rax", "rdi", "rsi", "rip", "rflags"):
        expect(int(getattr(run.s.regs.regs, name)), int(getattr(regs, name)), f"{name} in kvm_run")


@case(
    "CP7",
    "a number of VMs and vCPUs can be there at once",
    needs=("guests",),
    vary={"cpus": (2, 4)},
)
def several(tools: Toolbox, cpus: int) -> None:
    vms = [tools.vm(cpus=cpus) for _ in range(4)]
    for number, vm in enumerate(vms):
        for cpu in vm.cpus:
            cpu.write(0x9000 + 8 * cpu.index, 0x100 * number + cpu.index)
    for number, vm in enumerate(vms):
        for cpu in vm.cpus:
            expected = 0x100 * number + cpu.index
            cpu.expect_read(0x9000 + 8 * cpu.index, expected, "one VM of several")
    expect_errno(lambda: vms[0].vm.create_vcpu(0), errno.EEXIST, "a second vCPU with id 0")
