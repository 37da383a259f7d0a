"""Exits that the VMM forgets to answer: the guest gets nothing that was left there from before.

Whatever is in ``kvm_run`` when the vCPU is entered, the exit sets the field for the answer.
"""

from __future__ import annotations

from pyvmm.errors import KvmError
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.capabilities import hypercall_routine
from pyvmm.validate.kit.case import GIB, case
from pyvmm.validate.kit.check import Missing, check, expect
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.known import HYPERCALL_WITH_A_STALE_ANSWER, Known
from pyvmm.validate.kit.toolbox import Toolbox

_PORT = 0x5A
_UNKNOWN_MSR = 0xC001_7AAA
_STALE = 0xEEEE_EEEE_EEEE_EEEE  # what Cpu.enter() leaves in kvm_run


@case(
    "AN1",
    "a hypercall that is not answered gives 0",
    needs=("hypercall_exit",),
    vary={"before": ("nothing", "another answer")},
)
def hypercall(tools: Toolbox, before: str) -> None:
    vm = tools.private_vm() if tools.has_private_vm else tools.vm()
    routine = hypercall_routine(vm)
    assert routine is not None, "the capability was asked for"
    request = {"rax": lib.KVM_HC_MAP_GPA_RANGE, "rbx": 4 * GIB, "rcx": 1, "rdx": 0x10}
    stale = _STALE
    if before == "another answer":
        stale = 0x1234
        vm.cpu.run(routine, **request)
        vm.cpu.answer(stale)
        vm.cpu.finish("after a hypercall")
        vm.cpu.prepare(routine, **request)
        # The answer of before is still there.
        vm.cpu.vcpu.kvm_run.hypercall.ret = stale
        vm.cpu.keep_answer()
        outcome = vm.cpu.enter()
    else:
        outcome = vm.cpu.run(routine, **request)
    expect(outcome.reason, lib.KVM_EXIT_HYPERCALL, "exit reason of the hypercall")
    left = int(vm.cpu.vcpu.kvm_run.hypercall.ret)
    vm.cpu.keep_answer()
    rax = int(vm.cpu.finish("after a hypercall that nobody answered").rax)
    if left == stale and rax == stale:
        raise Known(
            HYPERCALL_WITH_A_STALE_ANSWER,
            "a hypercall that the VMM does not answer gives what was in kvm_run before",
        )
    expect((left, rax), (0, 0), "hypercall.ret at the exit, and rax where nobody answers")


@case("AN2", "an IN that is not answered gives nothing that an OUT wrote before", needs=("guests",))
def port(tools: Toolbox) -> None:
    vm = tools.vm()
    for value in (0x5151_5151, 0x7272_7272):
        outcome = vm.cpu.run(routines.OUTL, rax=value, rdx=_PORT)
        expect(outcome.reason, lib.KVM_EXIT_IO, "exit reason of an OUT")
        vm.cpu.finish("after an OUT")
        outcome = vm.cpu.run(routines.INL, rax=0x3333, rdx=_PORT)
        expect(outcome.reason, lib.KVM_EXIT_IO, "exit reason of an IN")
        vm.cpu.keep_answer()
        rax = int(vm.cpu.finish("after an IN that nobody answered").rax)
        expect(rax, 0, "rax after an IN that nobody answered")


@case(
    "AN3",
    "an access to an MSR that is not answered succeeds, and reads 0",
    needs=("guests",),
    vary={"access": ("rdmsr", "wrmsr")},
)
def msr(tools: Toolbox, access: str) -> None:
    vm = tools.vm()
    _let_msrs_exit(vm)
    reading = access == "rdmsr"
    routine = routines.RDMSR if reading else routines.WRMSR
    outcome = vm.cpu.run(routine, rax=0x3333, rdx=0x4444, rcx=_UNKNOWN_MSR)
    wanted = lib.KVM_EXIT_X86_RDMSR if reading else lib.KVM_EXIT_X86_WRMSR
    expect(outcome.reason, wanted, f"exit reason of {access} of an unknown MSR")
    told = vm.cpu.vcpu.kvm_run.msr
    expect(int(told.index), _UNKNOWN_MSR, "index of the MSR")
    expect(int(told.error), 0, "error in kvm_run before anybody answers")
    expect(int(told.data), 0 if reading else 0x4444_0000_3333, "data in kvm_run")
    pad = bytes(ffi.buffer(ffi.addressof(told), 8))[1:]
    check(not any(pad), "the padding of an MSR exit is not 0", pad.hex())
    vm.cpu.keep_answer()
    regs = vm.cpu.finish(f"after {access} that nobody answered")
    seen = (int(regs.rax), int(regs.rdx))
    expect(seen, (0, 0) if reading else (0x3333, 0x4444), f"rax and rdx after {access}")


def _let_msrs_exit(vm: GuestVm) -> None:
    try:
        vm.vm.enable_cap(lib.KVM_CAP_X86_USER_SPACE_MSR, lib.KVM_MSR_EXIT_REASON_UNKNOWN)
    except KvmError as error:
        raise Missing(f"KVM_CAP_X86_USER_SPACE_MSR: {error.strerror}") from None
