"""eventfd(2): a counter that KVM signals (ioeventfd) or that signals KVM (irqfd)."""

from __future__ import annotations

import os

from pyvmm.errors import KvmError
from pyvmm.kvm.arguments import MOST_U32, number
from pyvmm.kvm.fd import Fd

_MOST = (1 << 64) - 2  # all ones is no count


class EventFd(Fd):
    """A counter behind a descriptor, non-blocking; give it to select() to wait for it."""

    def __init__(self, value: int = 0) -> None:
        number("value", value, 0, MOST_U32)
        try:
            fd = os.eventfd(value, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise KvmError("eventfd", error.errno or 0) from None
        super().__init__(fd, "eventfd")

    def signal(self, count: int = 1) -> None:
        """Add to the counter; behind an irqfd that raises the interrupt.

        Raises :class:`KvmError` with EAGAIN when the counter has no room for it.
        """
        number("count", count, 0, _MOST)
        try:
            os.eventfd_write(self.fileno(), count)
        except OSError as error:
            raise KvmError("eventfd_write", error.errno or 0, f"count {count:#x}") from None

    def take(self) -> int:
        """The counter, which is 0 afterwards."""
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0
