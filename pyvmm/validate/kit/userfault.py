"""Host memory whose first touch waits until a case says so: userfaultfd(2).

KVM's fault on such a page is held in its middle, and what happens meanwhile is no matter of luck.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ioctl_opt import IOC, IOC_READ, IOC_WRITE

from pyvmm.closing import Closing
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed, Missing

_SYSCALL = 323  # <asm/unistd_64.h>
_MISSING_PAGES = 1
_PAGE_FAULT = 0x12
_libc = ctypes.CDLL(None, use_errno=True)


def _number(number: int, size: int) -> int:
    return int(IOC(IOC_READ | IOC_WRITE, 0xAA, number, size))


_API, _REGISTER, _COPY = _number(0x3F, 24), _number(0x00, 32), _number(0x03, 40)
_WAKE = int(IOC(IOC_READ, 0xAA, 0x02, 16))


class HeldPage(Closing):
    """The page at ``address``, which must not be there yet. A context manager.

    Raises :class:`Missing` where the kernel, or this user, has no userfaultfd for faults that
    the kernel takes.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self._fd = _libc.syscall(_SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            cause = os.strerror(ctypes.get_errno())
            raise Missing(f"userfaultfd ({cause}): CONFIG_USERFAULTFD, and root")
        try:
            self._call(_API, struct.pack("=QQQ", 0xAA, 0, 0))
            self._call(_REGISTER, struct.pack("=QQQQ", address, PAGE, _MISSING_PAGES, 0))
        except BaseException:
            self.close()
            raise

    def _call(self, request: int, argument: bytes) -> None:
        fcntl.ioctl(self._fd, request, bytearray(argument))

    def wait(self, timeout_s: float = 10.0) -> None:
        """Until somebody touches the page, and waits for it."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            select.select([self._fd], [], [], left)
            # A signal may have taken away who waited; the guest comes again.
            with suppress(BlockingIOError):
                event = os.read(self._fd, 32)
                if event[0] != _PAGE_FAULT:
                    raise CheckFailed(f"userfaultfd reports event {event[0]:#x}")
                return
        raise CheckFailed("nobody touches a page that the guest reads")

    def fill(self, content: bytes, *, wake: bool = True) -> None:
        """Put the page there, so that whoever waits goes on; without ``wake`` they wait still."""
        source = ctypes.create_string_buffer(content.ljust(PAGE, b"\0"), PAGE)
        argument = struct.pack("=QQQQq", self.address, ctypes.addressof(source), PAGE, not wake, 0)
        while True:
            try:
                return self._call(_COPY, argument)
            except OSError as error:
                # Tried again while the address space changes under it.
                if error.errno != errno.EAGAIN:
                    raise

    def waking(self) -> Callable[[], object]:
        """A call, as quick as any, that lets whoever waits for the page go on, which is there."""
        return partial(fcntl.ioctl, self._fd, _WAKE, struct.pack("=QQ", self.address, PAGE))

    def close(self) -> None:
        """Whoever still waits gets an ordinary page."""
        os.close(self._fd)
