"""A machine's vCPUs under way: who is asked at which stop, and how a run ends."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from types import GeneratorType
from typing import ClassVar, Protocol

from pyvmm.devices.bus import Bus
from pyvmm.devices.end_of_run import EndOfRun
from pyvmm.errors import ClosedError, ConfigurationError
from pyvmm.kvm.arguments import need
from pyvmm.kvm.exits import Exit, MemoryErrorExit
from pyvmm.loop.vcpu_loop import ExitRecord, VcpuLoop
from pyvmm.loop.vcpu_thread import VcpuThread
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import lib
from pyvmm.page_states import Policy
from pyvmm.report import Result, Where
from pyvmm.verdict import Judge, VcpuEnd, verdict

_LONGEST_S = 1_000_000
_BETWEEN_TICKS_S = 0.05

_STOP_EXIT: int = lib.STOP_EXIT
_STOP_KICK: int = lib.STOP_KICK
# Exits after which there is nothing to go on with.
_FATAL = frozenset((lib.KVM_EXIT_SHUTDOWN, lib.KVM_EXIT_INTERNAL_ERROR, lib.KVM_EXIT_FAIL_ENTRY))

# Where a guest says that it has come to its end; KVM_RUN would begin behind it.
_ENDS_OF_A_GUEST = frozenset((lib.STOP_GUEST_EXIT, lib.STOP_ASSERT, lib.STOP_HLT))

PolicyFunction = Callable[[MemoryErrorExit, int], bool]
LogFunction = Callable[[int, ExitRecord], None]


class Closeable(Protocol):
    def close(self) -> None: ...


class Running:
    """Runs vCPUs until they end or something ends the run; after a deadline or a kick, again.

    ``ask`` is the policy, if it is a function. ``resources`` are closed last to first by
    :meth:`close`. ``judge`` is to be set before the first run.

    Synchronization: :meth:`kick` and :meth:`end_all` may be called from any thread.
    """

    judge: Judge
    has_run = False
    on_tick: Callable[[], None] | None = None
    take_record: LogFunction | None = None
    # What exits() has yielded and the caller may deny; whether it did.
    question: MemoryErrorExit | None = None
    denied = False
    # A plain flag: an Event's lock would deadlock a signal handler that kicks.
    _ending = False
    _kicked = False
    _closed = False
    _finished = False
    _in_threads = False
    _next_tick = 0.0
    _iteration: weakref.ref[Generator[Exit, None, None]] | None = None

    def __init__(
        self,
        loops: Sequence[VcpuLoop],
        bus: Bus,
        memory: GuestMemory,
        ask: PolicyFunction | None,
        resources: list[Closeable],
    ) -> None:
        self._loops, self._bus, self._memory, self._ask = loops, bus, memory, ask
        self._resources = resources
        self._ends: list[VcpuEnd] = []
        self._ended: set[int] = set()  # vCPUs whose guest has come to its end
        # vCPUs that wait for a conversion which nobody has answered: asked again by the next run.
        self._unanswered: set[int] = set()

    # ---- the two ways to run ----

    def all_vcpus(self, deadline_s: float) -> None:
        """Run each vCPU in a thread of its own, the first one in the caller's."""
        self.check_open()
        if self._ask is None and self._memory.raw.policy == Policy.ASK:
            raise ConfigurationError(
                "run()",
                "the policy is to ask, and there is nobody to ask",
                "give a function as the policy, or use exits()",
            )
        deadline = self._start(deadline_s, for_caller=False)
        self._in_threads = True
        threads: list[VcpuThread] = []
        errors: list[BaseException] = []

        def run_in_thread(index: int) -> None:
            try:
                _exhaust(self._vcpu(index, deadline, for_caller=False))
            except BaseException as error:
                self.end_all()
                errors.append(error)

        try:
            for index in range(1, len(self._loops)):
                if index not in self._ended:
                    threads.append(VcpuThread(index, run_in_thread))
                    threads[-1].start()
            if 0 not in self._ended:
                _exhaust(self._vcpu(0, deadline, for_caller=False))
        except BaseException:
            self.end_all()
            raise
        finally:
            try:
                _join(threads, self.end_all)
            finally:
                self._in_threads = False
                self._finish_or_close()
        errors.extend(thread.error for thread in threads if thread.error is not None)
        if errors:
            raise errors[0]

    def one_vcpu(self, deadline_s: float) -> Generator[Exit, None, None]:
        """Run the machine's only vCPU; what nothing answers is the caller's."""
        if len(self._loops) != 1:
            raise ConfigurationError("exits()", f"the machine has {len(self._loops)} vCPUs, not 1")
        iteration = self._vcpu(0, self._start(deadline_s, for_caller=True), for_caller=True)
        self._iteration = weakref.ref(iteration)
        return iteration

    def _start(self, deadline_s: float, *, for_caller: bool) -> int:
        """The deadline on CLOCK_MONOTONIC, in nanoseconds."""
        self.check_open()
        iteration = self._iteration_under_way()
        if self._in_threads or (iteration is not None and iteration.gi_frame is not None):
            raise ConfigurationError("machine", "it runs already", "wait for the end of that run")
        if self.has_run:
            result = self.verdict()[0]
            if result not in (Result.DEADLINE, Result.INTERRUPTED):
                raise ConfigurationError(
                    "machine", f"its run has ended ({result.value})", "make a new one"
                )
        need("deadline_s", deadline_s, int, float)
        if not -_LONGEST_S <= deadline_s <= _LONGEST_S:  # nor NaN; what is past ends the run
            shown = deadline_s if isinstance(deadline_s, float) else f"{deadline_s:#x}"[:20]
            raise ConfigurationError(
                f"a deadline of {shown} s", f"it must be a number of at most {_LONGEST_S}"
            )
        self.has_run, self._finished = True, False
        self._loops[0].raw.protocol.unclaimed_to_python = for_caller
        self._ends = [end for end in self._ends if end.vcpu in self._ended]
        return max(1, time.monotonic_ns() + int(deadline_s * 1e9))  # 0 would be none

    # ---- one vCPU ----

    def _vcpu(self, index: int, deadline: int, for_caller: bool) -> Generator[Exit, None, None]:
        """Run a vCPU until it ends; what nothing answers is yielded, or ends it."""
        loop = self._loops[index]
        loop.limit(deadline)
        run, decode = loop.vcpu.kvm_run, loop.vcpu.exit
        devices, answer = self._bus.devices, self._bus.answer
        asks_again = index in self._unanswered
        end: VcpuEnd | None = None
        try:
            while True:
                try:
                    stop = lib.STOP_MEMORY_ERROR if asks_again else loop.run()
                    asks_again = False
                    if stop == _STOP_EXIT:
                        if devices and answer(run):
                            continue
                    elif (goes_on := self._handlers.get(stop)) is not None and goes_on(self, index):
                        continue
                except EndOfRun as end_of_run:
                    end = self.judge.ended_by_device(loop, index, end_of_run)
                    break
                except Exception as error:
                    self._ends.append(self.judge.raised(loop, index, error))
                    raise
                if stop == lib.STOP_SIGNAL:  # and it does not go on
                    stop = lib.STOP_HLT
                if for_caller and stop == _STOP_EXIT and run.exit_reason not in _FATAL:
                    yield decode()
                    continue
                if for_caller and stop == lib.STOP_MEMORY_ERROR and self._asks_the_caller():
                    self.question, self.denied = loop.memory_error(), False
                    self._unanswered.add(index)
                    yield self.question
                    self.question = None
                    self._unanswered.discard(index)
                    if not self.denied:
                        loop.answer_convert()
                        continue
                break
            if end is None:
                end = self._stopped(loop, index, stop)
            self._ends.append(end)
            if stop in _ENDS_OF_A_GUEST:
                self._ended.add(index)
            if end.ends_the_run and not self._ending:
                self.end_all()
        finally:
            if for_caller:
                self.question = None
                self._finish_or_close()
        if for_caller:
            self.check_open()

    def _stopped(self, loop: VcpuLoop, index: int, stop: int) -> VcpuEnd:
        if stop == _STOP_KICK and self._ending and not self._kicked:
            return VcpuEnd(index, None)  # another vCPU has ended the run
        denied_by = "deny()" if self.denied else "the policy"
        return self.judge.stopped(loop, index, stop, denied_by)

    def _tick(self, index: int) -> bool:
        # Other threads' conversions interrupt a vCPU, too (csrc/gate.h), by the thousand.
        if self.on_tick is not None and index == 0 and time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + _BETWEEN_TICKS_S
            self.on_tick()
        return not self.judge.is_halted(self._loops[index])

    def _asks_the_caller(self) -> bool:
        return self._ask is None and bool(self._memory.raw.policy == Policy.ASK)

    def _converts(self, index: int) -> bool:
        """Ask the policy, if it is a function, and let the loop convert if it says so."""
        if self._ask is None:
            return False
        loop = self._loops[index]
        exit = loop.memory_error()
        self._unanswered.add(index)
        try:
            converts = self._ask(exit, index)
        except Exception as error:
            error.add_note(f"policy, asked for GPA {exit.gpa:#x}")
            raise
        if converts is None:
            raise ConfigurationError(
                f"policy, asked for GPA {exit.gpa:#x}",
                "it returned None",
                "return True to convert or False to deny",
            )
        self._unanswered.discard(index)
        if converts:
            loop.answer_convert()
        return bool(converts)

    def _drain(self, index: int) -> bool:
        if self.take_record is not None:
            for record in self._loops[index].drain_log():
                self.take_record(index, record)
        return True

    # What a vCPU's stop asks of the machine; False if the vCPU does not go on by that.
    _handlers: ClassVar[dict[int, Callable[[Running, int], bool]]] = {
        lib.STOP_SIGNAL: _tick,
        lib.STOP_LOG_FULL: _drain,
        lib.STOP_MEMORY_ERROR: _converts,
    }

    def verdict(self) -> tuple[Result, int | None, str, Where | None]:
        """Result, exit code, reason and place of all runs until now."""
        return verdict(self._ends, len(self._loops), self.judge)

    # ---- the end ----

    def kick(self) -> None:
        """End the run; the result is then "interrupted"."""
        self._kicked = True
        self.end_all()

    def end_all(self) -> None:
        self._ending = True
        for loop in self._loops:
            loop.kick()

    def _finish_or_close(self) -> None:
        if self._closed:  # while it ran
            close_all(self._resources)
        else:
            self._finish()

    def _finish(self) -> None:
        """Stop the ticks and give out the rest of the log; once."""
        if self._closed or self._finished:
            return
        self._finished = True
        for index, loop in enumerate(self._loops):
            loop.disarm()
            loop.forget_kick()
            lib.loop_finish_record(loop.raw)
            if self.take_record is not None:
                self._drain(index)
        self._ending = self._kicked = False

    def check_open(self) -> None:
        if self._closed:
            raise ClosedError("machine")

    def close(self) -> None:
        """Give everything back; where a run is under way, end it, which does it then."""
        iteration = self._iteration_under_way()
        if self._in_threads or (iteration is not None and iteration.gi_running):
            self._closed = True
            self.end_all()
            return
        try:
            self._finish()  # exits() may have been left in the middle
        except ClosedError:  # of a part
            pass
        finally:
            self._closed = True
            close_all(self._resources)

    def _iteration_under_way(self) -> GeneratorType[Exit, None, None] | None:
        iteration = None if self._iteration is None else self._iteration()
        return iteration if isinstance(iteration, GeneratorType) else None


def close_all(resources: list[Closeable]) -> None:
    """Last to first."""
    while resources:
        resources.pop().close()


def _exhaust(exits: Iterator[Exit]) -> None:
    for exit in exits:
        raise AssertionError(f"nobody wants {exit}")


def _join(threads: list[VcpuThread], end_all: Callable[[], None]) -> None:
    """Wait for the vCPUs' threads; a Ctrl-C meanwhile ends the run instead of the waiting."""
    interrupted: BaseException | None = None
    for thread in threads:
        while not thread.is_over:
            try:
                if interrupted is not None:
                    end_all()
                thread.join()
            except BaseException as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted
