"""eventfd(2): a counter that KVM signals (ioeventfd) or that signals KVM (irqfd)."""

from __future__ import annotations

import os

from pyvmm.errors import KvmError
from pyvmm.fd import Fd


class EventFd(Fd):
    """A counter behind a descriptor, non-blocking; give it to select() to wait for it."""

    def __init__(self, value: int = 0) -> None:
        try:
            fd = os.eventfd(value, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise KvmError("eventfd", error.errno or 0) from None
        super().__init__(fd, "eventfd")

    def signal(self, count: int = 1) -> None:
        """Add to the counter; behind an irqfd that raises the interrupt."""
        os.eventfd_write(self.fileno(), count)

    def take(self) -> int:
        """The counter, which is 0 afterwards."""
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0
