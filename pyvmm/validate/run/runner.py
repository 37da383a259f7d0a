"""Runs cases in worker processes: several beside each other, each under its deadline."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pyvmm.validate.kit.case import Case
from pyvmm.validate.model import files
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run import stuck
from pyvmm.validate.run.beats import Beats
from pyvmm.validate.run.forked import no_signals
from pyvmm.validate.run.worker import serve

# A forked worker has all modules loaded; nothing here starts threads before it forks.
_processes = multiprocessing.get_context("fork")
_TICK_S = 1.0
# How long a process that was killed is waited for.
_END_S = 5.0
#: Seconds that failing cases may take in all: a kernel on which everything hangs would take hours.
PATIENCE_S = 300.0


@dataclass(slots=True)
class _Worker:
    """A process and the case that it runs now (its number), since when.

    ``moved`` is when it was last seen to have done another part of its work.
    """

    process: BaseProcess
    connection: Connection
    beats: Beats
    case: int | None = None
    since: float = 0.0
    moved: float = 0.0
    seen: int = 0


class Runner:
    """Iterate over it for results, once, in the order in which they come.

    ``workers`` processes run cases beside each other; cases that must be alone run after
    them, one by one. With ``shuffle`` the order is random, by ``seed``. A case that hangs, or
    gets on for longer than it may, is killed and one that crashes its process is reported;
    both cost a new process.
    ``started`` is called with each case when it starts. :meth:`close` ends all processes,
    also those in the middle of a case; ``left_behind`` says that the kernel did not let one go,
    for which Python would wait at its end. Once the cases that failed have taken
    ``patience_s`` no other begins: ``not_run`` has those. (The model's do not count, which look
    for the shortest script that fails.)
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        workers: int = 1,
        seed: int = 0,
        shuffle: bool = False,
        started: Callable[[Case], None] = lambda case: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.cases = list(cases)
        self.workers = max(1, workers)
        self.seed = seed
        self.started = started
        order = list(range(len(self.cases)))
        if shuffle:
            random.Random(seed).shuffle(order)
        self._together = [number for number in order if not self.cases[number].alone]
        self._alone = [number for number in order if self.cases[number].alone]
        self._pool: list[_Worker] = []
        self.left_behind = False
        self.not_run: tuple[Case, ...] = ()
        self._patience_s = patience_s
        self._searching = {each.name for each in self.cases if each.examples}

    def __iter__(self) -> Iterator[CaseResult]:
        yield from self._run(self._together, min(self.workers, len(self._together)))
        self._shrink(1)
        yield from self._run(self._alone, min(1, len(self._alone)))
        self.close()

    def _bear(self, result: CaseResult) -> CaseResult:
        if result.state.bad and result.name not in self._searching:
            self._patience_s -= result.duration_s
        return result

    def close(self) -> None:
        self._shrink(0)

    def _run(self, numbers: list[int], workers: int) -> Iterator[CaseResult]:
        while len(self._pool) < workers:
            with no_signals():
                self._pool.append(self._start())
        waiting = numbers[::-1]
        while waiting or any(worker.case is not None for worker in self._pool):
            if waiting and self._patience_s <= 0:
                self.not_run += tuple(self.cases[number] for number in reversed(waiting))
                waiting.clear()
                continue
            for worker in list(self._pool):
                if worker.case is None and waiting:
                    self._give(worker, waiting.pop())
            busy = {worker.connection: worker for worker in self._pool if worker.case is not None}
            for ready in wait(list(busy), timeout=self._until_deadline()):
                yield self._bear(self._take(busy[ready]))  # type: ignore[index]
            for worker in list(self._pool):
                if worker.case is not None and self._left(worker) <= 0:
                    yield self._bear(self._kill(worker))

    def _start(self) -> _Worker:
        ours, theirs = _processes.Pipe()
        beats = Beats()
        others = [worker.connection for worker in self._pool]
        process = _processes.Process(
            target=_serve_forked, args=(theirs, [ours, *others], self.cases, self.seed, beats)
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, beats)

    def _give(self, worker: _Worker, number: int) -> None:
        if not worker.process.is_alive():
            # It died of what an earlier case left behind; this one must not be blamed.
            worker = self._renew(worker)
        self.started(self.cases[number])
        worker.case, worker.since = number, time.monotonic()
        worker.moved, worker.seen = worker.since, worker.beats.count()
        with suppress(ConnectionError):  # it has died since: _take() is told of its end
            worker.connection.send(number)

    def _renew(self, worker: _Worker) -> _Worker:
        worker.connection.close()
        with no_signals():
            fresh = self._start()
            self._pool[self._pool.index(worker)] = fresh
        return fresh

    def _left(self, worker: _Worker) -> float:
        assert worker.case is not None
        now, case = time.monotonic(), self.cases[worker.case]
        if (count := worker.beats.count()) != worker.seen:
            worker.moved, worker.seen = now, count
        return min(worker.moved + case.deadline_s, worker.since + case.longest_s) - now

    def _until_deadline(self) -> float:
        left = [self._left(worker) for worker in self._pool if worker.case is not None]
        return max(0.0, min([*left, _TICK_S]))

    def _take(self, worker: _Worker) -> CaseResult:
        try:
            result: CaseResult = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            return self._replace(worker, State.CRASH, _ending(worker.process.exitcode))
        worker.case = None
        return result

    def _kill(self, worker: _Worker) -> CaseResult:
        assert worker.case is not None
        deadline_s = self.cases[worker.case].deadline_s
        took_s = time.monotonic() - worker.since
        message = f"no end after {round(took_s) if worker.moved > worker.since else deadline_s:g} s"
        calls, stacks = stuck.where(worker.process.pid or 0)
        if calls:
            message += f", in {calls}"
        worker.process.kill()
        worker.process.join(timeout=_END_S)
        if worker.process.exitcode is None:
            self.left_behind = True
            message += "; not even SIGKILL ends it"
        return self._replace(worker, State.HANG, message, stacks)

    def _replace(self, worker: _Worker, state: State, message: str, detail: str = "") -> CaseResult:
        assert worker.case is not None
        each = self.cases[worker.case]
        duration = time.monotonic() - worker.since
        self._renew(worker)
        detail = "; ".join(filter(None, (detail, files.left_behind(each.name))))
        return CaseResult(
            each.name, each.id, each.title, each.subject, state, message, detail, duration
        )

    def _shrink(self, workers: int) -> None:
        while len(self._pool) > workers:
            worker = self._pool.pop()
            worker.connection.close()
            if worker.case is not None:
                worker.process.kill()
            worker.process.join(timeout=_END_S)
            if worker.case is not None:
                files.forget(self.cases[worker.case].name)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join(timeout=_END_S)
                self.left_behind |= worker.process.exitcode is None


def _serve_forked(
    connection: Connection,
    inherited: list[Connection],
    cases: list[Case],
    seed: int,
    beats: Beats,
) -> None:
    # A copy of another worker's pipe would keep that worker from seeing its end.
    for each in inherited:
        each.close()
    serve(connection, cases, seed, beats)


def _ending(code: int | None) -> str:
    import signal

    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with status {code}"
