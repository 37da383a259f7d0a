"""Signals around a fork: none comes to a copy of this process where it would go on as this one.

A handler that raises, as that of Ctrl-C does, could do so in the copy before multiprocessing is
ready to catch it, or behind what catches it. The copy would leave its caller's functions then, and
do a second time what this process does.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_signals() -> Iterator[None]:
    """To fork in. Signals wait until it is left; in the copy until they are :func:`heard`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def heard() -> Iterator[None]:
    """What the copy was made for: signals come in it, and neither before nor after."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
