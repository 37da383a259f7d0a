"""A piece of the host's address space."""

from __future__ import annotations

import mmap
from functools import partial
from types import TracebackType
from typing import Any, Self

from pyvmm.errors import ClosedError, KvmError
from pyvmm.native import ffi, lib

PAGE_SIZE: int = mmap.PAGESIZE
PROT_NONE = 0  # <sys/mman.h>; the mmap module does not have it
PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def map_memory(
    size: int, protection: int, flags: int, fd: int, offset: int, type: str, about: str
) -> Any:
    """mmap(2). The mapping lives for as long as the returned pointer, a ``type``, does."""
    address = lib.host_map(size, protection, flags, fd, offset)
    if not address:
        raise KvmError("mmap", ffi.errno, about)
    # No function in Python: what a signal handler raises in one would keep the memory mapped.
    return ffi.gc(ffi.cast(type, address), partial(lib.host_unmap, size))


class Mapping:
    """``size`` bytes of memory, of a file or anonymous. A context manager.

    The memory is unmapped when the mapping is closed and no view of it is held any
    more: a view that outlives it stays valid.
    """

    def __init__(
        self, size: int, *, fd: int = -1, offset: int = 0, protection: int = PROT_READ_WRITE
    ) -> None:
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.size = size
        self._pointer = map_memory(size, protection, flags, fd, offset, "void *", f"{size} bytes")

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
