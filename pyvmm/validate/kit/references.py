"""References to a page of this process, as a device, a pipe or io_uring holds them: GUP.

Each kind is a context manager; what it holds it lets go when it is left. ``hold()`` tells whether
there is such a page: False where the kernel says EFAULT.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable

from ioctl_opt import IOC, IOC_NONE, IOC_WRITE

from pyvmm.closing import Closing
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed, Missing, errno_name

_IO_URING_SETUP, _IO_URING_REGISTER = 425, 427  # <asm/unistd_64.h>
_REGISTER_BUFFERS, _UNREGISTER_BUFFERS = 0, 1
_GUP_TEST = "/sys/kernel/debug/gup_test"
_PIN_START = int(IOC(IOC_WRITE, ord("g"), 7, 24))  # struct pin_longterm_test
_PIN_STOP = int(IOC(IOC_NONE, ord("g"), 8, 0))
_WRITE = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _reached(done: int, call: str) -> bool:
    if done >= 0:
        return True
    if (error := ctypes.get_errno()) != errno.EFAULT:
        raise CheckFailed(f"{call} of a page of a guest_memfd: {errno_name(error)}")
    return False


def of_process(address: int, *, write: bool) -> bool:
    """Whether process_vm_readv(2), or process_vm_writev(2), of this process reaches 8 bytes."""
    data = ctypes.create_string_buffer(b"\x5c" * 8, 8)
    own, other = _Range(ctypes.addressof(data), 8), _Range(address, 8)
    name = "process_vm_writev" if write else "process_vm_readv"
    done = getattr(_libc, name)(
        ctypes.c_int(os.getpid()), ctypes.byref(own), 1, ctypes.byref(other), 1, 0
    )
    if done < 0 and ctypes.get_errno() == errno.ENOSYS:
        raise Missing(f"{name}: CONFIG_CROSS_MEMORY_ATTACH")
    return _reached(done, name)


class OwnMemory(Closing):
    """What /proc/self/mem reaches: this process's pages, as a debugger would get at them."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)

    def reaches(self, address: int, data: bytes = b"") -> bool:
        """Whether 8 bytes can be read, or ``data`` can be written."""
        try:
            if data:
                return os.pwrite(self._fd, data, address) == len(data)
            return len(os.pread(self._fd, 8, address)) == 8
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise

    def close(self) -> None:
        os.close(self._fd)


class Pipe(Closing):
    """A pipe that has pages of this process in it: vmsplice(2)."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC)

    def hold(self, address: int, size: int = PAGE) -> bool:
        pages = _Range(address, size)
        done = _libc.vmsplice(ctypes.c_int(self._in), ctypes.byref(pages), 1, 0)
        return _reached(done, "vmsplice")

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


class FixedBuffer(Closing):
    """A buffer that io_uring keeps pinned: IORING_REGISTER_BUFFERS."""

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(120)
        self._fd = _libc.syscall(_IO_URING_SETUP, 2, parameters)
        if self._fd < 0:
            cause = errno_name(ctypes.get_errno())
            raise Missing(f"io_uring ({cause}): CONFIG_IO_URING")

    def hold(self, address: int, size: int = PAGE) -> bool:
        pages = _Range(address, size)
        done = _libc.syscall(
            _IO_URING_REGISTER, self._fd, _REGISTER_BUFFERS, ctypes.byref(pages), 1
        )
        return _reached(done, "IORING_REGISTER_BUFFERS")

    def close(self) -> None:
        # Closing the ring lets go later, in a worker of the kernel's.
        _libc.syscall(_IO_URING_REGISTER, self._fd, _UNREGISTER_BUFFERS, None, 0)
        os.close(self._fd)


class LongPin(Closing):
    """A page that the kernel's own test of pins holds, as a device would: FOLL_LONGTERM."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(_GUP_TEST, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            raise Missing(f"{_GUP_TEST}: CONFIG_GUP_TEST, debugfs, and root") from None

    def hold(self, address: int, size: int = PAGE) -> bool:
        try:
            fcntl.ioctl(self._fd, _PIN_START, struct.pack("=QQII", address, size, _WRITE, 0))
        except OSError as error:
            if error.errno == errno.EFAULT:
                return False
            raise
        return True

    def close(self) -> None:
        fcntl.ioctl(self._fd, _PIN_STOP)
        os.close(self._fd)


KINDS: dict[str, Callable[[], Pipe | FixedBuffer | LongPin]] = {
    "vmsplice": Pipe,
    "io_uring": FixedBuffer,
    "gup_test": LongPin,
}
