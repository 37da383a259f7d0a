"""The memory of a script on KVM: a VM whose vCPUs take the guest's steps.

What is the same for every ABI is here; slots, files and conversions are the subclasses'.
All of it is about what happened, not about what should have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvmm.kvm.exits import HltExit, HypercallExit, MmioExit
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.capabilities import hypercall_routine
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.guest import GuestVm, Outcome
from pyvmm.validate.kit.routines import Routine
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.watch import Watch
from pyvmm.validate.model.script import SECOND_VIEW, Layout
from pyvmm.validate.model.state import FILL_STRIDE, AccessExit

# Behind the page tables, in the plain memory: pages are copied there to be looked at.
_SCRATCH = 0x20000
LOOK_PAGES = 32
MMIO_ANSWER = 0x1D1D_2E2E_3F3F_4A4A
_ALL = (1 << 64) - 1


class System:
    """Made by ``PLAYS`` in play.py; its VM and memory are closed with the toolbox."""

    def __init__(self, tools: Toolbox, layout: Layout, vm: GuestVm) -> None:
        self.tools = tools
        self.layout = layout
        self.vm = vm
        self.slot_numbers = [vm.new_slot() for _ in range(layout.slots)]
        self._watch: Watch | None = None
        self._rounds = 0  # of the watch, when it was last asked
        self._hypercall: Routine | None = None
        tools.on_close(self.unwatch)

    def gpa(self, page: int) -> int:
        view, index = divmod(page, self.layout.pages)
        return self.layout.gpa + view * SECOND_VIEW + index * PAGE

    def create_all(self) -> None:
        for slot in range(self.layout.slots):
            page = self.layout.file_offset + self.layout.slot_pages(slot).start
            if self.create_slot(slot, 0, page):
                raise CheckFailed("a memslot of new memory is refused")

    # ---- the subclasses' ----

    def convert(self, page: int, count: int, private: bool) -> None:
        raise NotImplementedError

    def discard(self, page: int, count: int) -> None:
        raise NotImplementedError

    def punch(self, file: int, page: int, count: int) -> None:
        raise NotImplementedError

    def allocate(self, file: int, page: int, count: int) -> None:
        raise NotImplementedError

    def host_read(self, page: int, offset: int, size: int) -> bytes:
        raise NotImplementedError

    def host_write(self, page: int, offset: int, data: bytes) -> None:
        raise NotImplementedError

    def expect_no_host(self, page: int) -> None:
        """The host must not reach a page that is private, where it has a way to try."""

    def delete_slot(self, slot: int) -> None:
        raise NotImplementedError

    def create_slot(self, slot: int, file: int, page: int) -> int:
        """The errno; there is no such slot now."""
        raise NotImplementedError

    def close_file(self, file: int) -> None:
        raise NotImplementedError

    def new_file(self, file: int) -> None:
        raise NotImplementedError

    # ---- accesses of the guest ----

    def guest_read(self, cpu: int, page: int, offset: int, width: int) -> int | AccessExit:
        return self._access(cpu, routines.READ[width], page, offset, width)

    def guest_write(
        self, cpu: int, page: int, offset: int, width: int, value: int
    ) -> int | AccessExit:
        seen = self._access(cpu, routines.WRITE[width], page, offset, width, value)
        return seen if isinstance(seen, AccessExit) else 0

    def guest_add(self, cpu: int, page: int, offset: int, width: int, value: int) -> int:
        """What was there before. The page must be memory."""
        seen = self._access(cpu, routines.ADD[width], page, offset, width, value)
        if isinstance(seen, AccessExit):
            raise CheckFailed("a locked access to memory got an exit", str(seen))
        return seen

    def _access(
        self, cpu: int, routine: Routine, page: int, offset: int, width: int, value: int = 0
    ) -> int | AccessExit:
        chosen = self.vm.cpus[cpu]
        chosen.prepare(routine, rdi=self.gpa(page) + offset, rax=value)
        outcome = chosen.enter()
        if not isinstance(outcome.exit, HltExit):
            seen = access_exit(outcome)
            if seen.reason == lib.KVM_EXIT_MMIO:
                self._complete_mmio(cpu, seen, width)
            return seen
        return int(chosen.vcpu.get_regs().rax) & (1 << 8 * width) - 1

    def _complete_mmio(self, cpu: int, seen: AccessExit, width: int) -> None:
        chosen = self.vm.cpus[cpu]
        is_write = bool(seen.flags)
        if not is_write:
            chosen.answer(MMIO_ANSWER)
        value = int(chosen.finish("after KVM_EXIT_MMIO").rax)
        mask = (1 << 8 * width) - 1
        if not is_write and value & mask != MMIO_ANSWER & mask:
            raise CheckFailed("a guest reads something else than KVM_EXIT_MMIO was answered")

    def guest_fill(self, cpu: int, page: int, count: int, tag: int) -> None:
        """Pages of one view, all of them memory."""
        self.vm.cpus[cpu].fill(self.gpa(page), count * PAGE, tag, FILL_STRIDE)

    def guest_copy(self, cpu: int, source: int, target: int, count: int) -> None:
        self._copy(cpu, self.gpa(source), self.gpa(target), count)

    def look(self, cpu: int, page: int, count: int) -> bytes:
        """What the guest reads in at most LOOK_PAGES pages of one view, all of them memory."""
        self._copy(cpu, self.gpa(page), _SCRATCH, count)
        return bytes(self.vm.plain.view[_SCRATCH : _SCRATCH + count * PAGE])

    def _copy(self, cpu: int, source: int, target: int, count: int) -> None:
        chosen = self.vm.cpus[cpu]
        chosen.prepare(routines.COPY, rsi=source, rdi=target, rcx=count * PAGE // 8)
        chosen.finish(f"copying {count} pages from GPA {source:#x} to {target:#x}")

    # ---- hypercalls ----

    def hypercall(self, cpu: int, arguments: Sequence[int]) -> tuple[int, ...] | int:
        """KVM_HC_MAP_GPA_RANGE: the arguments that reach userspace, or what KVM answers itself."""
        if self._hypercall is None:
            self._hypercall = hypercall_routine(self.vm)
            if self._hypercall is None:
                raise CheckFailed("KVM_HC_MAP_GPA_RANGE gives no exit in this VM")
        chosen = self.vm.cpus[cpu]
        registers = dict(zip(("rbx", "rcx", "rdx"), arguments, strict=True))
        chosen.prepare(self._hypercall, rax=lib.KVM_HC_MAP_GPA_RANGE, **registers)
        outcome = chosen.enter()
        if isinstance(outcome.exit, HltExit):
            return int(chosen.vcpu.get_regs().rax)
        if not isinstance(outcome.exit, HypercallExit):
            raise CheckFailed("a hypercall gives another exit", str(outcome))
        return tuple(int(each) for each in chosen.vcpu.kvm_run.hypercall.args[0:3])

    def answer_hypercall(self, cpu: int, value: int) -> tuple[int, ...]:
        """Let the guest go on; rax, rbx, rcx and rdx afterwards."""
        chosen = self.vm.cpus[cpu]
        chosen.answer(value & _ALL)
        regs: Any = chosen.finish("after a hypercall")
        return tuple(int(each) for each in (regs.rax, regs.rbx, regs.rcx, regs.rdx))

    # ---- a vCPU that stays inside the guest ----

    def watch(self, page: int) -> None:
        """Let the last vCPU read a page's first word until :meth:`unwatch`. It must be memory."""
        self.unwatch()
        if len(self.vm.cpus) == self.layout.cpus:
            self.vm.add_cpu(self.layout.cpus)
        self._watch = Watch(self.vm.cpus[-1], self.gpa(page), stop_at_exit=True)
        try:
            self._watch.__enter__()
            self._rounds = self._watch.rounds
        except BaseException:
            self.unwatch()
            raise

    def watched(self) -> int | AccessExit:
        """A word that was read after this call began, or the exit that ended the watch."""
        watch = self._watch
        assert watch is not None
        self.tools.tried(watch.rounds > self._rounds, "steps found the watched vCPU at work")
        value = watch.after(watch.rounds)
        self._rounds = watch.rounds
        if watch.outcome is None:
            return value
        return access_exit(watch.outcome)

    def unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            return
        watch.__exit__(None, None, None)
        if watch.outcome is not None and watch.outcome.reason == lib.KVM_EXIT_MMIO:
            # The vCPU can do nothing else before the access has been completed.
            watch.cpu.answer(MMIO_ANSWER)
            watch.cpu.finish("after KVM_EXIT_MMIO")


def access_exit(outcome: Outcome) -> AccessExit:
    """What came of an access, but that it reached memory."""
    if outcome.fault is not None:
        return AccessExit(outcome.error, outcome.reason, *outcome.fault)
    if isinstance(outcome.exit, MmioExit):
        seen = outcome.exit
        value = int.from_bytes(seen.data, "little") if seen.is_write else 0
        return AccessExit(
            outcome.error, outcome.reason, int(seen.is_write), seen.gpa, seen.size, value
        )
    raise CheckFailed("an access of the guest gives an exit that it cannot have", str(outcome))
