"""What a run found out."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pyvmm.guest.platform import Platform
from pyvmm.host import host_facts, kernel_release
from pyvmm.loop.vcpu_loop import ExitRecord, VcpuLoop
from pyvmm.memory.guest_memory import Conversions, GuestMemory
from pyvmm.native import ffi, lib
from pyvmm.unclaimed import Unclaimed, unclaimed_accesses

# Changes when a key goes or means something else, not when one is added.
SCHEMA = 1

# A CPU's modes.
REAL, PROTECTED, LONG = "real", "protected", "long"
_SELECTORS = ("cs", "ds", "es", "ss", "fs", "gs")
_REGISTERS_PER_LINE = 4


class Result(StrEnum):
    """How a run ended; the command line's exit status follows from it."""

    PASS = "pass"
    FAIL = "fail"
    DEADLINE = "deadline"
    ERROR = "error"
    SKIP = "skip"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Latency:
    """Nanoseconds. Percentiles are within 3.2 %; the extremes are exact. None when empty."""

    count: int = 0
    min: int | None = None
    p50: int | None = None
    p90: int | None = None
    p99: int | None = None
    p999: int | None = None
    max: int | None = None

    @classmethod
    def of(cls, histogram: Any) -> Latency:
        """From a ``struct histogram *``."""
        if not histogram.count:
            return _NO_LATENCY
        p50, p90, p99, p999 = (
            lib.histogram_percentile(histogram, fraction) for fraction in (0.5, 0.9, 0.99, 0.999)
        )
        return cls(histogram.count, histogram.min, p50, p90, p99, p999, histogram.max)


_NO_LATENCY = Latency()


@dataclass(frozen=True, slots=True)
class RegionReport:
    """A region's final state: ``private`` lists (GPA in the private view, bytes)."""

    gpa: int
    size: int
    private: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ReasonStatistics:
    """The exits of one reason: how many, and the time from KVM_RUN's return to its next call."""

    count: int
    total_ns: int
    min_ns: int
    max_ns: int

    def __add__(self, other: ReasonStatistics) -> ReasonStatistics:
        return ReasonStatistics(
            self.count + other.count,
            self.total_ns + other.total_ns,
            min(self.min_ns, other.min_ns),
            max(self.max_ns, other.max_ns),
        )


@dataclass(frozen=True, slots=True)
class Where:
    """Where the vCPU stood that ended the run.

    ``source`` is ``file:line``, or "" where no line is known; ``code`` are the bytes of the
    instruction there and what follows; ``registers`` are empty when the vCPU could not be
    asked; ``last_exits`` are the newest ones, oldest first. ``vector`` is that of an exception
    or interrupt which nothing handled: the rest is then of the moment before it was taken.
    ``is_behind``: IP is behind the instruction, which ``source`` is the line of. ``mode`` is the
    CPU's: real, protected or long; in long mode the registers have their names of 64 bits.
    ``error_code`` is that of the exception, if it has one.
    """

    vcpu: int
    source: str = ""
    code: bytes = b""
    registers: dict[str, int] = field(default_factory=dict)
    last_exits: tuple[ExitRecord, ...] = ()
    vector: int | None = None
    is_behind: bool = False
    mode: str = REAL
    error_code: int | None = None

    @property
    def ip(self) -> int:
        """The instruction pointer, of however many bits."""
        return self.registers["rip" if self.mode == LONG else "eip"]

    @property
    def place(self) -> str:
        """CS:IP, EIP or RIP and the source line, as far as they are known."""
        if not self.registers:
            return "an unknown place"
        before = "the instruction before " if self.is_behind else ""
        if self.mode == LONG:
            return f"{before}RIP {self.ip:#x}{self.line}"
        if self.mode == PROTECTED:
            return f"{before}CS:EIP {self.registers['cs']:04x}:{self.ip:08x}{self.line}"
        return f"{before}CS:IP {self.registers['cs']:04x}:{self.ip:04x}{self.line}"

    @property
    def line(self) -> str:
        """The source line in parentheses, to go behind an address."""
        return f" ({self.source})" if self.source else ""

    def lines(self) -> Iterator[str]:
        """The same for people."""
        if self.registers or self.vector is not None:
            vector = "" if self.vector is None else f", before vector {self.vector:#x} was taken"
            mode = "" if self.mode == REAL else f" in {self.mode} mode"
            yield f"vCPU {self.vcpu} at {self.place}{mode}{vector}"
        if self.code:
            yield f"code {self.code.hex(' ')}"
        digits = 16 if self.mode == LONG else 8
        wide = [
            f"{name}={n:0{digits}x}" for name, n in self.registers.items() if name not in _SELECTORS
        ]
        for at in range(0, len(wide), _REGISTERS_PER_LINE):
            yield " ".join(wide[at : at + _REGISTERS_PER_LINE])
        selectors = [f"{n}={self.registers[n]:04x}" for n in _SELECTORS if n in self.registers]
        if selectors:
            yield " ".join(selectors)
        yield from map(describe_record, self.last_exits)


@dataclass(frozen=True, slots=True)
class RunReport:
    """The outcome of :meth:`pyvmm.machine.Machine.run`.

    ``exit_code`` is None unless a guest wrote one; ``reason`` is one line when the
    result is not pass; ``where`` is None when it was no vCPU's failure. ``unclaimed`` has
    the ports that were missed most and the first addresses; ``unclaimed_ports`` and
    ``unclaimed_mmio`` count all such accesses.
    """

    result: Result
    exit_code: int | None = None
    reason: str = ""
    backend: str = ""
    mechanism: str = ""
    platform: str = "protocol"
    mode: str = "real"
    console_bytes: bytes = b""
    console_dropped: int = 0
    serial: str = ""
    serial_dropped: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    conversions: Conversions = field(default_factory=Conversions)
    exit_latency: Latency = field(default_factory=Latency)
    conversion_latency: Latency = field(default_factory=Latency)
    measures: tuple[int, ...] = ()
    measures_dropped: int = 0
    memory: tuple[RegionReport, ...] = ()
    by_reason: dict[str, ReasonStatistics] = field(default_factory=dict)
    spurious_exits: int = 0
    unclaimed_ports: int = 0
    unclaimed_mmio: int = 0
    unclaimed: tuple[Unclaimed, ...] = ()
    where: Where | None = None

    @property
    def passed(self) -> bool:
        return self.result is Result.PASS

    @property
    def details(self) -> tuple[str, ...]:
        """The lines of ``where``. Deprecated: ask ``where`` itself."""
        return () if self.where is None else tuple(self.where.lines())

    @property
    def console(self) -> str:
        """What the guest printed, with U+FFFD for each byte that is no UTF-8."""
        return self.console_bytes.decode("utf-8", "replace")


def report_of(
    platform: Platform,
    verdict: tuple[Result, int | None, str, Where | None],
    memory: GuestMemory,
    loops: Sequence[VcpuLoop],
    protocol: Any,
) -> RunReport:
    """What memory, run loops and the ``struct protocol *`` hold now, and the verdict on it."""
    result, exit_code, reason, where = verdict
    measures = min(protocol.measures_written, lib.MEASURES_SIZE)
    console = console_of(protocol)
    exits, by_reason = statistics_of(loops)
    unclaimed, unclaimed_ports, unclaimed_mmio = unclaimed_accesses(protocol)
    return RunReport(
        platform=platform.name,
        mode=platform.mode,
        result=result,
        exit_code=exit_code,
        reason=reason,
        backend=memory.backend.name,
        mechanism=memory.mechanism.name.lower(),
        console_bytes=console,
        console_dropped=protocol.console_written - len(console),
        exits=exits,
        conversions=memory.conversions(),
        exit_latency=latency_of(loops, "exit_latency"),
        conversion_latency=latency_of(loops, "conversion_latency"),
        measures=tuple(protocol.buffers.measures[0:measures]),
        measures_dropped=protocol.measures_written - measures,
        serial=platform.serial().decode("utf-8", "replace"),
        serial_dropped=platform.serial_dropped(),
        memory=tuple(
            RegionReport(region.gpa, region.size, tuple(region.private_ranges()))
            for region in memory.regions
        ),
        by_reason=by_reason,
        spurious_exits=sum(region.spurious_exits() for region in memory.regions),
        unclaimed=unclaimed,
        unclaimed_ports=unclaimed_ports,
        unclaimed_mmio=unclaimed_mmio,
        where=where,
    )


def console_of(protocol: Any) -> bytes:
    """The console's bytes until now, as far as they are kept."""
    kept = min(protocol.console_written, lib.CONSOLE_SIZE)
    return bytes(ffi.buffer(protocol.buffers.console, kept)) if kept else b""


def latency_of(loops: Sequence[VcpuLoop], name: str) -> Latency:
    """The sum of the loops' histograms called ``name``."""
    total = ffi.addressof(loops[0].raw, name)
    if len(loops) > 1:
        total = ffi.new("struct histogram *")
        lib.histogram_clear(total)
        for loop in loops:
            lib.histogram_add(total, ffi.addressof(loop.raw, name))
    return Latency.of(total)


def statistics_of(
    loops: Sequence[VcpuLoop],
) -> tuple[dict[str, int], dict[str, ReasonStatistics]]:
    """How many exits of each reason all loops had, and the times of those that were recorded."""
    counts: dict[str, int] = {}
    by_reason: dict[str, ReasonStatistics] = {}
    for loop in loops:
        for name, count, times in loop.exits_by_reason():
            counts[name] = counts.get(name, 0) + count
            if times is None or not times.count:
                continue
            found = ReasonStatistics(times.count, times.total, times.min, times.max)
            by_reason[name] = by_reason[name] + found if name in by_reason else found
    return counts, by_reason


def describe_record(record: ExitRecord) -> str:
    """One line about an exit; its time is the VMM's, from KVM_RUN's return to the next call."""
    took = duration(record.time_out - record.time_in)
    if not record.size:  # an exit that is no access
        return f"exit {record.reason}, {took}"
    direction = "write" if record.is_write else "read"
    line = f"exit {record.reason} {direction} {record.address:#x} size {record.size}, {took}"
    if record.conversion is None:
        return line
    return f"{line}, to {record.conversion.name.lower()} in {duration(record.conversion_ns)}"


def duration(nanoseconds: float) -> str:
    """Three figures and a unit: ``850 ns``, ``12.3 us``, ``1.05 s``."""
    unit, value = "ns", nanoseconds
    for larger in ("us", "ms", "s"):
        if value < 999.5:
            break
        unit, value = larger, value / 1000
    digits = 0 if unit == "ns" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def to_json(report: RunReport) -> dict[str, Any]:
    """The object of ``pyvmm run --json``; docs/command-line.md says what its keys are."""
    return {
        "schema": SCHEMA,
        "result": report.result.value,
        "exit_code": report.exit_code,
        "reason": report.reason,
        "platform": report.platform,
        "mode": report.mode,
        "backend": report.backend,
        "mechanism": report.mechanism,
        "kernel": kernel_release(),
        "console": report.console,
        "console_base64": _base64_unless_text(report.console_bytes),
        "console_dropped": report.console_dropped,
        "serial": report.serial,
        "serial_dropped": report.serial_dropped,
        "exits": report.exits,
        "times": {reason: asdict(times) for reason, times in report.by_reason.items()},
        "conversions": asdict(report.conversions),
        "spurious_exits": report.spurious_exits,
        "latency_ns": {
            "exit": asdict(report.exit_latency),
            "conversion": asdict(report.conversion_latency),
        },
        "measures": list(report.measures),
        "measures_dropped": report.measures_dropped,
        "memory": [
            {"gpa": region.gpa, "size": region.size, "private": [list(r) for r in region.private]}
            for region in report.memory
        ],
        "unclaimed": [_unclaimed_to_json(each) for each in report.unclaimed],
        "unclaimed_ports": report.unclaimed_ports,
        "unclaimed_mmio": report.unclaimed_mmio,
        "where": None if report.where is None else _where_to_json(report.where),
        "host": host_facts(),
    }


def _base64_unless_text(data: bytes) -> str | None:
    """What text would lose."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return b2a_base64(data, newline=False).decode("ascii")
    return None


def _unclaimed_to_json(each: Unclaimed) -> dict[str, Any]:
    place = {"gpa": each.gpa} if each.port is None else {"port": each.port}
    hint = {"hint": each.hint} if each.hint else {}
    return {**place, "count": each.count, **hint}


def _where_to_json(where: Where) -> dict[str, Any]:
    return {
        "vcpu": where.vcpu,
        "place": where.place,
        "source": where.source,
        "is_behind": where.is_behind,
        "mode": where.mode,
        "vector": where.vector,
        "error_code": where.error_code,
        "code": where.code.hex(" "),
        "registers": where.registers,
        "last_exits": [_record_to_json(record) for record in where.last_exits],
    }


def _record_to_json(record: ExitRecord) -> dict[str, Any]:
    conversion = record.conversion
    return {
        "reason": record.reason,
        "address": record.address if record.size else None,
        "size": record.size,
        "is_write": record.is_write,
        "ns": record.time_out - record.time_in,
        "conversion": None if conversion is None else conversion.name.lower(),
        "conversion_ns": record.conversion_ns,
    }
