"""Jobs on this machine, several at once, each in a process and a lab of its own.

An error of one job is its result, and the rest goes on. A job whose process dies is tried once
more. A process that was stopped (SIGSTOP) and does not go on is killed, and its lab with it: it has
died then. Whatever ends the iteration ends all labs; what came of a job until then is kept.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pyvmm.errors import PyvmmError
from pyvmm.lab.errors import LabError, plain
from pyvmm.lab.processes import die_with_parent
from pyvmm.validate.jobs import durations
from pyvmm.validate.jobs.job import Job
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.jobs.run import run_job
from pyvmm.validate.run.forked import heard, no_signals

_processes = multiprocessing.get_context("fork")
_TRIES = 2
#: A pipe takes so much at once or not at all, with its length (PIPE_BUF): who is stopped in the
#: middle of a message has not sent a part of a piece, for which the other end would wait.
_PIECE = 4000
_MORE, _LAST = b"+", b"."
_ONCE_MORE_S = 5.0  # a lab that ends takes less
_PATIENCE_S = 30.0
_TICK_S = 1.0
#: So long may a process be stopped while this one is not.
_STOPPED_S = 60.0
#: What QEMU and Python take beside a lab's memory, and what is left for everybody else, in MiB.
_LAB_MIB, _OTHERS_MIB = 512, 1024
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
#: A job that took less came from the cache, and says nothing on how fast this machine is.
_RAN_S = 3.0

Outcome = JobResult | PyvmmError
Announce = Callable[[str], None]
Runner = Callable[[Job, Announce, Announce], JobResult]
#: What runs jobs: here, or on a cluster.
Engine = Callable[[Iterable[Job]], Generator[tuple[Job, Outcome], None, None]]


def labs_at_once(cpus: int, memory_mib: int) -> int:
    """How many labs of this size the cores and the free memory of this machine allow."""
    by_cores = int(_cores() / cpus)
    by_memory = (_free_mib() - _OTHERS_MIB) // (memory_mib + _LAB_MIB)
    return max(1, min(by_cores, by_memory))


def run_jobs(
    jobs: Iterable[Job],
    workers: int,
    announce: Announce,
    watch: Announce = lambda line: None,
    run: Runner = run_job,
) -> Generator[tuple[Job, Outcome], None, None]:
    """What came of each job, as it comes. ``watch`` is given a line on how far all are.

    A job is taken from ``jobs`` when a worker is free for it, so that there may be no end of them.
    """
    crew = _Crew(jobs, workers, announce, watch, run)
    try:
        yield from crew.outcomes()
    finally:
        crew.end()


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job
    since: float
    tries: int
    told: str = ""
    heard: bytearray = field(default_factory=bytearray)
    stopped_s: float = 0.0
    is_given_up: bool = False


class _Crew:
    def __init__(
        self, jobs: Iterable[Job], workers: int, announce: Announce, watch: Announce, run: Runner
    ) -> None:
        self._jobs = iter(jobs)
        self._again: list[Job] = []
        self._workers = workers
        self._announce = announce
        self._watch = watch
        self._run = run
        self._at_work: list[_Worker] = []
        self._estimate = Estimate(jobs, workers) if isinstance(jobs, Sequence) else None

    def outcomes(self) -> Iterator[tuple[Job, Outcome]]:
        while True:
            self._give()
            if not self._at_work:
                return
            began = time.monotonic()
            ready = wait([each.connection for each in self._at_work], timeout=_TICK_S)
            self._end_stopped(time.monotonic() - began)
            for worker in [each for each in self._at_work if each.connection in ready]:
                outcome = self._hear(worker)
                if outcome is not None and self._estimate:
                    self._estimate.ended(worker.job, time.monotonic() - worker.since)
                if outcome is not None:
                    yield worker.job, outcome
            self._watch(self._line())

    def _give(self) -> None:
        """A job for everybody who has none, as far as there are."""
        while len(self._at_work) < self._workers:
            if self._again:
                self._start(self._again.pop(), _TRIES)
            elif (job := next(self._jobs, None)) is not None:
                self._start(job, 1)
            else:
                return

    def _end_stopped(self, seconds: float) -> None:
        """Kill who was stopped and is not let go on. ``seconds`` have gone by since the last look.

        Ctrl-Z stops all of us: that time does not count.
        """
        for worker in self._at_work:
            if not _is_stopped(worker.process.pid):
                worker.stopped_s = 0.0
                continue
            worker.stopped_s += min(seconds, _TICK_S)
            if worker.stopped_s > _STOPPED_S:
                worker.is_given_up = True
                worker.process.kill()  # and QEMU goes with it; its end is heard as any other

    def end(self) -> None:
        """End all: a signal that came right before a call that waits is seen with the next one."""
        until = time.monotonic() + _PATIENCE_S
        left = [each.process for each in self._at_work]
        while left and time.monotonic() < until:
            for process in left:
                process.terminate()
                _let_go_on(process)
            again = time.monotonic() + _ONCE_MORE_S
            for process in left:
                process.join(max(0.0, again - time.monotonic()))
            left = [each for each in left if each.is_alive()]
        for process in left:
            process.kill()
        for worker in self._at_work:
            self._release(worker)

    def _start(self, job: Job, tries: int) -> None:
        sys.stdout.flush()  # lest a child writes it too
        ours, theirs = _processes.Pipe(duplex=False)
        process = _processes.Process(
            target=_work,
            args=(self._run, job, theirs, die_with_parent(signal.SIGTERM)),
            daemon=True,
        )
        with no_signals():  # until it is known, and so will be ended
            process.start()
            self._at_work.append(_Worker(process, ours, job, time.monotonic(), tries))
        theirs.close()

    def _hear(self, worker: _Worker) -> Outcome | None:
        """What a worker says: how far it is, or what came of its job."""
        try:
            message = _received(worker)
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            self._at_work.remove(worker)
            self._release(worker)
            stopped = f"was stopped for {_STOPPED_S:.0f} s and killed"
            how = stopped if worker.is_given_up else "died"
            if worker.tries < _TRIES:
                self._announce(f"job {worker.job.name}: its process {how}; trying it once more")
                self._again.append(worker.job)
                return None
            return LabError(f"job {worker.job.name}", f"its process {how}; it was the second try")
        if isinstance(message, JobResult | PyvmmError):
            self._at_work.remove(worker)
            self._release(worker)
            return message
        if message is not None:
            kind, line = message
            if kind == "announce":
                self._announce(line)
            else:
                worker.told = line
        return None

    @staticmethod
    def _release(worker: _Worker) -> None:
        worker.process.join(_PATIENCE_S)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()

    def _line(self) -> str:
        now = time.monotonic()
        running = {each.job.name: now - each.since for each in self._at_work}
        told = "; ".join(each.told for each in self._at_work if each.told)
        return f"{self._estimate.line(running)}: {told}" if self._estimate else told


def _send(connection: Connection, message: object) -> None:
    whole = pickle.dumps(message)
    for at in range(0, len(whole), _PIECE):
        kind = _MORE if at + _PIECE < len(whole) else _LAST
        connection.send_bytes(kind + whole[at : at + _PIECE])


def _received(worker: _Worker) -> Any:
    """A message that has come whole, None if there is none yet. Raises EOFError at the end, and
    OSError where that is in the middle of a piece."""
    while worker.connection.poll():
        piece = worker.connection.recv_bytes()
        worker.heard += piece[1:]
        if piece[:1] == _LAST:
            message = pickle.loads(worker.heard)
            worker.heard.clear()
            return message
    return None


def _is_stopped(pid: int | None) -> bool:
    """Whether a child is stopped, as by SIGSTOP. A debugger's is not."""
    try:
        # The name before it may have spaces and brackets of its own.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _let_go_on(process: BaseProcess) -> None:
    """Who is stopped does not hear that it is to end."""
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, signal.SIGCONT)


def _work(
    run: Runner, job: Job, connection: Connection, die_with_parent_: Callable[[], None]
) -> None:
    try:
        with heard():
            die_with_parent_()
            _do(run, job, connection)
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        # Interrupted: the other end knows.


def _do(run: Runner, job: Job, connection: Connection) -> None:
    def announce(line: str) -> None:
        _send(connection, ("announce", line))

    def tell(line: str) -> None:
        _send(connection, ("tell", line))

    try:
        _send(connection, run(job, announce, tell))
    except PyvmmError as error:
        _send(connection, plain(error))
    except BrokenPipeError:
        pass  # the other end is gone
    except OSError as error:
        cause = error.strerror or str(error)
        _send(connection, LabError(str(error.filename or f"job {job.name}"), cause))


class Estimate:
    """How long jobs will go on, by what was recorded of their cases and by how fast others were.

    ``workers`` may change meanwhile. ``jobs`` may have fewer when asked again, as one ends.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        known = durations.Durations()
        self._jobs = jobs
        self._names = {job: job.name for job in jobs}
        self._expected = {job.name: durations.expected_s(job, known.of(job)) for job in jobs}
        self._done: set[str] = set()
        self._left = list(self._expected)
        self.workers = workers
        self._took = self._should_have = 0.0

    def ended(self, job: Job, seconds: float) -> None:
        self._done.add(job.name)
        names = (self._names[each] for each in self._jobs)
        self._left = [name for name in names if name not in self._done]
        if seconds > _RAN_S:
            self._took += seconds
            self._should_have += self._expected[job.name]

    def left_s(self, running: dict[str, float]) -> float:
        """Seconds to go, while these jobs run since so many seconds."""
        pace = self._took / self._should_have if self._took else 1.0
        left = [
            max(0.0, self._expected[name] * pace - running.get(name, 0.0)) for name in self._left
        ]
        each = sum(left) / max(1, min(self.workers, len(left)))
        return max([each, *left])  # one job is on one worker

    def line(self, running: dict[str, float]) -> str:
        done = len(self._done)
        return f"{done}/{done + len(self._left)} jobs, {about(self.left_s(running))} left"


def about(seconds: float) -> str:
    """In words, for people who wait."""
    return f"about {seconds / 60:.0f} min" if seconds >= 60 else "less than a minute"


def _cores() -> float:
    """Those that this process may use, and no more than the time that its control group has."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return cores


def _free_mib() -> int:
    """Memory that is free for who asks, of the machine and of the control group.

    What the control group has of files can be read again.
    """
    free = _numbers(_MEMINFO)["MemAvailable:"] >> 10
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return free
        used = int((_CGROUP / "memory.current").read_text())
        with suppress(OSError, ValueError):
            stat = _numbers(_CGROUP / "memory.stat")
            used -= stat.get("inactive_file", 0) + stat.get("active_file", 0)
        return min(free, int(limit) - used >> 20)
    except (OSError, ValueError):
        return free


def _numbers(path: Path) -> dict[str, int]:
    """The second word of each line, by the first."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
