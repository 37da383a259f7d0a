"""Pages that the host is slow to give: KVM lets a vCPU with a LAPIC sleep until they are there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.beside import CallBeside
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.guest import Cpu, Outcome
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.userfault import HeldPage
from pyvmm.validate.kit.watch import SHARED_WORD

GPA, SIZE, AT = 4 * GIB, 8 * PAGE, 5 * PAGE
# KVM lets only a vCPU sleep that an interrupt could wake.
_INTERRUPTS = 0x200


def _read(cpu: Cpu, gpa: int) -> Outcome:
    """The exit of a guest that reads a word and then writes to a port."""
    cpu.prepare(routines.READ_OUT, rdi=gpa)
    regs = cpu.vcpu.get_regs()
    regs.rflags |= _INTERRUPTS
    cpu.vcpu.set_regs(regs)
    return cpu.enter()


@case(
    "SP1",
    "a vCPU that sleeps until the host has its page finds what is there when it wakes",
    needs=("private_memory", "native_guests"),
    backend="guest_memfd",
    vary={"meanwhile": ("nothing", "converted", "slot deleted")},
)
def asleep(tools: Toolbox, meanwhile: str) -> None:
    vm = tools.private_vm(0)
    vm.vm.create_irqchip()
    cpu = vm.add_cpu(0)
    memory = tools.memory(vm, GPA, SIZE)
    word = SHARED_WORD.to_bytes(8, "little")
    with ThreadPoolExecutor(1) as pool, HeldPage(memory.shared.address + AT) as held:
        reading = pool.submit(_read, cpu, GPA + AT)
        held.wait()
        if meanwhile == "converted":
            memory.set_private(AT, PAGE)
            held.fill(word)
        elif meanwhile == "slot deleted":
            with CallBeside(memory.delete) as deletion:
                slept = deletion.ends(1.0)
                held.fill(word)
            how = "while the vCPU slept" if slept else "only once the page was there"
            tools.say(f"the slot went {how}")
        else:
            held.fill(word)
        outcome = reading.result()
    wanted = lib.KVM_EXIT_MMIO if meanwhile == "slot deleted" else lib.KVM_EXIT_IO
    if outcome.reason != wanted:
        raise CheckFailed(f"a vCPU that waited for its page ({meanwhile}) got {outcome}")
    if outcome.reason == lib.KVM_EXIT_IO:
        seen = int(cpu.vcpu.get_regs().rax)
        expected = 0 if meanwhile == "converted" else SHARED_WORD
        if seen != expected:
            raise CheckFailed(
                f"a vCPU that waited for its page ({meanwhile}) reads {seen:#x}, "
                f"expected {expected:#x}"
            )
