"""MMIO: what each kind of instruction reads and writes there, over the border of two pages too."""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.native import ffi, lib
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import check, expect
from pyvmm.validate.kit.guest import Cpu
from pyvmm.validate.kit.toolbox import Toolbox

# No slot is here.
BORDER = 5 * GIB + PAGE
_CODE, _TARGET = 0x6000, 0x6100
_VALUE, _THERE = 0x1122_3344_5566_7788, 0x0102_0304_0506_0708
_OTHER = 0x99AA_BBCC_DDEE_FF00
_MASK = (1 << 64) - 1


class Instruction(NamedTuple):
    """Its bytes, and what it writes to 8 bytes at rdi, or rsp - 8 where it pushes, if anything."""

    code: str
    writes: int | None
    reads: bool = False


# rax has _VALUE, rbp and rsi's word too; what is read from MMIO is _THERE.
INSTRUCTIONS = {
    "mov": Instruction("488907", _VALUE),
    "mov of a constant": Instruction("48c70778563412", 0x12345678),
    "load": Instruction("488b07", None, True),
    "push": Instruction("50", _VALUE),
    "push of a constant": Instruction("6878563412", 0x12345678),
    "push of flags": Instruction("9c", 2),
    "enter": Instruction("c8000000", _VALUE),
    "call": Instruction("e8fb000000", _CODE + 5),
    "string": Instruction("48ab", _VALUE),
    "copy": Instruction("48a5", _VALUE),
    "exchange": Instruction("488707", _VALUE, True),
    "addition": Instruction("480107", (_VALUE + _THERE) & _MASK, True),
    "increment": Instruction("48ff07", _THERE + 1, True),
    "or": Instruction("480907", _VALUE | _THERE, True),
    "complement": Instruction("48f717", ~_THERE & _MASK, True),
}


def run_elsewhere(cpu: Cpu) -> None:
    """The same instruction on another vCPU, elsewhere: a thread may run several by turns.

    What KVM left on the kernel's stack of this thread is overwritten.
    """
    at = BORDER + PAGE // 2
    cpu.prepare(_CODE, rdi=at, rsp=at + 8, rax=_OTHER, rbp=_OTHER, rsi=_TARGET)
    while (outcome := cpu.enter()).reason == lib.KVM_EXIT_MMIO:
        if not cpu.vcpu.kvm_run.mmio.is_write:
            cpu.answer(_OTHER)
    expect(outcome.reason, lib.KVM_EXIT_HLT, "exit reason of another vCPU meanwhile")


@case(
    "MM1",
    "an access over the border of two MMIO pages: two exits, with each byte in its place",
    needs=("guests",),
    vary={"instruction": tuple(INSTRUCTIONS)},
)
def over_a_page(tools: Toolbox, instruction: str) -> None:
    vm = tools.vm()
    other = vm.add_cpu(1)
    code, writes, reads = INSTRUCTIONS[instruction]
    view = vm.plain.view
    view[_CODE : _CODE + 16] = bytes.fromhex(code).ljust(16, b"\xf4")
    view[_TARGET : _TARGET + 1] = b"\xf4"
    view[_TARGET + 8 : _TARGET + 16] = _VALUE.to_bytes(8, "little")
    run = vm.cpu.vcpu.kvm_run
    for before in range(9):
        at = BORDER - before
        vm.cpu.prepare(_CODE, rdi=at, rsp=at + 8, rax=_VALUE, rbp=_VALUE, rsi=_TARGET + 8)
        what = f"{instruction}, {before} of 8 bytes before the border"
        seen: dict[bool, dict[int, bytes]] = {False: {}, True: {}}
        outcome = vm.cpu.enter()
        while outcome.reason == lib.KVM_EXIT_MMIO:
            mmio = run.mmio
            gpa, length = int(mmio.phys_addr), int(mmio.len)
            check(gpa >= at and gpa + length <= at + 8, f"{what}: an exit for other bytes")
            data = bytes(ffi.buffer(mmio.data, length))
            seen[bool(mmio.is_write)][gpa] = data
            if not mmio.is_write:
                there = _THERE.to_bytes(8, "little")[gpa - at : gpa - at + length]
                vm.cpu.answer(int.from_bytes(there, "little"))
            run_elsewhere(other)
            outcome = vm.cpu.enter()
        expect(outcome.reason, lib.KVM_EXIT_HLT, f"{what}: exit reason at the end")
        for is_write, wanted in ((False, reads), (True, writes is not None)):
            kind = "writes" if is_write else "reads"
            gpas = sorted(seen[is_write])
            parts = [at] if before in (0, 8) else [at, BORDER]
            expect(gpas, parts if wanted else [], f"{what}: where it {kind}")
        if writes is not None:
            written = b"".join(data for _, data in sorted(seen[True].items()))
            expect(int.from_bytes(written, "little"), writes, f"{what}: the value that is written")
        if instruction == "load":
            rax = int(vm.cpu.vcpu.get_regs().rax)
            expect(rax, _THERE, f"{what}: the value that is read")
