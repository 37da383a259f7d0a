"""The guest side of a case: a VM with a little plain memory, and vCPUs that run routines.

A vCPU is in 64-bit mode at privilege level 0, without interrupts, and sees the first
eight GiB of guest-physical memory at the same linear addresses.
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, Protocol

from pyvmm.errors import KvmError
from pyvmm.guest.boot import set_real_mode
from pyvmm.guest.long_mode import page_tables, set_long_mode
from pyvmm.kvm.exits import Exit, HltExit
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.stats import Stats
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.uapi import reason_name
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.loop.bare import BareVcpu, NoExitError
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed, Missing, errno_name, expect, words
from pyvmm.validate.kit.routines import Routine

PLAIN_SLOT = 0
PLAIN_SIZE = 0x40000
# In the plain memory: code, a mailbox for each vCPU, a stack, page tables.
CODE, MAILBOX, STACK, TABLES = 0x1000, 0x2000, 0x8000, 0x10000
MAILBOX_SIZE = 0x40

_RUN_S = 20.0
# Behind the deadline: how long a guest may do nothing before it is given up.
_STANDS_S = 1.0
# What struct kvm_regs begins with: all but RIP and RFLAGS.
_GENERAL_REGISTERS = ffi.offsetof("struct kvm_regs", "rip")
# How long a vCPU that does not come back is looked at, and how many faults are too many then.
_LOOK_S, _MANY_FAULTS = 0.2, 20
_PAYLOAD = ffi.offsetof("struct kvm_run", "hw")


class Fault(NamedTuple):
    """The raw fields of KVM_EXIT_MEMORY_FAULT (flags) or KVM_EXIT_MEMORY_ERROR (type)."""

    flags: int
    gpa: int
    size: int

    def __str__(self) -> str:
        return f"flags {self.flags:#x}, GPA {self.gpa:#x}, size {self.size:#x}"


class Outcome(NamedTuple):
    """What one KVM_RUN returned: ``error`` is its errno, 0 for none; ``reason`` its number."""

    error: int
    reason: int
    exit: Exit | None
    fault: Fault | None

    def __str__(self) -> str:
        what = reason_name(self.reason)
        if self.fault is not None:
            what += f" ({self.fault})"
        elif self.exit is not None:
            what = str(self.exit)
        return f"{what}, {errno_name(self.error)}" if self.error else what


class EntersMode(Protocol):
    def enter(self, vcpu: Vcpu) -> None:
        """Set up the mode, and paging in it."""


class Cpu:
    """A vCPU that runs one routine at a time, each under a deadline.

    Synchronization: one thread at a time.
    """

    def __init__(self, vm: GuestVm, index: int) -> None:
        self.vm = vm
        self.index = index
        self.vcpu = vm.vm.create_vcpu(index)
        self.vcpu.set_cpuid2(vm.kvm.get_supported_cpuid())
        self._bare = BareVcpu(self.vcpu)
        self.loop = self._bare.loop
        self.mailbox = MAILBOX + index * MAILBOX_SIZE
        self._is_set_up = False
        self._answered = False

    def close(self) -> None:
        self._bare.close()
        self.vcpu.close()

    # ---- one KVM_RUN ----

    def prepare(self, routine: Routine | int, **registers: int) -> None:
        """Set the registers for a routine (or for code at a GPA); the others are zero."""
        if not self._is_set_up:
            set_long_mode(self.vcpu, TABLES)
            self._is_set_up = True
        regs = ffi.new("struct kvm_regs *")
        regs.rip = routine if isinstance(routine, int) else self.vm.entries[routine]
        regs.rflags, regs.rsp = 2, STACK
        for name, value in registers.items():
            setattr(regs, name, value & (1 << 64) - 1)
        self.vcpu.set_regs(regs)

    def use(self, mode: EntersMode) -> None:
        """Run routines in another mode from now on; see :mod:`pyvmm.validate.kit.paging`."""
        mode.enter(self.vcpu)
        self._is_set_up = True

    def prepare_real_mode(self, routine: Routine, **registers: int) -> None:
        """The same in real mode, for a new vCPU and a routine that touches no memory."""
        set_real_mode(self.vcpu, self.vm.entries[routine])
        regs = self.vcpu.get_regs()
        for name, value in registers.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def enter(self, deadline_s: float = _RUN_S) -> Outcome:
        """KVM_RUN from where the vCPU stands to the next exit. Fails if there is none in time.

        A guest that gets on, if slowly as on a machine with much else to do, has as long again.
        """
        run = self.vcpu.kvm_run
        payload = ffi.cast("char *", run) + _PAYLOAD
        if not self._answered:
            # Whatever the kernel does not write must not look like an answer.
            run.exit_reason = 0xDEAD
            ffi.memmove(payload, b"\xee" * 64, 64)
        self._answered = False
        try:
            error = self._enter(deadline_s)
        except NoExitError:
            raise self._no_exit(deadline_s) from None
        reason = run.exit_reason
        fault = None
        if reason == lib.KVM_EXIT_MEMORY_FAULT:
            raw = ffi.cast("struct pyvmm_memory_fault *", payload)
            fault = Fault(raw.flags, raw.gpa, raw.size)
        elif reason == lib.KVM_EXIT_MEMORY_ERROR:
            raw = ffi.cast("struct pyvmm_memory_error *", payload)
            fault = Fault(raw.type, raw.gpa, raw.size)
        return Outcome(error, reason, None if error else self.vcpu.exit(), fault)

    def _enter(self, deadline_s: float) -> int:
        try:
            return self._bare.enter(deadline_s)
        except NoExitError:
            until = time.monotonic() + deadline_s
            while time.monotonic() < until:
                before = self._general_registers()
                with suppress(NoExitError):
                    return self._bare.enter(_STANDS_S)
                if self._general_registers() == before:
                    break
            raise

    def _general_registers(self) -> bytes:
        return bytes(ffi.buffer(self.vcpu.get_regs(), _GENERAL_REGISTERS))

    def _no_exit(self, deadline_s: float) -> CheckFailed:
        """The failure of a vCPU that does not come back, and what it does."""
        grown = self._grown()
        message = f"vCPU {self.index} got no exit within {deadline_s:g} s"
        if grown.get("pf_taken", 0) >= _MANY_FAULTS:
            message += ": KVM takes page faults again and again"
            if "pf_fixed" not in grown:
                message += " and maps nothing (an invalidation that never ends?)"
        regs = self.vcpu.get_regs()
        counts = ", ".join(f"{name} +{count}" for name, count in grown.items())
        return CheckFailed(
            message,
            f"it is at {regs.rip:#x} with rdi {regs.rdi:#x} and rcx {regs.rcx:#x}; "
            f"in {_LOOK_S:g} s more: {counts or 'nothing'}",
        )

    def _grown(self) -> dict[str, int]:
        """The statistics that grow while the vCPU runs a little more; {} where there are none."""
        try:
            before = _counters(self.vcpu.get_stats_fd())
        except KvmError:
            return {}
        with suppress(NoExitError):
            self._bare.enter(_LOOK_S)
        now = _counters(self.vcpu.get_stats_fd())
        return {name: now[name] - then for name, then in before.items() if now[name] > then}

    def run(self, routine: Routine | int, **registers: int) -> Outcome:
        self.prepare(routine, **registers)
        return self.enter()

    def answer(self, value: int) -> None:
        """What the exit that just came shall give the guest: an MMIO read, or a hypercall."""
        run = self.vcpu.kvm_run
        if run.exit_reason == lib.KVM_EXIT_HYPERCALL:
            run.hypercall.ret = value
        else:
            ffi.memmove(run.mmio.data, value.to_bytes(8, "little"), 8)
        self.keep_answer()

    def keep_answer(self) -> None:
        """The exit that just came was answered in kvm_run: the next entry must not wipe it."""
        self._answered = True

    def finish(self, what: str) -> Any:
        """Enter; the routine must reach its HLT. Returns the registers."""
        outcome = self.enter()
        if not isinstance(outcome.exit, HltExit):
            raise CheckFailed(f"{what}: the guest got {outcome}, expected to go on to its HLT")
        return self.vcpu.get_regs()

    # ---- whole accesses ----

    def read(self, gpa: int, size: int = 8, what: str = "") -> int:
        """What the guest reads at ``gpa``; no exit may come of it."""
        self.prepare(routines.READ[size], rdi=gpa)
        return int(self.finish(what or f"reading GPA {gpa:#x}").rax)

    def write(self, gpa: int, value: int, size: int = 8, what: str = "") -> None:
        """Let the guest write; no exit may come of it."""
        self.prepare(routines.WRITE[size], rdi=gpa, rax=value)
        self.finish(what or f"writing GPA {gpa:#x}")

    def expect_read(self, gpa: int, expected: int, what: str, size: int = 8) -> None:
        seen = self.read(gpa, size, what)
        if seen != expected:
            raise CheckFailed(
                f"{what}: the guest reads {words(seen)} at GPA {gpa:#x}, expected {words(expected)}"
            )

    def fill(self, gpa: int, size: int, tag: int, stride: int = 1024) -> None:
        """Write ``tag`` plus its own GPA into a word every ``stride`` bytes."""
        self.prepare(
            routines.FILL, rdi=gpa, rax=tag, rsi=stride, rcx=size // stride, r8=(1 << 64) - 1
        )
        self.finish(f"filling GPA {gpa:#x}, {size:#x} bytes")

    def expect_filled(self, gpa: int, size: int, tag: int, what: str, stride: int = 1024) -> None:
        """The words that :meth:`fill` or the host wrote with ``tag`` must be there."""
        self._scan(gpa, size, tag, (1 << 64) - 1, stride, what)

    def expect_zero(self, gpa: int, size: int, what: str, stride: int = 1024) -> None:
        self._scan(gpa, size, 0, 0, stride, what)

    def _scan(self, gpa: int, size: int, value: int, mask: int, stride: int, what: str) -> None:
        self.prepare(routines.SCAN, rdi=gpa, rax=value, rsi=stride, rcx=size // stride, r8=mask)
        regs = self.finish(what)
        if regs.rcx != 0:
            raise CheckFailed(
                f"{what}: the guest reads {words(int(regs.rdx))} at GPA {int(regs.rdi):#x}, "
                f"expected {words(int(regs.rbx))}"
            )

    def counter(self, name: str) -> int:
        """One of the vCPU's statistics."""
        return _counter(self.vcpu.get_stats_fd(), name)

    # ---- expected exits ----

    def expect_fault(
        self, gpa: int, what: str, *, flags: int = lib.KVM_MEMORY_EXIT_FLAG_PRIVATE
    ) -> None:
        """Enter; KVM_EXIT_MEMORY_FAULT must come, for one page, with EFAULT."""
        self._expect_exit(
            lib.KVM_EXIT_MEMORY_FAULT, errno.EFAULT, Fault(flags, gpa & -PAGE, PAGE), what
        )

    def expect_memory_error(self, gpa: int, wanted: int, what: str) -> None:
        """Enter; the RFC's KVM_EXIT_MEMORY_ERROR must come, for one page, with EPERM."""
        self._expect_exit(
            lib.KVM_EXIT_MEMORY_ERROR, errno.EPERM, Fault(wanted, gpa & -PAGE, PAGE), what
        )

    def _expect_exit(self, reason: int, error: int, fault: Fault, what: str) -> None:
        outcome = self.enter()
        if (outcome.error, outcome.reason, outcome.fault) != (error, reason, fault):
            raise CheckFailed(
                f"{what}: the guest got {outcome}, expected {reason_name(reason)} ({fault}), "
                f"{errno_name(error)}"
            )

    def expect_mmio(self, gpa: int, what: str) -> None:
        """A read must come as an MMIO exit; it is completed, so that the next run starts anew."""
        outcome = self.run(routines.READ[8], rdi=gpa)
        if outcome.reason != lib.KVM_EXIT_MMIO:
            raise CheckFailed(f"{what}: the guest got {outcome}, expected an MMIO exit")
        mmio = self.vcpu.kvm_run.mmio
        seen = (int(mmio.phys_addr), mmio.len)
        expect(seen, (gpa, 8), f"{what}: GPA and length of the MMIO exit")
        self.answer(0x77)
        expect(int(self.finish(what).rax), 0x77, f"{what}: what the guest reads from MMIO")


def _counters(stats: Stats) -> dict[str, int]:
    with stats:
        return stats.counters()


def _counter(stats: Stats, name: str) -> int:
    counters = _counters(stats)
    if name not in counters:
        raise Missing(f"the statistic {name} of KVM_GET_STATS_FD")
    return counters[name]


class GuestVm:
    """A VM with the routines in plain memory at GPA 0, and ``vcpus`` vCPUs."""

    def __init__(self, kvm: Kvm, vm_type: int, vcpus: int) -> None:
        self.kvm = kvm
        self._resources = ExitStack()
        self.vm = self._resources.enter_context(kvm.create_vm(vm_type))
        try:
            self.plain = Mapping(PLAIN_SIZE)
            self._resources.callback(self.plain.close)
            code, self.entries = routines.layout(CODE)
            view = self.plain.view
            view[CODE : CODE + len(code)] = code
            tables = page_tables(TABLES)
            view[TABLES : TABLES + len(tables)] = tables
            self.vm.set_user_memory_region(PLAIN_SLOT, 0, PLAIN_SIZE, self.plain.address)
            self._next_slot = PLAIN_SLOT + 1
            self.cpus: list[Cpu] = []
            for index in range(vcpus):
                self.add_cpu(index)
        except BaseException:
            self.close()
            raise

    def add_cpu(self, index: int) -> Cpu:
        cpu = Cpu(self, index)
        self._resources.callback(cpu.close)
        self.cpus.append(cpu)
        return cpu

    @property
    def cpu(self) -> Cpu:
        """vCPU 0."""
        return self.cpus[0]

    def counter(self, name: str) -> int:
        """One of the VM's statistics."""
        return _counter(self.vm.get_stats_fd(), name)

    def mapped_pages(self) -> int:
        """How many pages, of any size, the guest's page tables in KVM map."""
        return sum(self.counter(f"pages_{size}") for size in ("4k", "2m", "1g"))

    def new_slot(self) -> int:
        """The number of a slot that is not in use."""
        self._next_slot += 1
        return self._next_slot - 1

    def close(self) -> None:
        self._resources.close()
