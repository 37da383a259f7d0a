"""``pyvmm``: finds the command and turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from pyvmm import __version__
from pyvmm.cli.interruption import ENDING_SIGNALS
from pyvmm.cli.standard_streams import open_standard_streams
from pyvmm.errors import PyvmmError, UnsupportedError
from pyvmm.printable import printable

PASSED, FAILED, CANNOT_START, DEADLINE, SKIPPED = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143
OUT_OF_MEMORY = "memory: there is not enough, or a limit on it (ulimit -v) is reached"

# Each is a module of pyvmm.cli that has add_parser(); imported only when it is asked for.
COMMANDS = ("run", "doctor", "bench", "validate", "lab")

# What is typed in error may be a whole file; its beginning says enough.
_LONG_WORD = re.compile(r"(\S{60})\S{140,}")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the words in one line, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        shown = _LONG_WORD.sub(r"\1...", message)
        complain(f"{shown}; see {self.prog} --help")
        raise SystemExit(CANNOT_START)


def main(arguments: list[str] | None = None) -> int:
    """The exit status of ``pyvmm`` with these words; without them, of this process."""
    if arguments is not None:
        return _main(arguments)
    open_standard_streams()
    # A signal that comes while the command is still being imported waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    status = _main(sys.argv[1:])
    # All is done and said; a late Ctrl-C must not make a traceback of Python's own end.
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return status


def _main(words: list[str]) -> int:
    try:
        options = _parse(words)
        if not getattr(options, "unblocks_signals", False):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        status: int = options.func(options)
        sys.stdout.flush()
        return status
    except UnsupportedError as error:
        complain(str(error))
        return SKIPPED
    except PyvmmError as error:
        complain(str(error))
        return CANNOT_START
    except BrokenPipeError:
        forget_stdout()
        return FAILED
    except OSError as error:
        forget_stdout()
        complain(f"{error.filename or 'stdout'}: {error.strerror or error}")
        return CANNOT_START
    except MemoryError:
        complain(OUT_OF_MEMORY)
        return CANNOT_START
    except ImportError as error:
        complain(str(error))
        return CANNOT_START
    except KeyboardInterrupt:
        return INTERRUPTED


def _parse(words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="pyvmm",
        description="Run test guests on /dev/kvm and convert their private and shared pages.",
    )
    parser.add_argument("--version", action="version", version=f"pyvmm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = words[0] if words and words[0] in COMMANDS else None
    for name in COMMANDS:
        if wanted in (None, name):
            importlib.import_module(f"pyvmm.cli.{name}").add_parser(commands)
    return parser.parse_args(words)


def complain(message: str) -> None:
    """One line on stderr, whatever a file name or an assembler's message holds."""
    with suppress(OSError):  # nobody listens; the exit status still says it
        print(f"pyvmm: {printable(message)}", file=sys.stderr, flush=True)


def forget_stdout() -> None:
    """Whoever read our output has gone: Python must not complain about it at its end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
