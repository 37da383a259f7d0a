"""Runs in labs at the same time, each in a process of its own.

A lab's machine has one thread of the host, and belongs to the thread that made it. An error in
one run ends the others; a signal ends all of them in good order, as it ends this process.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

from pyvmm.errors import ConfigurationError, PyvmmError
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.processes import die_with_parent
from pyvmm.validate.kernels.lab_run import LabRun

Tell = Callable[[str], None]
#: What is run: it is given a function that takes a line on how far it is.
Run = Callable[[Tell], LabRun]

_processes = multiprocessing.get_context("fork")
_PATIENCE_S = 30.0


def run_side_by_side(runs: Sequence[Run], watch: Callable[[int, str], None]) -> list[LabRun]:
    """The results in the order of ``runs``; ``watch`` is given a run's number and its line.

    Raises the first :class:`PyvmmError` of a run.
    """
    sys.stdout.flush()  # lest a child writes it too
    numbers: dict[Connection, int] = {}
    children = []
    done: dict[int, LabRun] = {}
    try:
        for number, run in enumerate(runs):
            ours, theirs = _processes.Pipe(duplex=False)
            child = _processes.Process(
                target=_work, args=(run, theirs, die_with_parent(signal.SIGTERM)), daemon=True
            )
            child.start()
            theirs.close()
            children.append(child)
            numbers[ours] = number
        while len(done) < len(runs):
            for ready in wait([each for each, number in numbers.items() if number not in done]):
                assert isinstance(ready, Connection)
                message = _receive(ready)
                if isinstance(message, LabRun):
                    done[numbers[ready]] = message
                elif isinstance(message, PyvmmError):
                    raise message
                else:
                    watch(numbers[ready], message)
        return [done[number] for number in range(len(runs))]
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.join(_PATIENCE_S)
            child.kill()


def _receive(connection: Connection) -> LabRun | PyvmmError | str:
    try:
        message: LabRun | PyvmmError | str = connection.recv()
    except EOFError:
        return LabError("lab", "the process of a run died", "try again")
    return message


def _work(run: Run, connection: Connection, die_with_parent_: Callable[[], None]) -> None:
    die_with_parent_()
    try:
        connection.send(run(connection.send))
    except PyvmmError as error:
        connection.send(plain(error))
    except BaseException as error:
        # Interrupted, or the other end is gone: it knows.
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise


def plain(error: PyvmmError) -> PyvmmError:
    """The error as one of the classes that a pipe can carry."""
    classes = (LabUsageError, LabError, ConfigurationError)
    kind = next((each for each in classes if isinstance(error, each)), PyvmmError)
    return kind(error.thing, error.cause, error.remedy)
