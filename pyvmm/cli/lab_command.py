"""What every command of `pyvmm lab` has around it: errors as one line, an orderly end, progress.

All of it goes to stderr, so that stdout is the command's alone.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyvmm.cli.interruption import Interrupted, Interruption
from pyvmm.printable import printable

#: A terminal that is closed must leave nothing behind either.
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def guarded(command: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """`command` with its errors as one line, and with a signal as an orderly end."""

    def run(arguments: Namespace) -> int:
        from pyvmm.lab.errors import LabError

        with Interruption(_ENDINGS) as interruption:
            try:
                return command(arguments)
            except LabError as error:
                say(str(error))
                return error.status
            except BrokenPipeError:
                raise  # whoever read our output has gone
            except OSError as error:
                say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
                return LabError.status
            except Interrupted:
                return 128 + (interruption.number or 0)

    return run


def say(line: str) -> None:
    """One line, though what a kernel, a compiler or a cluster's worker said may be anything."""
    print(f"pyvmm: lab: {printable(line)}", file=sys.stderr, flush=True)


@contextmanager
def printing() -> Iterator[None]:
    """What is written within goes to stdout, and an error of it is said to be stdout's."""
    from pyvmm.cli.main import forget_stdout
    from pyvmm.lab.errors import LabUsageError

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever read our output has gone
    except OSError as error:
        forget_stdout()
        raise LabUsageError("stdout", error.strerror or str(error)) from None


Show = Callable[[str], None]


@contextmanager
def live_line() -> Iterator[Show | None]:
    """A line on the terminal that is written over again; None when there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    shown = False

    def show(line: str) -> None:
        nonlocal shown
        shown = True
        columns = shutil.get_terminal_size().columns
        print(f"\r{line[: columns - 1]}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def build_progress() -> Iterator[Callable[[int, str], None] | None]:
    """A line on the terminal that tells how far a build is."""
    from pyvmm.lab.make import FILES_OF_A_BUILD

    started = time.monotonic()
    with live_line() as show:
        if show is None:
            yield None
            return

        def progress(made: int, name: str) -> None:
            seconds = time.monotonic() - started
            show(f"{made}/{max(made, FILES_OF_A_BUILD)} files, {seconds:.0f} s: {name}")

        yield progress
