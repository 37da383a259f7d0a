"""``pyvmm``: finds the command and turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import sys

from pyvmm.errors import PyvmmError, UnsupportedError

PASSED, FAILED, CANNOT_START, DEADLINE, SKIPPED = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143

# Each is a module of pyvmm.cli that has add_parser(); imported only when it is asked for.
COMMANDS = ("run", "doctor", "bench", "validate", "lab")


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="pyvmm",
        description="Run test guests on /dev/kvm and convert their private and shared pages.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = words[0] if words and words[0] in COMMANDS else None
    for name in COMMANDS:
        if wanted in (None, name):
            _add_command(commands, name)
    options = parser.parse_args(words)
    try:
        status: int = options.func(options)
        sys.stdout.flush()
        return status
    except UnsupportedError as error:
        return _complain(error, SKIPPED)
    except PyvmmError as error:
        return _complain(error, CANNOT_START)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain about it at exit.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        return FAILED


def _add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    try:
        module = importlib.import_module(f"pyvmm.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"pyvmm.cli.{name}":
            return
        raise
    module.add_parser(commands)


def _complain(error: Exception, status: int) -> int:
    print(f"pyvmm: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
