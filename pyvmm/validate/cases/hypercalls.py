"""KVM_HC_MAP_GPA_RANGE: what reaches userspace, what KVM refuses, what comes back."""

from __future__ import annotations

import errno
from dataclasses import replace

from pyvmm.kvm.cpuid import cpuid_entries, cpuid_table
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.capabilities import hypercall_routine
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, check, expect, expect_errno
from pyvmm.validate.kit.guest import MAILBOX, Cpu, GuestVm, Outcome
from pyvmm.validate.kit.known import HYPERCALL_LOST_BY_ITS_UPPER_HALF, Known
from pyvmm.validate.kit.routines import Routine
from pyvmm.validate.kit.toolbox import Toolbox

NUMBER: int = lib.KVM_HC_MAP_GPA_RANGE
_ALL = (1 << 64) - 1
HIGH = 0xDEAD_BEEF << 32
_ENCRYPTED: int = lib.KVM_MAP_GPA_RANGE_ENCRYPTED
_EPERM, _EINVAL, _ENOSYS = (
    -number & _ALL for number in (errno.EPERM, errno.EINVAL, lib.KVM_ENOSYS)
)


# The same instruction for a caller that may not halt.
OUT_AFTER = {
    routines.VMMCALL: routines.VMMCALL_OUT,
    routines.VMCALL: routines.VMCALL_OUT,
}


def caller(tools: Toolbox) -> tuple[GuestVm, Routine]:
    vm = tools.private_vm() if tools.has_private_vm else tools.vm()
    routine = hypercall_routine(vm)
    assert routine is not None, "the capability was asked for"
    return vm, routine


# Each argument differs from the others in every half of its bits.
ARGUMENTS = (
    (0x40000, 1, _ENCRYPTED),
    (4 * GIB, 2, 0x00),
    (0x1_2345_6789_A000, 0x1_0000_0002, 0x1_0000_0010),
    (0x000F_FFFF_FFFF_F000, 0x7, 0xFFFF_FFFF),
    (5 * GIB + 7 * PAGE, 0xFFFF_FFFF, 0xFEDC_BA98_7654_3210),
    (0x8000_0000, 0x10_0000_0000, 0x1F),
)


@case(
    "HC1",
    "all 64 bits of each argument reach userspace, in their order",
    needs=("hypercall_exit",),
    combinations=[{"arguments": arguments} for arguments in ARGUMENTS],
)
def arguments(tools: Toolbox, arguments: tuple[int, int, int]) -> None:
    vm, routine = caller(tools)
    gpa, pages, attributes = arguments
    registers = {"rax": NUMBER, "rbx": gpa, "rcx": pages, "rdx": attributes}
    outcome = vm.cpu.run(routine, **registers, rsi=0x5151, rdi=0x7171)
    expect(outcome.reason, lib.KVM_EXIT_HYPERCALL, "exit reason of the hypercall")
    hypercall = vm.cpu.vcpu.kvm_run.hypercall
    expect(int(hypercall.nr), NUMBER, "hypercall number")
    expect(int(hypercall.args[0]), gpa, "first argument (GPA)")
    expect(int(hypercall.args[1]), pages, "second argument (pages)")
    expect(int(hypercall.args[2]), attributes, "third argument (attributes)")
    expect(int(hypercall.longmode), 1, "flags of a caller in 64-bit mode")
    vm.cpu.answer(0)
    vm.cpu.finish("after a hypercall")


@case(
    "HC2",
    "what userspace answers is in rax, all else is as before",
    needs=("hypercall_exit",),
    vary={"answer": (0, 1, _EINVAL, 0x1234_5678_9ABC_DEF0)},
)
def answer(tools: Toolbox, answer: int) -> None:
    vm, routine = caller(tools)
    registers = {"rbx": 4 * GIB, "rcx": 1, "rdx": _ENCRYPTED, "rsi": 0x77, "r9": 0x99}
    vm.cpu.run(routine, rax=NUMBER, **registers)
    vm.cpu.answer(answer)
    regs = vm.cpu.finish("after a hypercall")
    expect(int(regs.rax), answer, "rax after the hypercall")
    for name, value in registers.items():
        expect(int(getattr(regs, name)), value, f"{name} after the hypercall")


@case(
    "HC3",
    "what KVM must refuse does not reach userspace and gives -EINVAL",
    needs=("hypercall_exit",),
    combinations=[
        {"wrong": wrong}
        for wrong in ("gpa unaligned", "no pages", "wrap", "wrap by one", "all ones")
    ],
)
def refused(tools: Toolbox, wrong: str) -> None:
    vm, routine = caller(tools)
    cases = {
        "gpa unaligned": [(PAGE + 1, 1), (PAGE + 8, 1), (2 * PAGE - 1, 1), (4 * GIB + 512, 2)],
        "no pages": [(PAGE, 0)],
        "wrap": [(PAGE, _ALL), (4 * GIB, _ALL - (4 * GIB // PAGE) + 2)],
        "wrap by one": [(PAGE, _ALL - 0), (2 * PAGE, _ALL - 1)],
        "all ones": [(_ALL, _ALL), (_ALL, 1)],
    }
    for gpa, pages in cases[wrong]:
        vm.cpu.prepare(routine, rax=NUMBER, rbx=gpa, rcx=pages, rdx=_ENCRYPTED)
        regs = vm.cpu.finish(f"a hypercall that KVM must refuse ({wrong})")
        expect(int(regs.rax), _EINVAL, f"rax after a hypercall with {wrong}")


@case(
    "HC4",
    "a caller in real mode: the upper halves of its registers do not count",
    needs=("hypercall_exit",),
    vary={"number": (NUMBER, HIGH | NUMBER)},
)
def upper_halves(tools: Toolbox, number: int) -> None:
    vm, routine = caller(tools)
    cpu = vm.add_cpu(1)
    cpu.prepare_real_mode(
        routine, rax=number, rbx=HIGH | 0x40000, rcx=HIGH | 3, rdx=HIGH | _ENCRYPTED
    )
    outcome = cpu.enter()
    if outcome.reason == lib.KVM_EXIT_HLT and number != NUMBER:
        rax = int(cpu.vcpu.get_regs().rax)
        expect(rax, 0, "rax after a hypercall that did not reach userspace")
        raise Known(
            HYPERCALL_LOST_BY_ITS_UPPER_HALF,
            "a hypercall from real mode whose number has upper bits succeeds, and nobody hears it",
        )
    expect(outcome.reason, lib.KVM_EXIT_HYPERCALL, "exit reason of the hypercall")
    hypercall = cpu.vcpu.kvm_run.hypercall
    expect(int(hypercall.nr), NUMBER, "number of a caller in real mode")
    seen = [int(hypercall.args[index]) for index in range(3)]
    expect(seen, [0x40000, 3, _ENCRYPTED], "arguments of a caller in real mode")
    expect(int(hypercall.longmode), 0, "flags of a caller in real mode")
    cpu.answer(HIGH | 0x55)
    regs = cpu.finish("after a hypercall in real mode")
    expect(int(regs.rax), 0x55, "rax after a hypercall in real mode")


@case(
    "HC5",
    "an unknown hypercall gives -ENOSYS and stays in the kernel",
    needs=("hypercall_exit",),
    vary={"number": (0x7777, (1 << 32) | NUMBER, _ALL)},
)
def unknown(tools: Toolbox, number: int) -> None:
    vm, routine = caller(tools)
    vm.cpu.prepare(routine, rax=number, rbx=PAGE, rcx=1)
    regs = vm.cpu.finish("an unknown hypercall")
    expect(int(regs.rax), _ENOSYS, "rax after an unknown hypercall")


@case(
    "HC6",
    "without KVM_CAP_EXIT_HYPERCALL the call gives -ENOSYS; only known hypercalls can be enabled",
    needs=("hypercall_exit",),
)
def not_enabled(tools: Toolbox) -> None:
    probe, routine = caller(tools)
    vm = tools.private_vm() if tools.has_private_vm else tools.vm()
    vm.cpu.prepare(routine, rax=NUMBER, rbx=PAGE, rcx=1, rdx=_ENCRYPTED)
    regs = vm.cpu.finish("a hypercall that was not enabled")
    expect(int(regs.rax), _ENOSYS, "rax after a hypercall that was not enabled")
    capability = lib.KVM_CAP_EXIT_HYPERCALL
    allowed = probe.vm.check_extension(capability)
    for bit in range(32):
        if not allowed >> bit & 1:
            expect_errno(
                lambda bit=bit: vm.vm.enable_cap(capability, 1 << bit),  # type: ignore[misc]
                errno.EINVAL,
                f"KVM_CAP_EXIT_HYPERCALL for hypercall {bit}",
            )


@case(
    "HC8",
    "a caller that is not the guest's kernel (privilege level 3) gets -EPERM",
    needs=("hypercall_exit",),
)
def user_mode(tools: Toolbox) -> None:
    vm, routine = caller(tools)
    then_out = OUT_AFTER[routine]
    io_privilege = 0x3002

    def call(level: int) -> Outcome:
        cpu = vm.cpu
        cpu.prepare(then_out, rax=NUMBER, rbx=4 * GIB, rcx=1, rdx=_ENCRYPTED)
        regs, sregs = cpu.vcpu.get_regs(), cpu.vcpu.get_sregs()
        regs.rflags = io_privilege
        for segment in (sregs.cs, sregs.ss):
            segment.selector = segment.selector & ~3 | level
            segment.dpl = level
        cpu.vcpu.set_sregs(sregs)
        cpu.vcpu.set_regs(regs)
        return cpu.enter()

    outcome = call(0)
    expect(outcome.reason, lib.KVM_EXIT_HYPERCALL, "exit reason at privilege level 0")
    vm.cpu.answer(0)
    vm.cpu.enter()
    vm.cpu.finish("after a hypercall")
    outcome = call(3)
    expect(outcome.reason, lib.KVM_EXIT_IO, "exit reason behind a hypercall at privilege level 3")
    rax = int(vm.cpu.vcpu.get_regs().rax)
    expect(rax, _EPERM, "rax after a hypercall at privilege level 3")


_VECTOR = 0x41
# In struct kvm_lapic_state: the spurious-interrupt vector with the enable bit, and the requests.
_SVR, _IRR, _SVR_ENABLES = 0xF0, 0x200, 0x1FF
_PV_FEATURES = 0x4000_0001


def _with_a_sleeper(tools: Toolbox) -> tuple[Cpu, Cpu, Routine]:
    """A vCPU that calls, one that sleeps in HLT with its LAPIC on, and the instruction to call."""
    _, routine = caller(tools)
    vm = tools.private_vm(0) if tools.has_private_vm else tools.vm(cpus=0)
    vm.vm.create_irqchip()
    calling, sleeping = vm.add_cpu(0), vm.add_cpu(1)
    sleeping.vcpu.set_mp_state(lib.KVM_MP_STATE_HALTED)
    lapic = sleeping.vcpu.get_lapic()
    ffi.cast("uint32_t *", ffi.addressof(lapic.regs, _SVR))[0] = _SVR_ENABLES
    sleeping.vcpu.set_lapic(lapic)
    # With a LAPIC the guest's HLT is no exit.
    return calling, sleeping, OUT_AFTER[routine]


def _call(cpu: Cpu, routine: Routine, number: int, *arguments: int) -> int:
    """What a hypercall answers that userspace must not see."""
    names = ("rbx", "rcx", "rdx", "rsi")
    outcome = cpu.run(routine, rax=number, **dict(zip(names, arguments, strict=False)))
    expect(outcome.reason, lib.KVM_EXIT_IO, f"exit reason behind hypercall {number}")
    return int(cpu.vcpu.get_regs().rax)


@case(
    "HC9",
    "the hypercalls of a paravirtual guest stay in the kernel and do what they say",
    needs=("hypercall_exit",),
)
def paravirtual(tools: Toolbox) -> None:
    cpu, sleeper, routine = _with_a_sleeper(tools)
    expect(_call(cpu, routine, lib.KVM_HC_VAPIC_POLL_IRQ), 0, "rax after VAPIC_POLL_IRQ")
    expect(_call(cpu, routine, lib.KVM_HC_SCHED_YIELD, 1), 0, "rax after SCHED_YIELD to vCPU 1")
    expect(_call(cpu, routine, lib.KVM_HC_SCHED_YIELD, 99), 0, "rax after SCHED_YIELD to nobody")
    no_clock = -lib.KVM_EOPNOTSUPP & _ALL
    unknown_kind = _call(cpu, routine, lib.KVM_HC_CLOCK_PAIRING, MAILBOX, 7)
    expect(unknown_kind, no_clock, "rax after CLOCK_PAIRING of an unknown kind")

    asleep = sleeper.vcpu.get_mp_state()
    expect(asleep, lib.KVM_MP_STATE_HALTED, "state of a vCPU in HLT")
    answer = _call(cpu, routine, lib.KVM_HC_SEND_IPI, 1 << 1, 0, 0, _VECTOR)
    expect(answer, 1, "rax after SEND_IPI: to how many it went")
    requests = ffi.cast("uint32_t *", ffi.addressof(sleeper.vcpu.get_lapic().regs, _IRR))
    word, bit = divmod(_VECTOR, 32)
    check(requests[4 * word] >> bit & 1, "an interrupt that SEND_IPI sent is not in its LAPIC")
    shorthand = _VECTOR | 1 << 18  # only plain destinations are allowed
    answer = _call(cpu, routine, lib.KVM_HC_SEND_IPI, 1 << 1, 0, 0, shorthand)
    expect(answer, _EINVAL, "rax after SEND_IPI with a shorthand")

    expect(_call(cpu, routine, lib.KVM_HC_KICK_CPU, 0, 1), 0, "rax after KICK_CPU")
    awake = sleeper.vcpu.get_mp_state()
    expect(awake, lib.KVM_MP_STATE_RUNNABLE, "state of a vCPU in HLT that KICK_CPU has woken")


@case(
    "HC10",
    "a hypercall whose feature the CPUID does not have gives -ENOSYS, where that is enforced",
    needs=("hypercall_exit",),
    vary={"name": ("KICK_CPU", "SEND_IPI", "SCHED_YIELD")},
)
def without_the_feature(tools: Toolbox, name: str) -> None:
    cpu, sleeper, routine = _with_a_sleeper(tools)
    cpu.vcpu.enable_cap(lib.KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1)
    entries = cpuid_entries(cpu.vm.kvm.get_supported_cpuid())
    without = [
        replace(entry, eax=0) if entry.function == _PV_FEATURES else entry for entry in entries
    ]
    cpu.vcpu.set_cpuid2(cpuid_table(without))
    number = int(getattr(lib, f"KVM_HC_{name}"))
    arguments = (1 << 1, 0, 0, _VECTOR) if name == "SEND_IPI" else (0, 1)
    rax = _call(cpu, routine, number, *arguments)
    expect(rax, _ENOSYS, f"rax after {name} without its feature")
    asleep = sleeper.vcpu.get_mp_state()
    expect(asleep, lib.KVM_MP_STATE_HALTED, f"state of vCPU 1 after a {name} that is none")


@case(
    "HC7",
    "a guest converts a range by hypercall and finds it converted",
    needs=("hypercall_exit", "private_memory"),
    backend="guest_memfd",
    vary={"gpa": (0x80000, 4 * GIB)},
)
def converts(tools: Toolbox, gpa: int) -> None:
    vm, routine = caller(tools)
    memory = tools.memory(vm, gpa, 16 * PAGE)
    memory.guest_fill(0, 16 * PAGE, 1 << 48)

    def ask(attributes: int) -> None:
        outcome = vm.cpu.run(routine, rax=NUMBER, rbx=gpa + 2 * PAGE, rcx=4, rdx=attributes)
        if outcome.reason != lib.KVM_EXIT_HYPERCALL:
            raise CheckFailed(f"a hypercall gave {outcome}")
        hypercall = vm.cpu.vcpu.kvm_run.hypercall
        start, size = int(hypercall.args[0]) - gpa, int(hypercall.args[1]) * PAGE
        (memory.to_private if hypercall.args[2] & _ENCRYPTED else memory.to_shared)(start, size)
        vm.cpu.answer(0)
        vm.cpu.finish("after a hypercall that converted")

    ask(_ENCRYPTED)
    memory.expect_guest_zero(2 * PAGE, 4 * PAGE, "pages made private by hypercall")
    memory.expect_guest(0, 2 * PAGE, 1 << 48, "pages before those made private by hypercall")
    memory.expect_guest(6 * PAGE, 10 * PAGE, 1 << 48, "pages behind those made private")
    memory.guest_fill(2 * PAGE, 4 * PAGE, 2 << 48)
    ask(0)
    memory.expect_guest_zero(2 * PAGE, 4 * PAGE, "pages made shared again by hypercall")
