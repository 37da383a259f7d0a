"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: int) -> Callable[[], None]:
    """A function for the child to call before it runs its program (Popen's preexec_fn): it
    then gets signal `number` when the thread that started it ends, however that comes about."""
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it ended before this was arranged
            os._exit(1)

    return arrange
