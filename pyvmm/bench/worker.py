"""A process that takes turns when it is told to.

Where a process' stack, heap and code come to lie moves what it measures by a few percent,
now and then, for as long as it lives. So a case's turns are taken by several processes.

Requests and replies are pickled, on stdin and stdout. End of file ends the process; so it
never outlives whoever started it by more than a turn.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from types import TracebackType
from typing import NamedTuple, Self

from pyvmm.bench.case import Bench
from pyvmm.bench.turn import Turn, take
from pyvmm.errors import PyvmmError, UnsupportedError

_PATIENCE_S = 10.0


class Request(NamedTuple):
    """The arguments of :func:`take`; a bench is known by its first case's name."""

    name: str
    operations: int
    seconds: float
    cpu: int


class Failure(NamedTuple):
    """An error that goes to the other process: these three words of it, and whether it is
    an :class:`UnsupportedError`."""

    unsupported: bool
    thing: str
    cause: str
    remedy: str


class Worker:
    """The other end: a process to take turns, from ``with`` until its end."""

    def __init__(self) -> None:
        # The same modules as here, wherever they were found.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from pyvmm.bench.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,  # a terminal's Ctrl-C is for the one that waits for it
        )

    def take(self, bench: Bench, operations: int, seconds: float, cpu: int) -> Turn:
        """As :func:`pyvmm.bench.turn.take`, over there."""
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump(Request(bench.cases[0].name, operations, seconds, cpu), self._process.stdin)
            self._process.stdin.flush()
            reply: Turn | Failure = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            status = self._process.wait()
            raise PyvmmError(
                bench.cases[0].name, f"the process that measured it ended with status {status}"
            ) from None
        if isinstance(reply, Turn):
            return reply
        kind = UnsupportedError if reply.unsupported else PyvmmError
        raise kind(reply.thing, reply.cause, reply.remedy)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()  # it may be in the middle of a turn
        self._process.communicate(timeout=_PATIENCE_S)


def main() -> None:
    """Take turns until stdin ends."""
    from pyvmm.bench.subjects import benches

    by_name = {bench.cases[0].name: bench for bench in benches("all")}
    while True:
        try:
            request: Request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        reply: Turn | Failure
        try:
            reply = take(by_name[request.name], *request[1:])
        except PyvmmError as error:
            is_unsupported = isinstance(error, UnsupportedError)
            reply = Failure(is_unsupported, error.thing, error.cause, error.remedy)
        try:
            pickle.dump(reply, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os._exit(1)  # nobody waits for it
