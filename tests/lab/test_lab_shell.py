"""`pyvmm lab shell`, on a terminal."""

from __future__ import annotations

import os
import select
import subprocess
import termios
import time

import pytest
from lab_command import LAB

pytestmark = pytest.mark.boots


def test_a_shell_has_the_callers_terminal() -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (33, 111))
    settings = termios.tcgetattr(theirs)
    command = [*LAB, "shell", "--", "/bin/sh", "-i"]
    environment = dict(os.environ, PS1="# ", ENV="")
    with subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        try:
            _talk(ours, process)
        finally:
            process.terminate()
    assert termios.tcgetattr(theirs) == settings
    os.close(ours)
    os.close(theirs)


def _talk(ours: int, process: subprocess.Popen[bytes]) -> None:
    said = _read_until(ours, b"# ")
    assert b"thrown away" in said
    os.write(ours, b"stty size; tty\r")
    said = _read_until(ours, b"/dev/pts/0\r\n")
    assert b"33 111" in said
    termios.tcsetwinsize(ours, (50, 132))
    process.send_signal(28)  # SIGWINCH, which a terminal in the foreground would send
    # It says so when it is in the foreground: a Ctrl-C before that is the shell's.
    os.write(ours, b"sh -c 'echo be''gun; exec sleep 1000'\r")
    _read_until(ours, b"begun\r\n")
    os.write(ours, b"\x03")  # Ctrl-C is for the command inside
    _read_until(ours, b"# ")
    os.write(ours, b"stty size; exit 5\r")
    assert b"50 132" in _read_until(ours, b"exit 5\r\n", b"50 132\r\n")
    assert process.wait(60) == 5


def _read_until(fd: int, *ends: bytes) -> bytes:
    said = b""
    deadline = time.monotonic() + 100
    while not all(end in said for end in ends):
        assert select.select([fd], [], [], deadline - time.monotonic())[0], said
        said += os.read(fd, 4096)
    return said
