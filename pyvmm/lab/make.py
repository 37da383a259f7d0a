"""Runs make on a kernel tree: what it prints is kept, what goes wrong is found in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pyvmm.lab.errors import NotBuilt
from pyvmm.lab.processes import die_with_parent

#: What says best why a build failed, the best first.
_REASONS = (
    re.compile(r"^.+?: (?:fatal )?error: .+|^.*undefined reference to.*", re.M),
    re.compile(r"^(?:ld|.*/ld): (?!warning: ).+|^.*: No space left on device.*", re.M),
    re.compile(r"^(?!make|  [A-Z]+ ).*\berror\b.*", re.M | re.I),
    re.compile(r"^make.*\*\*\* .+", re.M),
)
_MADE = re.compile(rb"  (?:CC|AS|LD|AR|GEN|HOSTCC|HOSTLD) +(\S+)")
#: How many files a kernel from nothing is, roughly: for progress displays.
FILES_OF_A_BUILD = 1640

#: Called with the number of files made so far and the last one's name.
Progress = Callable[[int, str], None]


class Make:
    """make in the folder `files` with its output in `objects`, all it says going to `log`.

    `lock` is the tree's, as a file descriptor: make holds it too, so that the tree stays locked
    for as long as make lives.
    """

    def __init__(self, files: Path, objects: Path, log: Path, lock: int) -> None:
        self._command = ["make", f"-j{len(os.sched_getaffinity(0))}", f"O={objects}"]
        self._files = files
        self._log = log
        self._lock = lock

    def run(self, arguments: Sequence[str], progress: Progress | None = None) -> None:
        """Make these goals with these settings; NotBuilt with the reason when that fails."""
        made = 0
        with (
            open(self._log, "ab", buffering=0) as log,  # for who reads it meanwhile
            subprocess.Popen(
                [*self._command, *arguments],
                cwd=self._files,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
                pass_fds=(self._lock,),
            ) as process,
        ):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    if match := _MADE.match(line):
                        made += 1
                        if progress is not None:
                            progress(made, match[1].decode(errors="replace"))
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)  # make removes what is half done
                raise
        if process.returncode:
            raise NotBuilt("the kernel does not build", self._reason(), f"log: {self._log}")

    def _reason(self) -> str:
        text = self._log.read_text(errors="replace")
        found = (match[0] for kind in _REASONS if (match := kind.search(text)))
        return next(found, "no reason given")


def _environment() -> dict[str, str]:
    """The environment without what would steer make, and with what makes builds repeatable."""
    steering = ("MFLAGS", "KCFLAGS", "ARCH", "CROSS_COMPILE", "LLVM", "O")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "KBUILD", "KCONFIG")) and name not in steering
    }
    fixed = {"KBUILD_BUILD_USER": "pyvmm", "KBUILD_BUILD_HOST": "lab", "LC_ALL": "C"}
    return kept | fixed | {"KBUILD_BUILD_TIMESTAMP": "1970-01-01"}
