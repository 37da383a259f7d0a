"""Jobs on the workers of a Dask cluster: who is there, who may be used, who has which kernel.

Each job is given to one worker, as many at once as it has threads. A worker that goes, or cannot do
it, has its jobs done elsewhere. One that could not do its last job is always free, and would have
every job first: it gets none for a while, and none that another one could not do, as long as there
is a better one. Kernels go to a worker once, by the SHA-256 of their image. What comes back is kept
in the cache here, as if the job had run here.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyvmm.errors import PyvmmError
from pyvmm.lab.errors import KernelFailed, LabError
from pyvmm.lab.kernels import Kernel
from pyvmm.printable import counted
from pyvmm.validate.jobs import durations, there
from pyvmm.validate.jobs import result as results
from pyvmm.validate.jobs.code import own_code
from pyvmm.validate.jobs.connecting import CONNECT_S, connect
from pyvmm.validate.jobs.job import Job, to_text
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.jobs.run import is_of, keep_result, kept_result, kernel_of_job, sha256_of
from pyvmm.validate.jobs.workers import Announce, Estimate, Outcome

if TYPE_CHECKING:
    from distributed import Client

_TICK_S = 0.5
#: So long without a worker that may be used, or without the scheduler, ends it.
_PATIENCE_S = 60.0
_GONE_S = 10.0
#: So long may a scheduler say nothing that is still connected.
_SILENT_S = 60.0
#: So long is a worker given no job that could not do its last one.
_REST_S = 60.0
_TRIES = 3
#: So many workers may go with a job under way before it is blamed.
_MOST_GONE = 5
_CHUNK = 4 << 20


def run_on_cluster(
    jobs: Iterable[Job],
    address: str,
    announce: Announce,
    watch: Announce = lambda line: None,
    *,
    again: bool = False,
    patience_s: float = _PATIENCE_S,
) -> Generator[tuple[Job, Outcome], None, None]:
    """What came of each job, as it comes; as :func:`pyvmm.validate.jobs.workers.run_jobs`.

    Raises :class:`LabError` when there is no scheduler at ``address`` (any more), or no worker that
    can be used for ``patience_s``.
    """
    client = connect(address)
    try:
        cluster = _Cluster(client, address, announce, watch, jobs, again, patience_s)
        yield from cluster.outcomes()
    finally:
        with suppress(Exception):  # a scheduler that has gone is no news any more
            client.close(timeout=2)  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Arrival:
    """A kernel on its way to a worker. A scheduler keeps its pieces as long as there is a future;
    there is none any more when it has come."""

    future: Any

    @property
    def has_failed(self) -> bool:
        return self.future is not None and self.future.status not in ("pending", "finished")


@dataclass(slots=True)
class _Worker:
    """A worker that may be used, once its probe has come back; ``busy`` counts its jobs."""

    address: str
    threads: int
    probe: Any
    usable: bool = False
    busy: int = 0
    could_not: bool = False
    rests_until: float = 0.0
    #: Kernels on their way there, by digest.
    coming: dict[str, _Arrival] = field(default_factory=dict)

    @property
    def is_free(self) -> bool:
        return self.usable and self.busy < self.threads


@dataclass(slots=True)
class _Task:
    """A job under way on a worker; ``arrival`` is that of its kernel, for which it has waited, and
    ``refused`` are those that could not do it."""

    job: Job
    kernel: Kernel
    digest: str
    worker: str = ""
    future: Any = None
    arrival: _Arrival | None = None
    since: float = 0.0
    gone: int = 0
    refused: dict[str, PyvmmError] = field(default_factory=dict)


class _Cluster:
    def __init__(
        self,
        client: Client,
        address: str,
        announce: Announce,
        watch: Announce,
        jobs: Iterable[Job],
        again: bool,
        patience_s: float,
    ) -> None:
        self._client = client
        self._address = address
        self._announce = announce
        self._watch = watch
        self._jobs = iter(jobs)
        self._again = again
        self._patience_s = patience_s
        self._workers: dict[str, _Worker] = {}
        self._waiting: list[_Task] = []
        self._running: list[_Task] = []
        self._kernels: dict[object, tuple[Kernel, str]] = {}
        self._all_given = False
        self._done = 0
        self._wondered = False
        self._said: set[str] = set()
        self._answered = self._useful = time.monotonic()
        self._estimate = Estimate(jobs, 1) if isinstance(jobs, Sequence) else None

    def outcomes(self) -> Iterator[tuple[Job, Outcome]]:
        while True:
            self._look()
            yield from self._give()
            if self._all_given and not self._running and not self._waiting:
                return
            time.sleep(_TICK_S)
            for task in list(self._running):
                if (outcome := self._outcome(task)) is not None:
                    self._done += 1
                    if self._estimate:
                        self._estimate.ended(task.job, time.monotonic() - task.since)
                    yield task.job, outcome
            self._tell()

    # ---- workers ----

    def _look(self) -> None:
        """Who is there now; who is new is asked what it is."""
        now = time.monotonic()
        there_are = self._those_there(now)
        if there_are is None:
            return
        for address in self._workers.keys() - there_are.keys():
            self._lose(self._workers.pop(address))
        for address in there_are.keys() - self._workers.keys():
            probe = self._submit(address, there.about)
            threads = int(there_are[address]["nthreads"])
            self._workers[address] = _Worker(address, threads, probe)
        for worker in self._workers.values():
            if worker.probe is not None and worker.probe.done():
                self._judge(worker)
        if any(worker.usable or worker.probe for worker in self._workers.values()):
            self._useful = now
        if now - self._useful > self._patience_s:
            raise LabError(
                f"--dask {self._address}",
                f"there is no worker; what came of {counted(self._done, 'job')} is kept",
                f"start some: dask worker {self._address} --nthreads 1",
            )

    def _those_there(self, now: float) -> dict[str, Any] | None:
        """The workers by address, None while the scheduler does not say. A LabError when it has
        gone, or says nothing any more."""
        if self._client.status == "running":
            try:
                told = self._client.sync(  # type: ignore[no-untyped-call]
                    self._client.scheduler.identity,  # type: ignore[union-attr]
                    n_workers=-1,
                    callback_timeout=_SILENT_S,
                )
                self._answered = now
                return dict(told["workers"])
            except TimeoutError:
                raise self._lost(f"has said nothing for {_SILENT_S:.0f} s") from None
            except OSError:
                pass
        if now - self._answered > _GONE_S:
            raise self._lost("has gone")
        return None

    def _lost(self, how: str) -> LabError:
        return LabError(
            f"--dask {self._address}",
            f"the scheduler {how}; what came of {counted(self._done, 'job')} is kept",
            "start it and its workers again, and type the same command",
        )

    def _judge(self, worker: _Worker) -> None:
        try:
            error = worker.probe.exception(timeout=CONNECT_S)
            told = str(error) or repr(error)  # that it was cancelled has no words
            answer = None if error is not None else worker.probe.result(timeout=CONNECT_S)
        except Exception:  # the answer went with the worker, which may be back
            worker.probe = self._submit(worker.address, there.about)
            return
        problem = told if error is not None else there.problem_with(answer)
        worker.probe = None
        worker.usable = not problem
        if problem:
            self._announce(f"worker {worker.address} is not used: {problem:.200}")

    def _lose(self, worker: _Worker) -> None:
        if worker.usable:
            self._announce(f"worker {worker.address} has gone")
        elif worker.probe is not None and not self._wondered:
            # Dask ends a worker that has no pyvmm, and may start it again and again.
            self._wondered = True
            self._announce(
                f"worker {worker.address} has gone before it said what it is: has it pyvmm?"
            )
        for task in [each for each in self._running if each.worker == worker.address]:
            self._running.remove(task)
            task.gone += 1
            self._waiting.append(task)

    def _submit(self, address: str, function: Any, *arguments: object) -> Any:
        key = f"pyvmm-{function.__name__}-{uuid.uuid4().hex}"
        return self._client.submit(
            function, *arguments, workers=[address], key=key, pure=False, retries=0
        )

    # ---- jobs ----

    def _give(self) -> Iterator[tuple[Job, Outcome]]:
        """A job for every thread that has none; what is known already comes at once.

        Those that nobody who is free may have wait for somebody else.
        """
        held: list[_Task] = []
        try:
            yield from self._give_all(held)
        finally:
            self._waiting[:0] = held

    def _give_all(self, held: list[_Task]) -> Iterator[tuple[Job, Outcome]]:
        while any(each.is_free for each in self._workers.values()):
            task = self._waiting.pop(0) if self._waiting else None
            if task is None:
                if not self._free_for({}):
                    return  # a job that nobody may have is not taken: there may be no end of them
                if (job := next(self._jobs, None)) is None:
                    self._all_given = True
                    return
                known: Outcome | None
                try:
                    task = _Task(job, *self._kernel(job))
                    known = None if self._again else kept_result(job, task.digest)
                except PyvmmError as error:
                    known = error
                if known is not None:
                    yield self._at_once(job, known)
                    continue
                assert task is not None
            if task.gone >= _MOST_GONE:
                cause = f"{task.gone} workers have gone while they ran it"
                yield self._at_once(task.job, LabError(f"job {task.job.name}", cause))
                continue
            if task.refused and not self._others(task.refused):  # who was to try it has gone
                yield self._at_once(task.job, list(task.refused.values())[-1])
            elif able := self._free_for(task.refused):
                self._start(task, min(able, key=lambda each: each.busy / each.threads))
            else:
                held.append(task)

    def _others(self, refused: Mapping[str, object]) -> list[_Worker]:
        """Those that may be used, and are not among these addresses."""
        workers = self._workers.values()
        return [each for each in workers if each.usable and each.address not in refused]

    def _free_for(self, refused: Mapping[str, object]) -> list[_Worker]:
        """Of the others the free ones that can do a job, as far as one knows; any if none can.

        Who could not do one tries again after a rest, with a job that nobody has refused: a few
        workers without room would refuse each of them as often as a job is tried.
        """
        now = time.monotonic()
        others = self._others(refused)
        better = [
            each
            for each in others
            if not each.could_not or (not refused and not each.busy and now > each.rests_until)
        ]
        return [each for each in better or others if each.is_free]

    def _say_once(self, line: str) -> None:
        """What one job lacks all may."""
        if line not in self._said:
            self._said.add(line)
            self._announce(line)

    def _at_once(self, job: Job, outcome: Outcome) -> tuple[Job, Outcome]:
        if self._estimate:
            self._estimate.ended(job, 0.0)
        return job, outcome

    def _kernel(self, job: Job) -> tuple[Kernel, str]:
        """The job's kernel, which is had here and sent there."""
        if job.kernel not in self._kernels:
            kernel = kernel_of_job(job, self._announce)
            self._kernels[job.kernel] = kernel, sha256_of(kernel.image)
        return self._kernels[job.kernel]

    def _start(self, task: _Task, worker: _Worker) -> None:
        worker.busy += 1
        task.worker = worker.address
        task.since = time.monotonic()
        task.future = self._run(task)
        self._running.append(task)

    def _run(self, task: _Task) -> Any:
        return self._submit(task.worker, there.run, to_text(task.job), task.digest, self._again)

    def _outcome(self, task: _Task) -> Outcome | None:
        """What came of a job, None as long as nothing has, or if another worker is to do it."""
        if not task.future.done() or self._client.status != "running":
            return None
        worker = self._workers.get(task.worker)
        error: BaseException | None = None
        done = None
        if task.future.status == "finished":
            try:
                text = task.future.result(timeout=CONNECT_S)
            except Exception:  # its worker has gone with it
                text = ""
            if text == there.NO_KERNEL and worker is not None:
                return self._wait_for_kernel(task, worker)
            if text == there.KERNEL_HAS_COME:
                assert task.arrival is not None
                task.arrival.future = None
                task.future = self._run(task)
                return None
            try:
                done = self._result(task, text) if text else None
            except LabError as refused:
                error = refused
        elif task.future.status == "error":
            error = task.future.exception()
        self._running.remove(task)
        if worker is not None:
            worker.busy -= 1
            worker.could_not = error is not None and not isinstance(error, KernelFailed)
            worker.rests_until = time.monotonic() + _REST_S
        if done is not None:
            keep_result(task.job, done, self._say_once)
            if not task.job.model_examples:
                durations.record(task.job, done.run.results)  # jobs are cut here
            return done
        if error is not None and (refusal := self._refusal(task, error)):
            return refusal
        self._waiting.append(task)
        return None

    @staticmethod
    def _result(task: _Task, text: str) -> JobResult:
        """What a worker answers. Its files may have changed since it was asked what it is."""
        try:
            done = results.from_text(text)
            if is_of(done, task.job, task.digest, own_code()):
                return done
            cause = "it has another pyvmm now" if done.code != own_code() else "it mixed jobs up"
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            cause = "what it answered is no result"
        raise LabError(f"worker {task.worker}", cause, "start it again")

    def _refusal(self, task: _Task, error: BaseException) -> PyvmmError | None:
        """What a worker could not do is an error when no other one is left to try."""
        if not isinstance(error, PyvmmError):
            error = LabError(f"job {task.job.name}", f"{type(error).__name__}: {error}"[:200])
        task.refused[task.worker] = error
        if len(task.refused) >= _TRIES or not self._others(task.refused):
            return error
        self._announce(f"worker {task.worker}: {error}; another one is to do it")
        return None

    def _wait_for_kernel(self, task: _Task, worker: _Worker) -> PyvmmError | None:
        """Send the kernel, unless it is on its way for another job, or has come meanwhile."""
        known = worker.coming.get(task.digest)
        if known is None or known is task.arrival or known.has_failed:
            try:
                known = worker.coming[task.digest] = _Arrival(self._send(task))
            except LabError as error:
                self._running.remove(task)
                worker.busy -= 1
                return error
        task.arrival = known
        task.future = known.future or self._run(task)
        return None

    def _send(self, task: _Task) -> Any:
        """The kernel to the task's worker, in pieces."""
        name = f"kernel {task.kernel.name}"
        try:
            image = task.kernel.image.read_bytes()
        except OSError as error:
            raise LabError(name, error.strerror or str(error)) from None
        if hashlib.sha256(image).hexdigest() != task.digest:
            raise LabError(name, "it is another one than when this began", "run the rest again")
        token = uuid.uuid4().hex
        pieces = [
            self._submit(task.worker, there.take, token, at, image[at : at + _CHUNK])
            for at in range(0, len(image), _CHUNK)
        ]
        facts = there.facts_of(task.kernel)
        return self._submit(task.worker, there.put_together, pieces, token, facts, task.digest)

    def _tell(self) -> None:
        usable = [each for each in self._workers.values() if each.usable]
        where = f"{len(self._running)} run on {counted(len(usable), 'worker')}"
        if self._estimate is None:
            self._watch(where)
            return
        self._estimate.workers = sum(each.threads for each in usable)
        now = time.monotonic()
        running = {task.job.name: now - task.since for task in self._running}
        self._watch(f"{self._estimate.line(running)}: {where}")
