"""What a benchmark found: the results of its cases, as objects and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pyvmm.errors import ConfigurationError
from pyvmm.json_file import read_json

SCHEMA = 1
_MOST_MIB = 64
_NAME_ANOTHER = "name a file that `pyvmm bench … --json` wrote"
PERCENTILES = ("min", "p50", "p90", "p99", "p999", "max")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case. Times are nanoseconds per operation.

    ``ns`` and ``floor_ns`` are what one operation takes while nothing disturbs: the median
    over the rounds of each round's lower quartile. ``ratio`` is the median of the rounds'
    ratios and ``ci`` its interval. ``percentiles`` are of single operations, disturbances
    included. ``split`` says where the time goes, by part. ``warnings`` name what is not to
    be believed. ``buckets`` are (lower end, count) of the distribution; not in the JSON.
    """

    name: str
    floor_ns: float
    ns: float
    ratio: float
    ci: tuple[float, float]
    percentiles: Mapping[str, int]
    split: Mapping[str, float]
    title: str = ""
    samples: int = 0
    mean_ns: float = 0.0
    promise: str = ""
    kept: bool | None = None
    warnings: tuple[str, ...] = ()
    buckets: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def verdict(self) -> str:
        """On the promise; "" without one."""
        if not self.promise:
            return ""
        return {True: "kept", False: "not kept", None: "cannot tell"}[self.kept]

    @property
    def more_ns(self) -> float:
        """Nanoseconds over the floor, by the ratio: ``ns`` and ``floor_ns`` wander apart."""
        return (self.ratio - 1) * self.floor_ns


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that could not run here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The results of a whole run, and the machine they are from."""

    host: Mapping[str, Any]
    cases: tuple[CaseResult, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()

    def by_name(self) -> dict[str, CaseResult]:
        return {case.name: case for case in self.cases}


def only(result: BenchResult, word: str) -> BenchResult:
    """The cases with ``word`` in their name; one bench may measure others with them."""
    return replace(
        result,
        cases=tuple(case for case in result.cases if word in case.name),
        skipped=tuple(each for each in result.skipped if word in each.name),
    )


def to_json(result: BenchResult) -> dict[str, Any]:
    """The object of ``--json``."""
    cases = []
    for case in result.cases:
        fields = asdict(replace(case, buckets=()))
        del fields["buckets"]
        cases.append(fields)
    return {
        "schema": SCHEMA,
        "host": dict(result.host),
        "cases": cases,
        "skipped": [asdict(each) for each in result.skipped],
        "warnings": list(result.warnings),
    }


def doubts(result: BenchResult) -> Iterator[str]:
    """What is not to be believed: the same doubt about many cases in one line."""
    cases: dict[str, list[str]] = {}
    for case in result.cases:
        for warning in case.warnings:
            figure, _, why = warning.partition(": ")
            if figure in ("ns", "max", "p999, max"):
                kind = "rounds differ; believe the ratio" if figure == "ns" else "preempted"
                cases.setdefault(f"{figure} ({kind})", []).append(case.name)
            else:
                yield f"{figure} of {case.name}: {why}"
    for what, names in cases.items():
        some = "all cases" if len(names) == len(result.cases) else ", ".join(names)
        yield f"{what} of {some}"
    yield from result.warnings


def reasons(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """The cases that each reason kept from running."""
    names: dict[str, list[str]] = {}
    for each in skipped:
        names.setdefault(each.reason, []).append(each.name)
    return names


def load(path: str) -> BenchResult:
    """A result from a file that ``--json`` wrote. Raises :class:`ConfigurationError`."""
    data = read_json(path, _MOST_MIB, _NAME_ANOTHER)
    return from_json(data, path)


def from_json(data: Any, path: str) -> BenchResult:
    """The result that :func:`to_json` made ``data`` from; ``path`` is for messages."""
    if not isinstance(data, dict) or "schema" not in data:
        raise ConfigurationError(path, "it is no benchmark result", _NAME_ANOTHER)
    if type(data["schema"]) is not int or data["schema"] != SCHEMA:
        raise ConfigurationError(
            path,
            f"it has schema version {data['schema']!r}, and this pyvmm reads {SCHEMA}",
            "measure again, or compare with the pyvmm that wrote it",
        )
    try:
        cases = {each["name"]: _case(each) for each in data["cases"]}
        if len(cases) < len(data["cases"]):
            raise ValueError("a case is there twice")
        return BenchResult(
            dict(data["host"].items()),
            tuple(cases.values()),
            tuple(Skipped(str(e["name"]), str(e["reason"])) for e in data.get("skipped", [])),
            tuple(str(each) for each in data.get("warnings", [])),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(
            path, f"it is no benchmark result ({type(error).__name__}: {error})", "measure again"
        ) from None


def _case(data: dict[str, Any]) -> CaseResult:
    low, high = data["ci"]
    case = CaseResult(
        name=str(data["name"]),
        floor_ns=float(data["floor_ns"]),
        ns=float(data["ns"]),
        ratio=float(data["ratio"]),
        ci=(float(low), float(high)),
        percentiles={name: int(value) for name, value in data["percentiles"].items()},
        split={name: float(value) for name, value in data["split"].items()},
        title=str(data.get("title", "")),
        samples=int(data.get("samples", 0)),
        mean_ns=float(data.get("mean_ns", 0.0)),
        promise=str(data.get("promise", "")),
        kept=data.get("kept"),
        warnings=tuple(str(each) for each in data.get("warnings", [])),
    )
    # NaN fails this too.
    if not 0 < case.ci[0] <= case.ratio <= case.ci[1] < float("inf"):
        raise ValueError(f"{case.name}: the ratio {case.ratio} is not within {case.ci}")
    return case
