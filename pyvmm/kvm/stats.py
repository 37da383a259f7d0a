"""Binary statistics of a VM or a vCPU: KVM_GET_STATS_FD (Linux 5.14).

Documentation/virt/kvm/api.rst, 4.133. The names and meanings are the running kernel's:
``remote_tlb_flush_requests`` and ``pages_4k`` of a VM, ``exits`` and ``pf_taken`` of a
vCPU, and so on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pyvmm.errors import KvmError
from pyvmm.kvm.fd import Fd
from pyvmm.native import ffi, lib

_TYPES = {
    lib.KVM_STATS_TYPE_CUMULATIVE: "cumulative",
    lib.KVM_STATS_TYPE_INSTANT: "instant",
    lib.KVM_STATS_TYPE_PEAK: "peak",
    lib.KVM_STATS_TYPE_LINEAR_HIST: "linear_hist",
    lib.KVM_STATS_TYPE_LOG_HIST: "log_hist",
}
_UNITS = {
    lib.KVM_STATS_UNIT_NONE: "",
    lib.KVM_STATS_UNIT_BYTES: "bytes",
    lib.KVM_STATS_UNIT_SECONDS: "seconds",
    lib.KVM_STATS_UNIT_CYCLES: "cycles",
    lib.KVM_STATS_UNIT_BOOLEAN: "boolean",
}


@dataclass(frozen=True, slots=True)
class Statistic:
    """What one statistic is. A value v means v * base ** exponent of the unit.

    ``kind`` is cumulative, instant, peak, linear_hist or log_hist, ``kind_9`` for one that
    is not known; ``count`` the number of values, more than 1 for histograms, whose buckets
    are ``bucket_size`` wide if they are linear; ``offset`` that of the first value in bytes.
    """

    name: str
    kind: str
    unit: str
    base: int
    exponent: int
    count: int
    bucket_size: int
    offset: int


class Stats(Fd):
    """The statistics of one VM or vCPU; made by ``get_stats_fd()``.

    ``id`` is the kernel's name for whose they are; ``statistics`` describes each by name.
    """

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, f"statistics of {name}")
        try:
            self._read_layout()
        except BaseException:
            self.close()
            raise

    def _read_layout(self) -> None:
        header = ffi.new("struct kvm_stats_header *")
        ffi.buffer(header)[:] = self._read(ffi.sizeof("struct kvm_stats_header"), 0)
        self.id = self._read(header.name_size, header.id_offset).split(b"\0")[0].decode()
        fixed = ffi.sizeof("struct kvm_stats_desc")
        size = fixed + header.name_size
        block = self._read(size * header.num_desc, header.desc_offset)
        self.statistics: dict[str, Statistic] = {}
        description = ffi.new("struct kvm_stats_desc *", {"name": header.name_size})
        for at in range(0, len(block), size):
            ffi.memmove(description, block[at : at + size], size)
            name = block[at + fixed : at + size].split(b"\0")[0].decode()
            kind = description.flags & lib.KVM_STATS_TYPE_MASK
            unit = description.flags & lib.KVM_STATS_UNIT_MASK
            base = description.flags & lib.KVM_STATS_BASE_MASK
            self.statistics[name] = Statistic(
                name,
                _TYPES.get(kind, f"kind_{kind >> lib.KVM_STATS_TYPE_SHIFT}"),
                _UNITS.get(unit, f"unit_{unit >> lib.KVM_STATS_UNIT_SHIFT}"),
                2 if base == lib.KVM_STATS_BASE_POW2 else 10,
                description.exponent,
                description.size,
                description.bucket_size,
                description.offset,
            )
        self._data_offset = header.data_offset
        self._data_size = max(
            (each.offset + each.count * 8 for each in self.statistics.values()), default=0
        )

    def read(self) -> dict[str, tuple[int, ...]]:
        """All values now, by name; more than one for a histogram."""
        data = memoryview(self._read(self._data_size, self._data_offset)).cast("Q")
        return {
            name: tuple(data[each.offset // 8 : each.offset // 8 + each.count])
            for name, each in self.statistics.items()
        }

    def counters(self) -> dict[str, int]:
        """The values that are single numbers, by name."""
        return {name: values[0] for name, values in self.read().items() if len(values) == 1}

    def _read(self, size: int, offset: int) -> bytes:
        try:
            data = os.pread(self.fileno(), size, offset)
        except OSError as error:
            raise KvmError("pread", error.errno or 0, self.name) from None
        return data.ljust(size, b"\0")
