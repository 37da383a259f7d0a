"""Running the programs that build guests, within limits: what they are given may be hostile."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from pyvmm.errors import GuestError, KvmError
from pyvmm.kvm.memfd import Memfd

# A compiler in an emulated lab on a busy host has needed one.
_TIMEOUT_S = 120
# So much of what a program says is looked at.
_MOST_SAID = 1 << 20
# A line of a source can ask for gigabytes, of memory and of the file that is written. By the
# shell's letters: what is limited, the most that there may be, and the shell's unit of it.
# A shell sets them because Python's own code between fork and exec is not safe beside threads.
_MOST = {"v": (resource.RLIMIT_AS, 1 << 30, 1024), "f": (resource.RLIMIT_FSIZE, 32 << 20, 512)}
_PACKAGES = {"as": "binutils", "ld": "binutils"}
# Whose handlers end what is under way by an exception, pyvmm's own or a caller's.
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def path_of(file: Memfd) -> str:
    """A name for the file in this process, and in one that is given it."""
    return f"/proc/self/fd/{file.fileno()}"


def named(said: str, argument: str, name: str) -> str:
    """What a program said, with the user's ``name`` for the file that it was given."""
    if argument != "-":
        return said.replace(argument, name)
    return re.sub(r"[^:\n]*(?:\{standard input\}|<stdin>|/dev/stdin)", lambda _: name, said)


def call(path: Path, command: list[str], text: str, *files: Memfd) -> str:
    """What the command, run for the guest at ``path``, said when it failed; "" if it did not.

    ``text`` is its standard input, and ``files`` are open in it. Its own children end with it.
    Raises :class:`GuestError` if it is not installed, or goes beyond a limit.
    """
    tool = command[0]
    if shutil.which(tool) is None:
        package = _PACKAGES.get(tool, tool)
        remedy = f"install {package} (apt install {package})"
        raise GuestError(str(path), f"{tool} is not installed", remedy)
    lowered = [letter for letter in _MOST if _lowers(letter)]
    # What is preloaded here is for this process, and a sanitizer needs more than these limits.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["LC_ALL"] = "C"  # its messages are read here
    limits = [f"ulimit -S -{each} {_MOST[each][1] // _MOST[each][2]}" for each in lowered]
    shell = ["/bin/sh", "-c", "; ".join([*limits, 'exec "$@"']), "sh", *command]
    # Memory files, which the limit is for, too.
    with Memfd("said", 0) as said, Memfd("given", 0) as given:
        os.pwrite(given.fileno(), text.encode(errors="replace"), 0)
        try:
            status = _run(shell, given, said, files, environment)
        except OSError as error:
            raise KvmError(tool, error.errno or 0, f"for {path}") from None
        except subprocess.TimeoutExpired:
            raise GuestError(str(path), f"{tool} took more than {_TIMEOUT_S} s") from None
        message = os.pread(said.fileno(), _MOST_SAID, 0).decode(errors="replace")
    if status == -signal.SIGXFSZ and "f" in lowered:
        raise GuestError(str(path), f"what {tool} makes of it is too large for a guest")
    if status < 0:
        raise GuestError(str(path), f"{tool} was ended by signal {-status}", _limits(-status))
    return (message or "no message") if status else ""


def _run(
    shell: list[str],
    given: Memfd,
    said: Memfd,
    files: tuple[Memfd, ...],
    environment: dict[str, str],
) -> int:
    # An exception between fork and the "with" would leave the program running. It runs with
    # these signals blocked, too, and is ended by SIGKILL.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        process = subprocess.Popen(
            shell,
            stdin=given.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=said.fileno(),
            pass_fds=[file.fileno() for file in files],
            env=environment,
            process_group=0,
        )
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    with process:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return process.wait(_TIMEOUT_S)
        except BaseException:
            # Of gcc, its compiler and its assembler.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _lowers(letter: str) -> bool:
    """Whether this process leaves the program more than it gets."""
    limit, most, _ = _MOST[letter]
    soft, _ = resource.getrlimit(limit)
    return soft == resource.RLIM_INFINITY or soft > most


def _limits(number: int) -> str:
    """Which limit may be behind a signal."""
    limits: dict[int, str] = {
        signal.SIGXFSZ: "the size of files (ulimit -f)",
        signal.SIGXCPU: "CPU time",
    }
    return f"raise the limit of {limits[number]}" if number in limits else ""
