"""Memory that converts in place: one guest_memfd has both halves, and the host maps it.

A page's state is the file's: KVM_SET_MEMORY_ATTRIBUTES2 on its descriptor changes it, and the
contents stay. A touch of a private page would end the process with SIGBUS, so the host reads and
writes by system calls here, which then fail with EFAULT.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from pyvmm.closing import Closing
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.memfd import Memfd
from pyvmm.native import ffi, lib
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import CheckFailed, check, errno_name, words
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.memory import ATTRIBUTE, STRIDE
from pyvmm.validate.kit.toolbox import Toolbox

MMAP: int = lib.GUEST_MEMFD_FLAG_MMAP
INIT_SHARED: int = lib.GUEST_MEMFD_FLAG_INIT_SHARED
MAPPED = MMAP | INIT_SHARED
#: What a request has as error_offset that the kernel must not touch.
MARK = 0x5A5A_C3C3_A5A5_3C3C
CAPABILITY: int = lib.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES
CALL = IOCTLS["KVM_SET_MEMORY_ATTRIBUTES2"]
_BUFFER = 64 * PAGE
_libc = ctypes.CDLL(None, use_errno=True)


class Answer(NamedTuple):
    """What a conversion gave: an errno, 0 for none, and the error_offset that is there now."""

    error: int
    error_offset: int

    def __str__(self) -> str:
        where = "" if self.error_offset == MARK else f", error_offset {self.error_offset:#x}"
        return f"{errno_name(self.error)}{where}"


def set_attributes(
    fd: int, offset: int, size: int, attributes: int, error_offset: int = MARK
) -> Answer:
    """One KVM_SET_MEMORY_ATTRIBUTES2, whatever comes of it."""
    request = ffi.new("uint64_t[16]", [offset, size, attributes, 0, error_offset])
    return Answer(raw_call(fd, int(ffi.cast("uintptr_t", request))), int(request[4]))


def raw_call(fd: int, address: int) -> int:
    """The ioctl with a request at any address; the errno."""
    return -int(lib.kvm_ioctl(fd, CALL.number, address))


class HostView(Closing):
    """What the host reads and writes at ``address``, by system calls.

    Synchronization: any thread.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self._file = Memfd("host view", _BUFFER)
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes | None:
        """At most 256 KiB; None where the kernel says EFAULT."""
        address = ctypes.c_void_p(self.address + offset)
        fd = self._file.fileno()
        with self._lock:
            done = _libc.pwrite(fd, address, ctypes.c_size_t(size), ctypes.c_int64(0))
            return os.pread(fd, size, 0) if self._all(done, size) else None

    def write(self, offset: int, data: bytes) -> bool:
        """Whether the kernel could write there."""
        fd = self._file.fileno()
        address = ctypes.c_void_p(self.address + offset)
        with self._lock:
            os.pwrite(fd, data, 0)
            done = _libc.pread(fd, address, ctypes.c_size_t(len(data)), ctypes.c_int64(0))
            return self._all(done, len(data))

    def _all(self, done: int, size: int) -> bool:
        if done < 0 and ctypes.get_errno() != errno.EFAULT:
            error = errno_name(ctypes.get_errno())
            raise CheckFailed(f"a system call with a buffer in a guest_memfd: {error}")
        return done == size

    def word(self, offset: int) -> int | None:
        data = self.read(offset, 8)
        return None if data is None else int.from_bytes(data, "little")

    def close(self) -> None:
        self._file.close()


class InPlace(Closing):
    """A range of GPAs over a guest_memfd, in one or several slots.

    The file's page for ``gpa`` is at ``file_offset``. All ``offset`` arguments count from
    ``gpa``; all sizes are bytes. Without MMAP in ``flags`` there is no host view. ``address`` is
    what the slots say of the host's memory, by default the file's mapping.
    """

    def __init__(
        self,
        tools: Toolbox,
        vm: GuestVm,
        gpa: int,
        size: int,
        *,
        flags: int = MAPPED,
        slots: int = 1,
        file_offset: int = 0,
        file_size: int = 0,
        address: int | None = None,
    ) -> None:
        self.vm, self.gpa, self.size = vm, gpa, size
        self.file_offset = file_offset
        self.file: GuestMemfd = vm.vm.create_guest_memfd(file_size or file_offset + size, flags)
        tools.keep(self)
        self.mapping: Mapping | None = None
        self._host: HostView | None = None
        if flags & MMAP:
            self.mapping = self.file.map(file_offset, size)
            self._host = HostView(self.mapping.address)
            address = self.mapping.address if address is None else address
        elif address is None:
            address = tools.shared_side(gpa, size).address
        self.address = address
        pages, rest = divmod(size // PAGE, slots)
        self.slots: list[tuple[int, int, int]] = []  # number, offset, size
        at = 0
        for index in range(slots):
            length = (pages + (index < rest)) * PAGE
            self.slots.append((vm.new_slot(), at, length))
            at += length
        self.create()

    def create(self) -> None:
        for slot in range(len(self.slots)):
            self.create_slot(slot)

    def create_slot(self, index: int) -> None:
        number, offset, size = self.slots[index]
        self.vm.vm.set_user_memory_region2(
            number,
            self.gpa + offset,
            size,
            self.address + offset,
            lib.KVM_MEM_GUEST_MEMFD,
            self.file.fileno(),
            self.file_offset + offset,
        )

    def delete(self) -> None:
        for slot in range(len(self.slots)):
            self.delete_slot(slot)

    def delete_slot(self, index: int) -> None:
        number, offset, _ = self.slots[index]
        self.vm.vm.set_user_memory_region2(
            number, self.gpa + offset, 0, self.address + offset, lib.KVM_MEM_GUEST_MEMFD
        )

    def close(self) -> None:
        self.close_file()
        if self._host is not None:
            self._host.close()

    def close_file(self) -> None:
        """The descriptor and the mapping: nothing but slots refers to the file then."""
        if self.mapping is not None:
            self.mapping.close()
        self.file.close()

    # ---- conversions ----

    def ask(self, offset: int, size: int, private: bool) -> Answer:
        """A conversion, whatever comes of it."""
        attributes = ATTRIBUTE if private else 0
        return set_attributes(self.file.fileno(), self.file_offset + offset, size, attributes)

    def to_private(self, offset: int, size: int) -> None:
        self._convert(offset, size, True)

    def to_shared(self, offset: int, size: int) -> None:
        self._convert(offset, size, False)

    def _convert(self, offset: int, size: int, private: bool) -> None:
        answer = self.ask(offset, size, private)
        if answer.error:
            to = "private" if private else "shared"
            where = f"{size:#x} bytes at {offset:#x}: {answer}"
            raise CheckFailed(f"a conversion to {to} fails: {errno_name(answer.error)}", where)

    def punch(self, offset: int, size: int) -> None:
        self.file.punch(self.file_offset + offset, size)

    def allocate(self, offset: int, size: int) -> None:
        self.file.allocate(self.file_offset + offset, size)

    # ---- the host ----

    @property
    def host(self) -> HostView:
        assert self._host is not None, "no mapping"
        return self._host

    def fill(self, offset: int, size: int, tag: int) -> None:
        """Let the host write what the guest's fill() would; the pages must be shared."""
        for at in range(offset, offset + size, PAGE):
            page = b"".join(
                struct.pack("=Q", tag + self.gpa + at + word).ljust(STRIDE, b"\0")
                for word in range(0, PAGE, STRIDE)
            )
            check(self.host.write(at, page), "the host cannot write to a page that is shared")

    def expect_host(self, offset: int, size: int, tag: int, what: str) -> None:
        """The host must see what was written with ``tag``."""
        for at in range(offset, offset + size, PAGE):
            self._expect_page(at, [tag + self.gpa + at + word for word in _WORDS], what)

    def expect_host_zero(self, offset: int, size: int, what: str) -> None:
        for at in range(offset, offset + size, PAGE):
            self._expect_page(at, [0] * len(_WORDS), what)

    def _expect_page(self, at: int, wanted: list[int], what: str) -> None:
        data = self.host.read(at, PAGE)
        if data is None:
            raise CheckFailed(f"{what}: the host cannot read page {at // PAGE}, it is not shared")
        seen = array("Q", data)[:: STRIDE // 8].tolist()
        for index, (word, right) in enumerate(zip(seen, wanted, strict=True)):
            if word != right:
                raise CheckFailed(
                    f"{what}: the host reads {words(word)} for GPA "
                    f"{self.gpa + at + index * STRIDE:#x}, expected {words(right)}"
                )

    def expect_refused(self, offset: int, size: int, what: str) -> None:
        """The host can neither read nor write any of these pages."""
        for at in range(offset, offset + size, PAGE):
            name = f"page {at // PAGE}"
            check(self.host.read(at, 8) is None, f"{what}: the host can read {name}")
            check(not self.host.write(at, bytes(8)), f"{what}: the host can write to {name}")

    def states(self) -> list[bool]:
        """Which pages are private, by what the host can read."""
        return [self.host.read(at, 1) is None for at in range(0, self.size, PAGE)]

    def expect_states(self, wanted: Sequence[bool], what: str, detail: str = "") -> None:
        for page, (seen, right) in enumerate(zip(self.states(), wanted, strict=True)):
            if seen != right:
                name = "private" if seen else "shared"
                where = f"page {page} of {len(wanted)}"
                text = f"{what}: a page is {name} that must not be"
                raise CheckFailed(text, f"{where}; {detail}" if detail else where)

    def expect_states_of(self, offset: int, size: int, private: bool, what: str) -> None:
        for at in range(offset, offset + size, PAGE):
            if (self.host.read(at, 1) is None) != private:
                name = "shared" if private else "private"
                raise CheckFailed(f"{what}: a page is {name} that must not be")

    # ---- the guest ----

    def guest_fill(self, offset: int, size: int, tag: int, cpu: int = 0) -> None:
        self.vm.cpus[cpu].fill(self.gpa + offset, size, tag, STRIDE)

    def expect_guest(self, offset: int, size: int, tag: int, what: str, cpu: int = 0) -> None:
        self.vm.cpus[cpu].expect_filled(self.gpa + offset, size, tag, what, STRIDE)

    def expect_guest_zero(self, offset: int, size: int, what: str, cpu: int = 0) -> None:
        self.vm.cpus[cpu].expect_zero(self.gpa + offset, size, what, STRIDE)


_WORDS = range(0, PAGE, STRIDE)


class Flips:
    """Conversions there and back of a memory's pages, in bare calls, and their errnos: to private
    and to shared, or as ``order`` has it."""

    def __init__(
        self, memory: InPlace, fd: int = -1, order: tuple[int, int] = (ATTRIBUTE, 0)
    ) -> None:
        self._requests = [
            ffi.new("uint64_t[16]", [memory.file_offset, memory.size, attributes])
            for attributes in order
        ]
        self._there, self._back = (int(ffi.cast("uintptr_t", each)) for each in self._requests)
        self._fd = memory.file.fileno() if fd < 0 else fd
        self.count = 0
        self.errors: set[int] = set()

    def __call__(self, delay: range = range(0)) -> None:
        fd, number, call = self._fd, CALL.number, lib.kvm_ioctl
        first = call(fd, number, self._there)
        for _ in delay:
            pass
        second = call(fd, number, self._back)
        self.errors |= {-first, -second} - {0}
        self.count += 2

    def expect_success(self, what: str, allowed: tuple[int, ...] = ()) -> None:
        wrong = self.errors - set(allowed)
        names = ", ".join(sorted(map(errno_name, wrong)))
        check(not wrong, f"a conversion beside {what} fails", names)
