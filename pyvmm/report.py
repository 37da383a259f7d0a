"""What a run found out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pyvmm.memory.guest_memory import Conversions
from pyvmm.native import lib


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
            return cls()
        p50, p90, p99, p999 = (
            lib.histogram_percentile(histogram, fraction) for fraction in (0.5, 0.9, 0.99, 0.999)
        )
        return cls(histogram.count, histogram.min, p50, p90, p99, p999, histogram.max)


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
class RunReport:
    """The outcome of :meth:`pyvmm.machine.Machine.run`.

    ``exit_code`` is None unless a guest wrote one; ``reason`` is one line when the
    result is not pass; ``details`` are further lines for people: registers, last exits.
    """

    result: Result
    exit_code: int | None = None
    reason: str = ""
    backend: str = ""
    mechanism: str = ""
    console: str = ""
    console_dropped: int = 0
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
    details: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.result is Result.PASS
