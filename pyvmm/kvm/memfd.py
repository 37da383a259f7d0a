"""Memory files: memfd_create(2), and what it shares with guest_memfd."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

from pyvmm.errors import ConfigurationError, KvmError
from pyvmm.kvm.arguments import MOST_DESCRIPTOR, integer, need, number
from pyvmm.kvm.fd import Fd
from pyvmm.kvm.mapping import PROT_READ_WRITE, Mapping
from pyvmm.native import lib


class MemoryFile(Fd):
    """A file of memory pages, present or not: ``size`` bytes, in pages of 4096."""

    def __init__(self, fd: int, name: str, size: int) -> None:
        super().__init__(fd, name)
        self.size = size

    def allocate(self, offset: int, size: int) -> None:
        """Make pages present, reading zero where they were not. Idempotent.

        Raises :class:`KvmError`, with EINVAL for more than the file has.
        """
        self._fallocate(lib.page_range_allocate, "", offset, size)

    def punch(self, offset: int, size: int) -> None:
        """Give pages back; they are absent afterwards and read zero. Idempotent."""
        self._fallocate(lib.page_range_punch, "punch ", offset, size)

    def _fallocate(self, call: Any, verb: str, offset: int, size: int) -> None:
        try:
            # A memfd would take all memory that there is.
            is_too_much = size > self.size and call is lib.page_range_allocate
            result = -errno.EINVAL if is_too_much else call(self.fileno(), offset, size)
        except (OverflowError, TypeError):
            result = -errno.EINVAL  # what fallocate(2) says to what is negative
        if result < 0:
            integer("offset", offset)
            integer("size", size)
            raise KvmError("fallocate", -result, f"{verb}{self._range(offset, size)}")

    def map(
        self, offset: int = 0, size: int | None = None, protection: int = PROT_READ_WRITE
    ) -> Mapping:
        """Map a range, shared; to the end of the file without a size.

        Raises :class:`ConfigurationError` for one that reaches past it, where a touch would
        end the process.
        """
        if size is None and offset == 0:
            length = self.size
        else:
            number("offset", offset)
            length = self.size - offset if size is None else number("size", size)
        if not 0 <= length <= self.size - offset:
            raise ConfigurationError(
                self._range(offset, length), f"it reaches past the end at {self.size:#x}"
            )
        return Mapping(length, fd=self.fileno(), offset=offset, protection=protection)

    def allocated_bytes(self) -> int:
        """How many bytes of memory the file holds (st_blocks)."""
        return os.fstat(self.fileno()).st_blocks * 512

    def seal(self, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> None:
        """Forbid changes for good, fcntl(F_ADD_SEALS); by default of the size.

        A guest_memfd takes none: EINVAL.
        """
        number("seals", seals, 0, MOST_DESCRIPTOR)
        try:
            fcntl.fcntl(self.fileno(), fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            raise KvmError("F_ADD_SEALS", error.errno or 0, self.name) from None

    def seals(self) -> int:
        """The F_SEAL_* bits in force."""
        return fcntl.fcntl(self.fileno(), fcntl.F_GET_SEALS)

    def _range(self, offset: int, size: int) -> str:
        return f"{self.name}, offset {offset:#x}, {size:#x} bytes"


class Memfd(MemoryFile):
    """An anonymous file of memory: memfd_create(2), ``size`` bytes, all absent.

    With ``huge_page_size`` (bytes, a power of two) it is backed by huge pages.
    """

    def __init__(self, name: str, size: int, *, huge_page_size: int = 0) -> None:
        need("name", name, str)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if huge_page_size != 0:
            log = number("huge_page_size", huge_page_size, 0, 1 << 62).bit_length() - 1
            if huge_page_size != 1 << log:
                thing = f"huge pages of {huge_page_size:#x}"
                raise ConfigurationError(thing, "it is no power of two")
            flags |= os.MFD_HUGETLB | (log << os.MFD_HUGE_SHIFT)
        try:
            fd = os.memfd_create(name, flags)
        except OSError as error:
            raise KvmError("memfd_create", error.errno or 0, name) from None
        except ValueError as error:  # a null character
            raise ConfigurationError(f"memfd {name!r}", str(error)) from None
        super().__init__(fd, f"memfd {name}", size)
        try:
            os.ftruncate(fd, size)
        except (OSError, OverflowError, TypeError) as error:
            self.close()
            integer("size", size)
            code = error.errno or 0 if isinstance(error, OSError) else errno.EINVAL
            raise KvmError("ftruncate", code, f"{name}, {size:#x} bytes") from None

    def data(self) -> Iterator[tuple[int, int]]:
        """The ranges that hold data, as (offset, size), in order (SEEK_DATA).

        Pages that were allocated and never touched may be among them or among the holes.
        """
        return self._extents(os.SEEK_DATA, os.SEEK_HOLE)

    def holes(self) -> Iterator[tuple[int, int]]:
        """The other ranges, as (offset, size), in order (SEEK_HOLE)."""
        return self._extents(os.SEEK_HOLE, os.SEEK_DATA)

    def _extents(self, start_whence: int, end_whence: int) -> Iterator[tuple[int, int]]:
        fd, end = self.fileno(), 0
        while end < self.size:
            try:
                start = os.lseek(fd, end, start_whence)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            if start >= self.size:
                return
            try:
                end = os.lseek(fd, start, end_whence)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                end = self.size
            yield start, end - start
