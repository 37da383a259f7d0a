"""``bench conversions``, by backing: what allocating and discarding pages costs in each file.

Every conversion allocates pages in one file and discards them in another. Here no guest and
no VM takes part; what differs is the kind of file alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from pyvmm.bench.case import Bench, Case, Times
from pyvmm.bench.guests import check
from pyvmm.errors import KvmError, UnsupportedError
from pyvmm.kvm.memfd import Memfd, MemoryFile
from pyvmm.kvm.system import Kvm
from pyvmm.native import ffi, lib

_HUGE = 2 << 20
_SIZES = {"4k": 4096, "256k": 256 << 10, "2m": _HUGE}


class Pages:
    """``size`` bytes of a file, allocated and discarded by turns."""

    def __init__(self, file: MemoryFile, size: int) -> None:
        self._file, self._size = file, size
        self._times = ffi.new("uint64_t[2]")
        where = {"fd": file.fileno(), "size": size}
        self._steps = [
            ffi.new("struct bare_step *", {"call": call, "part": lib.BARE_PARTS, **where})
            for call in (lib.BARE_ALLOCATE, lib.BARE_PUNCH)
        ]
        self._bare = [
            ffi.new("struct bare_direction *", {"size": size, "steps": step, "step_count": 1})
            for step in self._steps
        ]

    def _pairs(self, pairs: int, latencies: Sequence[Any] = (ffi.NULL, ffi.NULL)) -> Times:
        times = self._times
        times[0] = times[1] = 0
        check(
            lib.page_range_pairs(
                self._file.fileno(), self._size, pairs, times, times + 1, *latencies
            )
        )
        return times[0] / pairs, times[1] / pairs

    def ours(self, operations: int) -> Times:
        return self._pairs(operations)

    def floor(self, operations: int) -> Times:
        allocate, discard = self._bare
        check(lib.bare_convert_pairs(allocate, discard, operations, lib.BARE_TIME_WHOLE))
        taken = [direction.whole_ns / operations for direction in self._bare]
        for direction in self._bare:
            direction.whole_ns = 0
        return taken

    def sample(self, operations: int, latencies: Sequence[Any]) -> list[dict[str, float]]:
        self._pairs(operations, latencies)
        return [{}, {}]


def _memfd(stack: ExitStack, size: int) -> MemoryFile:
    return stack.enter_context(Memfd("bench", size))


def _hugetlb(stack: ExitStack, size: int) -> MemoryFile:
    try:
        file = stack.enter_context(Memfd("bench", size, huge_page_size=_HUGE))
        file.allocate(0, size)
    except KvmError as error:
        raise UnsupportedError(
            "huge pages of 2 MiB", error.cause, "reserve some: sysctl vm.nr_hugepages=4"
        ) from None
    return file


def _guest_memfd(stack: ExitStack, size: int) -> MemoryFile:
    kvm = stack.enter_context(Kvm())
    for vm_type in (lib.KVM_X86_SW_PROTECTED_VM, lib.KVM_X86_DEFAULT_VM):
        try:
            vm = stack.enter_context(kvm.create_vm(vm_type))
            return stack.enter_context(vm.create_guest_memfd(size))
        except KvmError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise
    raise UnsupportedError(
        "guest_memfd",
        "no VM of this KVM can have one",
        "use a kernel with CONFIG_KVM_SW_PROTECTED_VM=y (pyvmm lab has one)",
    )


def _of(
    name: str, open_file: Callable[[ExitStack, int], MemoryFile], sizes: Sequence[str]
) -> Iterator[Bench]:
    for size in sizes:
        yield Bench(
            tuple(
                Case(f"{name}_{what}_{size}", f"by backing: {what} {size} of a {name}")
                for what in ("allocate", "discard")
            ),
            partial(_set_up, open_file=open_file, size=_SIZES[size]),
        )


def _set_up(
    stack: ExitStack, open_file: Callable[[ExitStack, int], MemoryFile], size: int
) -> Pages:
    return Pages(open_file(stack, size), size)


def benches() -> list[Bench]:
    """Each kind of file, in sizes that it can have."""
    return [
        *_of("memfd", _memfd, ("4k", "256k", "2m")),
        *_of("hugetlb_memfd", _hugetlb, ("2m",)),
        *_of("guest_memfd", _guest_memfd, ("4k", "256k", "2m")),
    ]
