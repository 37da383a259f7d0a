"""A memory control group for the length of a case (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyvmm.closing import Closing
from pyvmm.validate.kit.check import Missing

_ROOT = Path("/sys/fs/cgroup")
_COUNTER = itertools.count()
# Of a group that nobody is in any more the kernel lets go a little later.
_PATIENCE_S = 5.0


class MemoryGroup(Closing):
    """A new group, right below the root of all. A context manager.

    Raises :class:`Missing` where there is no cgroup v2 with its memory controller, or no right to
    make a group.
    """

    def __init__(self) -> None:
        self._before = _own_group()
        self._folder = _ROOT / f"pyvmm-{os.getpid()}-{next(_COUNTER)}"
        try:
            self._folder.mkdir()
        except OSError as error:
            raise Missing(f"{self._folder} cannot be made ({error.strerror})") from None
        if not (self._folder / "memory.current").exists():
            self._folder.rmdir()
            raise Missing(f"the memory controller: echo +memory >{_ROOT}/cgroup.subtree_control")

    def join(self) -> None:
        """Move this process, all of its threads, into the group."""
        (self._folder / "cgroup.procs").write_text("0")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """In the group for the length of a block, and then where it was before."""
        self.join()
        try:
            yield
        finally:
            (self._before / "cgroup.procs").write_text("0")

    @property
    def current(self) -> int:
        """Bytes that are charged now, give or take 64 pages on each CPU."""
        return int((self._folder / "memory.current").read_text())

    @property
    def files(self) -> int:
        """Bytes of it that are pages of files, as private pages are, and a process's memory not."""
        return self._value("memory.stat", "file")

    def limit(self, size: int) -> None:
        """Bytes that may be charged."""
        (self._folder / "memory.max").write_text(str(size))

    def reclaim(self, size: int) -> None:
        """Have the kernel take so many bytes away from the group, or as many as it can."""
        try:
            (self._folder / "memory.reclaim").write_text(str(size))
        except FileNotFoundError:
            raise Missing("memory.reclaim of a control group: Linux 5.19") from None
        except OSError as error:
            if error.errno != errno.EAGAIN:  # less than that can be had
                raise

    @property
    def killed(self) -> int:
        """Processes that the kernel has killed for the limit's sake."""
        return self._value("memory.events", "oom_kill")

    def _value(self, file: str, name: str) -> int:
        lines = (self._folder / file).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)

    def close(self) -> None:
        until = time.monotonic() + _PATIENCE_S
        while self._folder.exists() and time.monotonic() < until:
            with suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.01)


def _own_group() -> Path:
    """Where this process is now."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise Missing("control groups (CONFIG_CGROUPS)") from None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or not (_ROOT / "cgroup.procs").exists():
        raise Missing(f"control groups, version 2: mount -t cgroup2 none {_ROOT}")
    return _ROOT / path.strip("/")
