"""What KVM's own emulator does with private memory: it must not reach the shared side unseen.

The emulator reads and writes through userspace_addr. With no readable address there, its
access must end in an exit; with one, it is known to use the shared side, which is what
makes PROT_NONE addresses worth having. The host must never find private bytes.
"""

from __future__ import annotations

from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import check, expect
from pyvmm.validate.kit.guest import PLAIN_SIZE, GuestVm
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.toolbox import Toolbox

SIZE = 4 * PAGE
GPA = 4 * GIB
SECRET = 0xA5
PORT = 0x77
NEEDS = ("private_memory", "native_guests")


def hidden(tools: Toolbox) -> GuestVm:
    """A VM whose private pages have no readable address behind them; each holds SECRETs."""
    vm = tools.private_vm()
    hole = tools.keep(Mapping(SIZE, protection=PROT_NONE))
    file = tools.keep(vm.vm.create_guest_memfd(SIZE))
    vm.vm.set_user_memory_region2(
        vm.new_slot(), GPA, SIZE, hole.address, lib.KVM_MEM_GUEST_MEMFD, file.fileno()
    )
    vm.vm.set_memory_attributes(GPA, SIZE, ATTRIBUTE)
    for at in range(0, 64, 8):
        vm.cpu.write(GPA + at, int.from_bytes(bytes([SECRET]) * 8, "little"))
    return vm


@case(
    "EM1",
    "outs from a private page does not read what is behind the slot",
    needs=NEEDS,
    backend="guest_memfd",
)
def outs(tools: Toolbox) -> None:
    vm = hidden(tools)
    outcome = vm.cpu.run(routines.OUTSB, rsi=GPA, rdx=PORT)
    # MMIO with the page's address, or a memory fault; a byte on the port only if it is right.
    if outcome.reason == lib.KVM_EXIT_IO:
        run = vm.cpu.vcpu.kvm_run
        byte = ffi.buffer(ffi.cast("char *", run) + run.io.data_offset, 1)[:][0]
        expect(byte, SECRET, "what outs wrote from a private page")
        return
    _expect_exit(vm, outcome.reason, GPA, "outs from a private page")


@case(
    "EM2",
    "ins into a private page does not write what is behind the slot",
    needs=NEEDS,
    backend="guest_memfd",
)
def ins(tools: Toolbox) -> None:
    vm = hidden(tools)
    outcome = vm.cpu.run(routines.INSB, rdi=GPA + PAGE, rdx=PORT)
    if outcome.reason == lib.KVM_EXIT_IO:
        run = vm.cpu.vcpu.kvm_run
        ffi.memmove(ffi.cast("char *", run) + run.io.data_offset, b"\x3c", 1)
        vm.cpu.keep_answer()
        outcome = vm.cpu.enter()
    if outcome.reason == lib.KVM_EXIT_HLT:
        vm.cpu.expect_read(GPA + PAGE, 0x3C, "what ins wrote into a private page", 1)
        return
    _expect_exit(vm, outcome.reason, GPA + PAGE, "ins into a private page")


def _expect_exit(vm: GuestVm, reason: int, gpa: int, what: str) -> None:
    reasons = (lib.KVM_EXIT_MMIO, lib.KVM_EXIT_MEMORY_FAULT, lib.KVM_EXIT_INTERNAL_ERROR)
    check(reason in reasons, f"{what}: KVM's emulator went on without an exit", f"reason {reason}")
    if reason == lib.KVM_EXIT_MMIO:
        expect(int(vm.cpu.vcpu.kvm_run.mmio.phys_addr), gpa, f"{what}: GPA of the MMIO exit")


@case(
    "EM3",
    "an MMIO instruction in a private page: no instruction is taken from behind the slot",
    needs=NEEDS,
    backend="guest_memfd",
)
def mmio_instruction(tools: Toolbox) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, GPA, SIZE)
    memory.set_private(0, SIZE)
    code = int.from_bytes(routines.READ[8].code.ljust(8, b"\xf4"), "little")
    # Behind the private page: the same instruction, which would read another address.
    other = b"\x48\x8b\x06\xf4".ljust(8, b"\xf4")
    memory.shared.view[0:8] = other
    vm.cpu.write(GPA, code)
    nowhere, elsewhere = 3 * GIB, 3 * GIB + 0x100000
    outcome = vm.cpu.run(GPA, rdi=nowhere, rsi=elsewhere)
    if outcome.reason == lib.KVM_EXIT_MMIO:
        seen = int(vm.cpu.vcpu.kvm_run.mmio.phys_addr)
        check(
            seen in (nowhere, elsewhere),
            "an MMIO instruction in a private page gives MMIO at an address it never had",
            f"{seen:#x}",
        )
        return
    check(
        outcome.reason in (lib.KVM_EXIT_INTERNAL_ERROR, lib.KVM_EXIT_MEMORY_FAULT),
        "an MMIO instruction in a private page: an exit that says nothing",
        str(outcome),
    )


@case(
    "EM4",
    "code runs from a private page, and what is behind the slot does not",
    needs=NEEDS,
    backend="guest_memfd",
    vary={"gpa": (0x80000, GPA)},
)
def private_code(tools: Toolbox, gpa: int) -> None:
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, SIZE)
    # mov $1, %eax; jmp to a HLT in the plain slot, through rbx.
    good, bad = (bytes([0xB8, number, 0, 0, 0, 0xFF, 0xE3, 0x90]) for number in (1, 2))
    memory.shared.view[0:8] = bad
    memory.set_private(0, PAGE)
    vm.cpu.write(gpa, int.from_bytes(good, "little"))
    halt = vm.entries[routines.HALT]
    vm.cpu.prepare(gpa, rbx=halt)
    expect(int(vm.cpu.finish("code in a private page").rax), 1, "which code ran")
    memory.set_shared(0, PAGE)
    vm.cpu.prepare(gpa, rbx=halt)
    expect(int(vm.cpu.finish("code in the page made shared").rax), 2, "which code ran")


@case(
    "EM5",
    "page tables in private memory translate for the guest",
    needs=NEEDS,
    backend="guest_memfd",
)
def page_walks(tools: Toolbox) -> None:
    vm = tools.private_vm()
    cpu = vm.cpu
    cpu.write(0x3000, 0x1234)
    memory = tools.memory(vm, GPA, SIZE)
    memory.set_private(0, SIZE)
    # A PML4 of its own in private memory, whose first entry leads to the tables in use.
    cpu.write(GPA, cpu.read(0x10000))
    cpu.prepare(routines.READ[8], rdi=0x3000)
    sregs = cpu.vcpu.get_sregs()
    sregs.cr3 = GPA
    cpu.vcpu.set_sregs(sregs)
    expect(
        int(cpu.finish("a guest with page tables in private memory").rax), 0x1234, "what it read"
    )
    translated = cpu.vcpu.translate(0x3000)
    check(
        translated in (None, 0x3000),
        "KVM_TRANSLATE walks page tables behind private memory to another address",
        str(translated),
    )


@case(
    "EM6",
    "MMIO beside a private slot still works",
    needs=NEEDS,
    backend="guest_memfd",
)
def mmio_beside(tools: Toolbox) -> None:

    vm = hidden(tools)
    vm.cpu.expect_mmio(GPA + SIZE, "behind a private slot")
    vm.cpu.expect_mmio(GPA - PAGE, "before a private slot")
    vm.cpu.expect_mmio(PLAIN_SIZE, "behind the plain slot")
    vm.cpu.expect_read(GPA, SECRET, "the private page", 1)
