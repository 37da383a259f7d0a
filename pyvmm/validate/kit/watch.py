"""A vCPU that uses a page all the while, so that what reaches it late or never is seen."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from types import TracebackType

from pyvmm.kvm.exits import HltExit
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.beside import thread_ends
from pyvmm.validate.kit.case import HUGE, PAGE
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.guest import Cpu, Fault, Outcome
from pyvmm.validate.kit.memory import Memory
from pyvmm.validate.kit.routines import Routine
from pyvmm.validate.kit.toolbox import Toolbox

#: What :meth:`Watch.during` tells, in the words of :meth:`Toolbox.tried`.
INSIDE = "calls found the vCPU inside the guest"
# What the shared and the private side of the watched page hold.
SHARED_WORD, PRIVATE_WORD = 0x5151_5151, 0x7272_7272_7272


class Watch:
    """A vCPU that reports a word of memory for ever, in a thread of its own.

    It stays inside the guest: an exit would hide a TLB flush that is missing. Exits of
    races that it lost are counted, checked and re-entered; with ``stop_at_exit`` the first
    exit ends it and is kept as ``outcome``. A context manager; with ``wait`` the vCPU has
    read the word when it is entered.
    """

    def __init__(
        self,
        cpu: Cpu,
        gpa: int,
        routine: Routine = routines.WATCH,
        *,
        stop_at_exit: bool = False,
        wait: bool = True,
    ) -> None:
        self.cpu = cpu
        self.gpa = gpa
        self.lost_races = 0
        self.stop_at_exit = stop_at_exit
        self.wait = wait
        self.outcome: Outcome | None = None
        self._is_late = False
        self.error: BaseException | None = None
        plain = cpu.vm.plain
        words_ = ffi.cast("volatile uint64_t *", plain.address + cpu.mailbox)
        words_[0] = words_[1] = words_[2] = 0
        self._words = words_
        cpu.prepare(routine, rdi=gpa, rsi=cpu.mailbox)
        self._thread = threading.Thread(target=self._run, name=f"vcpu{cpu.index}", daemon=True)

    def _run(self) -> None:
        try:
            while True:
                # It is not meant to exit; the case has a deadline of its own.
                outcome = self.cpu.enter(deadline_s=1000)
                if isinstance(outcome.exit, HltExit):
                    return
                if self.stop_at_exit:
                    self.outcome = None if self._is_late else outcome
                    return
                fault = outcome.fault
                if outcome.error != errno.EFAULT or fault is None:
                    raise CheckFailed(f"a vCPU that reads GPA {self.gpa:#x} got {outcome}")
                if (fault.gpa, fault.size) != (self.gpa & -PAGE, PAGE) or fault.flags not in (
                    0,
                    lib.KVM_MEMORY_EXIT_FLAG_PRIVATE,
                ):
                    raise CheckFailed(f"the exit of a lost race at GPA {self.gpa:#x} has {fault}")
                self.lost_races += 1
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Watch:
        self._thread.start()
        if self.wait:
            self.fresh()
        return self

    @property
    def rounds(self) -> int:
        return int(self._words[1])

    def fresh(self, timeout_s: float = 30.0) -> int:
        """A word that the guest read after this call began."""
        return self.after(self.rounds, timeout_s)

    def after(self, rounds: int, timeout_s: float = 30.0) -> int:
        """A word that the guest read in a round that began after round ``rounds`` had ended.

        Any word when ``stop_at_exit`` has ended the watch: look at ``outcome``.
        """
        words_ = self._words
        # The round under way may have read before; the one after it has not.
        wanted = rounds + 2
        if words_[1] < wanted:
            self._wait(wanted, timeout_s)
        return int(words_[0])

    def _wait(self, wanted: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._words[1] < wanted:
            if self.error is not None:
                raise self.error
            if self.outcome is not None:
                return
            if time.monotonic() > deadline:
                raise CheckFailed(f"the vCPU that reads GPA {self.gpa:#x} does not go on")
            # Give the vCPU's thread the CPU; it may need Python to re-enter.
            time.sleep(0)

    def during(self, call: Callable[..., object], *arguments: object) -> bool:
        """Make a call of the host; whether the vCPU went on inside the guest meanwhile."""
        before = self.rounds
        call(*arguments)
        return self.rounds != before

    def join(self, limit_s: float) -> None:
        """Wait until ``stop_at_exit`` has ended the thread, for so many seconds in which this
        machine had its CPUs. A later exit is none: what ends the watch may have made it."""
        self._is_late = not thread_ends(self._thread, limit_s)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._words[2] = 1
        self._thread.join(timeout=30)
        if self._thread.is_alive():
            self.cpu.loop.kick()
            self._thread.join(timeout=30)
        if self.error is not None and error is None:
            raise self.error


def flip_while_faulting(
    tools: Toolbox,
    watch: Callable[[bool], Watch],
    first: Callable[[], object],
    last: Callable[[], object],
    wanted: Fault,
    what: str,
    seconds: float = 5.0,
    at_most_s: float = 30.0,
) -> None:
    """Convert a page ``first`` to the state in which the guest has it, ``last`` to the other, while
    a vCPU that was just entered takes its first fault: it must get the exit ``wanted``.

    ``watch(wait)`` makes a watch that ends at an exit. Without a race it goes on for ``at_most_s``.
    """
    first()
    began = time.monotonic()
    with watch(True):
        pause_s = time.monotonic() - began  # until a vCPU has its page
    began, flips = time.monotonic(), 0
    while time.monotonic() - began < (seconds if tools.races else at_most_s):
        flips += 1
        first()
        with watch(False) as each:
            time.sleep(tools.random.uniform(0, 2 * pause_s))
            # As often before the vCPU has its page as afterwards, however long that takes here.
            pause_s *= 0.9 if each.rounds else 1.1
            tools.tried(each.during(last), INSIDE)
            each.join(5)
        outcome = each.outcome
        if outcome is None or outcome.fault != wanted:
            raise CheckFailed(what, f"{outcome}, flip {flips}")


def watched_memory(tools: Toolbox, gpa: int, size: int, backing: str = "anonymous") -> Memory:
    """Memory whose pages hold SHARED_WORD on the one side and PRIVATE_WORD on the other."""
    vm = tools.private_vm()
    memory = tools.memory(vm, gpa, size if backing != "thp" else 2 * HUGE, backing=backing)
    for offset in range(0, size, PAGE):
        memory.shared.view[offset : offset + 8] = SHARED_WORD.to_bytes(8, "little")
    memory.set_private(0, size)
    for offset in range(0, size, PAGE):
        vm.cpu.write(gpa + offset, PRIVATE_WORD)
    return memory
