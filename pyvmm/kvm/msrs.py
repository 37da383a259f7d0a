"""Model-specific registers: KVM_GET_MSRS, KVM_SET_MSRS and the filter for guests' accesses.

Documentation/virt/kvm/api.rst, 4.3, 4.18, 4.19 and 4.97.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pyvmm.errors import ConfigurationError, KvmError, UnsupportedError
from pyvmm.kvm.arguments import MOST_U32, listed, need, number
from pyvmm.kvm.fd import KvmFd
from pyvmm.native import ffi, lib

# arch/x86/kvm/x86.c takes no more at a time.
_MOST_AT_ONCE = 255


@dataclass(frozen=True, slots=True)
class MsrFilterRange:
    """MSRs ``base`` and up: a 1 bit in ``bitmap`` allows, a 0 bit denies.

    ``flags`` says what the bits are about: ``lib.KVM_MSR_FILTER_READ``, ``_WRITE`` or both.
    """

    base: int
    count: int
    bitmap: bytes
    flags: int = lib.KVM_MSR_FILTER_READ | lib.KVM_MSR_FILTER_WRITE


def get_msrs(fd: KvmFd, indices: Iterable[int]) -> dict[int, int]:
    """KVM_GET_MSRS. Raises :class:`UnsupportedError` naming the first that cannot be read."""
    values: dict[int, int] = {}
    for some in _chunks(listed("MSRs", indices)):
        request = _request([(index, 0) for index in some])
        done = fd.ioctl("KVM_GET_MSRS", request, _about(some))
        values |= {request.entries[at].index: request.entries[at].data for at in range(done)}
        if done < len(some):
            raise UnsupportedError(
                f"MSR {some[done]:#x}",
                f"KVM_GET_MSRS refused it, number {len(values)} of the list, and read no more",
                "see get_msr_index_list(), and get_msr_feature_index_list() for /dev/kvm",
            )
    return values


def set_msrs(fd: KvmFd, values: Mapping[int, int]) -> None:
    """KVM_SET_MSRS. Raises :class:`UnsupportedError` naming the first that was refused.

    Those before it, in the mapping's order, have been set, and it and those after it have not.
    """
    need("MSRs", values, Mapping)
    written = 0
    for some in _chunks(values):
        request = _request([(index, values[index]) for index in some])
        done = fd.ioctl("KVM_SET_MSRS", request, _about(some))
        written += done
        if done < len(some):
            raise UnsupportedError(
                f"MSR {some[done]:#x}",
                f"KVM_SET_MSRS refused the value {values[some[done]]:#x}, number {written} of the "
                f"list; {written} are written, {len(values) - written} are not",
                "see Kvm.get_msr_index_list()",
            )


def get_msr_list(fd: KvmFd, name: str) -> tuple[int, ...]:
    """The indices that KVM_GET_MSR_INDEX_LIST or KVM_GET_MSR_FEATURE_INDEX_LIST names."""
    count = 1024
    while True:
        request = ffi.new("struct kvm_msr_list *", {"nmsrs": count, "indices": count})
        try:
            fd.ioctl(name, request)
            return tuple(request.indices[at] for at in range(request.nmsrs))
        except KvmError as error:
            # With E2BIG the kernel says how many there are.
            if error.errno != errno.E2BIG or request.nmsrs <= count:
                raise
        count = request.nmsrs


def msr_filter(ranges: Sequence[MsrFilterRange], deny_others: bool) -> tuple[Any, list[Any]]:
    """A ``struct kvm_msr_filter *``, and the bitmaps that must live as long as it is used."""
    ranges = listed("MSR filter", ranges)
    most = lib.KVM_MSR_FILTER_MAX_RANGES
    if len(ranges) > most:
        raise ConfigurationError("MSR filter", f"{len(ranges)} ranges, and KVM takes {most}")
    request = ffi.new("struct kvm_msr_filter *")
    request.flags = lib.KVM_MSR_FILTER_DEFAULT_DENY if deny_others else 0
    kept = []
    for entry, range_ in zip(request.ranges, ranges, strict=False):
        need("MSR filter range", range_, MsrFilterRange)
        need("bitmap", range_.bitmap, bytes, bytearray)
        number("base", range_.base, 0, MOST_U32)
        number("count", range_.count, 0, MOST_U32)
        number("flags", range_.flags, 0, MOST_U32)
        if len(range_.bitmap) * 8 < range_.count:
            raise ConfigurationError(
                f"MSR filter range {range_.base:#x}",
                f"{len(range_.bitmap)} bytes of bitmap for {range_.count} MSRs",
            )
        bitmap = ffi.new("__u8[]", bytes(range_.bitmap))
        kept.append(bitmap)
        entry.flags, entry.base, entry.nmsrs = range_.flags, range_.base, range_.count
        entry.bitmap = bitmap
    return request, kept


def _chunks(indices: Iterable[int]) -> Iterator[list[int]]:
    rest = iter(indices)
    while some := list(islice(rest, _MOST_AT_ONCE)):
        yield some


def _request(entries: list[tuple[int, int]]) -> Any:
    request = ffi.new("struct kvm_msrs *", {"entries": len(entries)})
    request.nmsrs = len(entries)
    try:
        for at, (index, data) in enumerate(entries):
            request.entries[at].index, request.entries[at].data = index, data
    except (OverflowError, TypeError):
        number("MSR", index, 0, MOST_U32)
        number(f"value of MSR {index:#x}", data)
        raise
    return request


def _about(indices: list[int]) -> str:
    return f"MSR {indices[0]:#x}" + (f" and {len(indices) - 1} more" if len(indices) > 1 else "")
