"""A whole run as JSON, and read back.

One object: ``schema`` (1), ``pyvmm`` (version), ``machine`` {``kernel``, ``cpu``, ``cpus``,
``kvm_modules``, ``build_id`` (of the kernel, "" if it tells none), ``parameters`` (of the KVM
modules), ``races`` (what it can see of them, in words; "" where no case was about them)}, ``seed``,
``duration_s``, ``summary`` {state: count} and ``results``, each {``name``, ``id``, ``title``,
``subject``, ``state`` (known, pass, fail, skip, hang, crash), ``message``, ``detail``,
``duration_s``, ``bug``, ``scripts`` (random ones that a case of the model played)}. The same
failure has the same ``message`` in every run; ``detail`` may differ. ``bug`` is null, or for known
{``commit``, ``title``, ``release``} of the fix (``commit`` is "" while there is none). The schema's
number changes when a field changes its meaning or goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyvmm.errors import ConfigurationError
from pyvmm.host import host_facts, kernel_build_id, kvm_modules
from pyvmm.json_file import read_json
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results.result import CaseResult, State

SCHEMA = 1
#: A report of the whole catalogue has about one.
_MOST_MIB = 64


@dataclass(frozen=True, slots=True)
class Report:
    """What came out. JSON does not have the last: names of the cases that did not run, and why, and
    whether a process is left that not even SIGKILL ends."""

    machine: dict[str, Any]
    seed: int
    duration_s: float
    results: tuple[CaseResult, ...]
    not_run: tuple[str, ...] = ()
    left_behind: bool = False
    why_not_run: str = "the cases that failed had taken too long"

    def counts(self) -> dict[State, int]:
        counted = Counter(result.state for result in self.results)
        return {state: counted[state] for state in State}


def machine_facts() -> dict[str, Any]:
    """What tells two machines or two ways to load KVM apart."""
    facts = host_facts()
    names = ("kernel", "cpu", "cpus", "kvm_modules")
    return {
        **{name: facts[name] for name in names},
        "build_id": kernel_build_id(),
        "parameters": _module_parameters(),
    }


def _module_parameters() -> dict[str, str]:
    parameters = {}
    for module in ("kvm", *kvm_modules()):
        try:
            files = sorted(Path("/sys/module", module, "parameters").iterdir())
        except OSError:
            continue
        for file in files:
            try:
                parameters[f"{module}.{file.name}"] = file.read_text().strip()
            except (OSError, UnicodeDecodeError):
                continue
    return parameters


def to_json(report: Report) -> dict[str, Any]:
    return {
        **heading(report.machine, report.seed),
        "duration_s": round(report.duration_s, 3),
        "summary": dict(report.counts()),
        "results": [result_to_json(result) for result in report.results],
    }


def heading(machine: dict[str, Any], seed: int) -> dict[str, Any]:
    """What is known of a run before it begins."""
    from pyvmm import __version__

    return {"schema": SCHEMA, "pyvmm": __version__, "machine": machine, "seed": seed}


def result_to_json(result: CaseResult) -> dict[str, Any]:
    return {**asdict(result), "duration_s": round(result.duration_s, 4)}


def result_from_json(data: dict[str, Any]) -> CaseResult:
    """Raises KeyError, TypeError or ValueError for what is no result."""
    if not isinstance(data, dict):
        raise TypeError("a result is no object")
    bug = data.get("bug")
    result = CaseResult(
        **{
            **data,
            "state": State(data["state"]),
            "bug": None if bug is None else KnownBug(**bug),
        }
    )
    for name in ("name", "id", "title", "subject", "message", "detail"):
        if not isinstance(getattr(result, name), str):
            raise TypeError(f"{name} is no text")
    for name in ("duration_s", "scripts"):
        if type(getattr(result, name)) not in (int, float):
            raise TypeError(f"{name} is no number")
    return result


def load(path: str) -> Report:
    """The report in a file. Raises :class:`ConfigurationError` for anything else."""
    remedy = "name a file that `pyvmm validate --json` wrote"
    data = read_json(path, _MOST_MIB, remedy)
    if not isinstance(data, dict) or "schema" not in data:
        raise ConfigurationError(path, "it is no report of pyvmm validate", remedy)
    if data["schema"] != SCHEMA:
        raise ConfigurationError(
            path,
            f"it has schema {data['schema']!s:.40}, not {SCHEMA}",
            "make it again with this version of pyvmm",
        )
    try:
        machine = dict(data["machine"])
        if not isinstance(machine.get("parameters") or {}, dict):
            raise TypeError("parameters is no object")
        results = tuple(result_from_json(each) for each in data["results"])
        return Report(machine, int(data["seed"]), data["duration_s"], results)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        cause = f"it is damaged ({type(error).__name__}: {error!s:.100})"
        raise ConfigurationError(path, cause, remedy) from None


def differing_facts(one: dict[str, Any], other: dict[str, Any]) -> Sequence[str]:
    """In words, what tells two machines apart; empty when nothing does."""
    different = []
    for name in ("kernel", "cpu", "cpus", "kvm_modules"):
        if one.get(name) != other.get(name):
            different.append(f"{name} {_plain(one.get(name))}, here {_plain(other.get(name))}")
    if one.get("kvm_modules") != other.get("kvm_modules"):
        return different  # other modules have other parameters
    before, now = one.get("parameters") or {}, other.get("parameters") or {}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            different.append(f"{name}={before.get(name)}, here {now.get(name)}")
    return different


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
