"""What came of a job, as one JSON object.

``schema`` (1), ``job`` (its name), ``pyvmm`` (version), ``code`` (the digest of its files),
``kernel`` {``name``, ``release``, ``sha256`` (of the bzImage)}, ``report`` (as ``pyvmm validate
--json`` has it), ``planned`` (the names of the cases that were to run), ``problem`` (why the run is
not whole, "" if it is), ``out_of_time``, ``trouble`` (splats, each with the cases that ran),
``kernel_log``, ``files`` {name: text}: the model's scripts that failed, or were played when the
kernel died; and ``counters``: where the kernel counts what KVM executes, a zip file of gcov's
counters from each boot, packed with zlib and in base64.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pyvmm.lab.kernel_log import Splat
from pyvmm.validate.jobs.code import own_code
from pyvmm.validate.kernels.lab_run import LabRun, Trouble
from pyvmm.validate.results import report
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import State

SCHEMA = 1
_SCRIPTS = ("pyvmm-replay-*.json", "pyvmm-running-*.json")
_MOST_SCRIPTS = 100
_LONGEST_SCRIPT = 1 << 20


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The kernel that it ran on; ``sha256`` is that of its bzImage."""

    name: str
    release: str
    sha256: str


@dataclass(frozen=True, slots=True)
class JobResult:
    """``job`` is the job's name; ``files`` are texts that its cases left, by name, and ``code`` is
    that of the pyvmm that ran it."""

    job: str
    kernel: KernelFacts
    run: LabRun
    files: Mapping[str, str]
    code: str = field(default_factory=own_code)
    counters: tuple[bytes, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether a case failed, the kernel's log has trouble, or the kernel died."""
        run = self.run
        return any(each.state.bad for each in run.results) or bool(run.trouble or run.problem)

    @property
    def nothing_ran(self) -> bool:
        return all(each.state is State.SKIP for each in self.run.results)


def scripts_in(folder: Path) -> dict[str, str]:
    """The texts that the model's cases left in their results folder."""
    found = {}
    for path in sorted(path for pattern in _SCRIPTS for path in folder.glob(pattern)):
        if path.is_file() and path.stat().st_size <= _LONGEST_SCRIPT:
            found[path.name] = path.read_text("utf-8", "replace")
        if len(found) == _MOST_SCRIPTS:
            break
    return found


def to_text(result: JobResult) -> str:
    """One line of JSON."""
    from pyvmm import __version__

    run = result.run
    data = {
        "schema": SCHEMA,
        "job": result.job,
        "pyvmm": __version__,
        "code": result.code,
        "kernel": asdict(result.kernel),
        "report": report.to_json(Report(run.machine, run.seed, run.duration_s, run.results)),
        "planned": list(run.planned),
        "problem": run.problem,
        "out_of_time": run.out_of_time,
        "trouble": [asdict(each) for each in run.trouble],
        "kernel_log": list(run.kernel_log),
        "files": dict(result.files),
        "counters": [b64encode(zlib.compress(each)).decode() for each in result.counters],
    }
    return json.dumps(data)


def from_text(text: str) -> JobResult:
    """What :func:`to_text` made, and nothing else."""
    return from_json(json.loads(text))


def from_json(data: dict[str, Any]) -> JobResult:
    """The same of JSON. For anything else it raises what taking it apart does, or ValueError."""
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']}")
    told = data["report"]
    run = LabRun(
        tuple(data["planned"]),
        tuple(report.result_from_json(each) for each in told["results"]),
        told["seed"],
        told["duration_s"],
        told["machine"],
        tuple(_trouble(each) for each in data["trouble"]),
        data["problem"],
        data["out_of_time"],
        tuple(data["kernel_log"]),
    )
    kernel = KernelFacts(**data["kernel"])
    try:
        counters = tuple(zlib.decompress(b64decode(each)) for each in data["counters"])
    except zlib.error as error:
        raise ValueError(str(error)) from None
    files = {_script(name): str(text) for name, text in data["files"].items()}
    return JobResult(data["job"], kernel, run, files, data["code"], counters)


def _script(name: str) -> str:
    """A name as :func:`scripts_in` has it: whoever keeps the file writes where it leads."""
    if "/" in name or not any(fnmatchcase(name, pattern) for pattern in _SCRIPTS):
        raise ValueError(name)
    return name


def _trouble(data: dict[str, Any]) -> Trouble:
    splat = data["splat"]
    told = Splat(splat["title"], tuple(splat["lines"]), tuple(splat["cases"]))
    return Trouble(told, tuple(data["cases"]), data["times"])
