"""A piece of the host's address space."""

from __future__ import annotations

import errno
import mmap
import os
from functools import partial
from typing import Any

from pyvmm.closing import Closing
from pyvmm.errors import ClosedError, KvmError
from pyvmm.kvm.arguments import MOST_DESCRIPTOR, MOST_I64, number
from pyvmm.native import ffi, lib

PAGE_SIZE: int = mmap.PAGESIZE
PROT_NONE = 0  # <sys/mman.h>; the mmap module does not have it
# A touch of memory with huge pages clears 2 MiB, which small guests would pay for in vain.
_LARGE = 64 << 20
PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def map_memory(
    size: int, protection: int, flags: int, fd: int, offset: int, type: str, about: str = ""
) -> Any:
    """mmap(2). The mapping lives for as long as the returned pointer, a ``type``, does."""
    try:
        address = lib.host_map(size, protection, flags, fd, offset)
        error = ffi.errno
    except (OverflowError, TypeError):
        address, error = None, errno.EINVAL
    if not address:
        # Only now: most maps are good, and a machine makes several.
        number("size", size, 0, MOST_I64)
        number("protection", protection, 0, MOST_DESCRIPTOR)
        number("descriptor", fd, -1, MOST_DESCRIPTOR)
        number("offset", offset, 0, MOST_I64)
        raise KvmError("mmap", error, about or f"{size} bytes")
    # No function in Python: what a signal handler raises in one would keep the memory mapped.
    return ffi.gc(ffi.cast(type, address), partial(lib.host_unmap, size))


def _map_ram(size: int, gpa: int) -> Any:
    address = lib.host_map_ram(size, gpa)
    if not address:
        raise KvmError("mmap", ffi.errno, f"{size} bytes")
    return ffi.gc(ffi.cast("void *", address), partial(lib.host_unmap, size))


class Mapping(Closing):
    """``size`` bytes of memory, of a file or anonymous. A context manager.

    The memory is unmapped when the mapping is closed and no view of it is held any
    more: a view that outlives it stays valid.

    ``for_gpa`` is where a guest sees anonymous memory: if that is large, the kernel is asked
    for pages of 2 MiB on both sides.
    """

    def __init__(
        self,
        size: int,
        *,
        fd: int = -1,
        offset: int = 0,
        protection: int = PROT_READ_WRITE,
        for_gpa: int | None = None,
    ) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd == -1 else mmap.MAP_SHARED
        self.size = size
        if for_gpa is not None and size >= _LARGE:
            self._pointer = _map_ram(size, for_gpa)
            return
        self._pointer = map_memory(size, protection, flags, fd, offset, "void *")

    @property
    def pointer(self) -> Any:
        """The ``void *``. Raises :class:`ClosedError` after :meth:`close`."""
        if self._pointer is None:
            raise ClosedError("mapping")
        return self._pointer

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self.pointer))

    @property
    def view(self) -> memoryview:
        """The bytes, writable. Touching a page without access rights kills the process."""
        return memoryview(ffi.buffer(self.pointer, self.size)).cast("B")

    def close(self) -> None:
        self._pointer = None


def is_present(mapping: Mapping, offset: int) -> bool:
    """Whether a byte of a mapping can be read, which a file that is too short does not allow.

    The kernel reads it: a touch of ours would end the process.
    """
    reading, writing = os.pipe()
    try:
        os.write(writing, mapping.view[offset : offset + 1])
    except OSError:
        return False
    finally:
        os.close(reading)
        os.close(writing)
    return True
