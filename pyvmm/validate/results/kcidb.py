"""A run as KCIDB takes it, the database of the kernel's results at kernelci.org.

The object has the major version 5 of KCIDB's schema, and nothing that came after its first minor
one. What is not known of a kernel, such as the commit that it was built from, is left out. A test's
path is ``pyvmm.PC3.odd_pages.gpa_4G``. A hang is FAIL, a crash of the case's process ERROR, and a
case that did not run MISS. A bug that upstream has fixed is
FAIL, too: an incident says which issue it is, and the issue names the fix.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyvmm.errors import ConfigurationError
from pyvmm.printable import printable
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult, State

_VERSION = {"major": 5, "minor": 0}
_ORIGIN = re.compile(r"[a-z0-9_]+")
_NOT_OF_A_PATH = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_EXCERPT = 16384
_STATUS = {
    State.KNOWN: "FAIL",
    State.PASS: "PASS",
    State.FAIL: "FAIL",
    State.SKIP: "SKIP",
    State.HANG: "FAIL",
    State.CRASH: "ERROR",
}


@dataclass(frozen=True, slots=True)
class Build:
    """A kernel that was tested.

    ``origin`` is who sends the results, as KCIDB knows it. ``id`` is the ID of a build that KCIDB
    knows. Without one the build is described here, and ``identity`` tells it from all others.
    """

    origin: str
    id: str = ""
    identity: str = ""
    release: str = ""
    architecture: str = ""

    def __post_init__(self) -> None:
        if not _ORIGIN.fullmatch(self.origin):
            raise ConfigurationError(
                f"KCIDB origin {self.origin!r}", "want lower-case letters, digits and _ only"
            )
        origin, _, rest = self.id.partition(":")
        if not ((_ORIGIN.fullmatch(origin) and rest and rest.isprintable()) or self.identity):
            raise ConfigurationError(f"KCIDB build {self.id!r}", "want ORIGIN:ID")


def described(origin: str, identity: str, release: str) -> Build:
    """A kernel by its build ID. Raises :class:`ConfigurationError` for one that has none."""
    if not identity:
        raise ConfigurationError(
            f"KCIDB build of Linux {release}",
            "the kernel does not say its build ID",
            "--kcidb-build ORIGIN:ID names the build",
        )
    return Build(origin, "", identity, release, os.uname().machine)


def path_of(name: str) -> str:
    """Where a case stands in KCIDB's tree of tests."""
    plain = name.replace("[", ".").removesuffix("]")
    parts = (_NOT_OF_A_PATH.sub("_", part) for part in f"pyvmm.{plain}".split("."))
    return ".".join(filter(None, parts))


def to_json(
    report: Report, build: Build, run: str, started: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """One object. ``run`` tells this run from all others of this origin; ``started`` has when
    cases began, by name, in seconds since 1970."""
    bugs = dict.fromkeys(result.bug for result in report.results if result.bug is not None)
    told: dict[str, Any] = {"version": _VERSION}
    if not build.id:
        told |= {"checkouts": [_checkout(build)], "builds": [_build(build)]}
    tests = [
        _test(report, build, f"{build.origin}:{run}.{number}", result, started or {})
        for number, result in enumerate(report.results, 1)
    ]
    numbers = range(len(tests) + 1, len(tests) + 1 + len(report.not_run))
    told["tests"] = [
        *tests,
        *(
            {
                **_about(build, f"{build.origin}:{run}.{number}", name),
                "status": "MISS",
                "log_excerpt": _text(f"did not run: {report.why_not_run}")[:_LONGEST_EXCERPT],
            }
            for number, name in zip(numbers, report.not_run, strict=True)
        ),
    ]
    if bugs:
        told["issues"] = [_issue(build.origin, bug) for bug in bugs if bug is not None]
        told["incidents"] = list(_incidents(build.origin, report.results, tests))
    return told


def put_together(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One object of several; a checkout, build or issue that several have is there once."""
    told: dict[str, dict[str, Any]] = {}
    for part in parts:
        for kind, objects in part.items():
            if kind != "version":
                told.setdefault(kind, {}).update({each["id"]: each for each in objects})
    return {
        "version": _VERSION,
        **{kind: list(objects.values()) for kind, objects in told.items()},
    }


def _own_id(build: Build) -> str:
    return build.id or f"{build.origin}:{build.identity}"


def _checkout(build: Build) -> dict[str, Any]:
    return {
        "id": _own_id(build),
        "origin": build.origin,
        "comment": _text(f"Linux {build.release}"),
    }


def _build(build: Build) -> dict[str, Any]:
    return {
        "id": _own_id(build),
        "origin": build.origin,
        "checkout_id": _own_id(build),
        "architecture": build.architecture,
        "comment": _text(f"Linux {build.release}"),
        "status": "PASS",
    }


def _about(build: Build, id: str, name: str) -> dict[str, Any]:
    return {
        "id": id,
        "origin": build.origin,
        "build_id": _own_id(build),
        "path": path_of(name),
    }


def _test(
    report: Report, build: Build, id: str, result: CaseResult, started: Mapping[str, float]
) -> dict[str, Any]:
    from pyvmm import __version__

    test = {
        **_about(build, id, result.name),
        "comment": _text(result.title),
        "status": _STATUS[result.state],
        "duration": round(result.duration_s, 4),
        "environment": _environment(report.machine),
        "misc": {
            "pyvmm": __version__,
            "name": _text(result.name),
            "state": result.state.value,
            "seed": report.seed,
        },
    }
    if result.name in started:
        test["start_time"] = datetime.fromtimestamp(started[result.name], UTC).isoformat()
    if said := "\n".join(filter(None, (result.words, result.detail))):
        test["log_excerpt"] = _text(said)[:_LONGEST_EXCERPT]
    return test


def _environment(machine: Mapping[str, Any]) -> dict[str, Any]:
    cpu = _text(str(machine.get("cpu", "")))
    misc = {
        name: _plain(machine[name])
        for name in ("cpus", "kvm_modules", "parameters")
        if name in machine
    }
    return {**({"comment": cpu} if cpu else {}), **({"misc": misc} if misc else {})}


def _issue_id(origin: str, bug: KnownBug) -> str:
    """By the fix; a bug that nobody has fixed yet has only its title."""
    return f"{origin}:{bug.commit or hashlib.sha256(bug.title.encode()).hexdigest()[:12]}"


def _issue(origin: str, bug: KnownBug) -> dict[str, Any]:
    return {
        "id": _issue_id(origin, bug),
        "version": 1,
        "origin": origin,
        "report_subject": bug.title,
        "culprit": {"code": True, "tool": False, "harness": False},
        "comment": str(bug),
    }


def _incidents(
    origin: str, results: Iterable[CaseResult], tests: Iterable[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    for result, test in zip(results, tests, strict=True):
        if result.bug is not None:
            yield {
                "id": test["id"],
                "origin": origin,
                "issue_id": _issue_id(origin, result.bug),
                "issue_version": 1,
                "test_id": test["id"],
                "present": True,
            }


def _plain(value: Any) -> Any:
    """What the schema lets through and a database does not: a kernel's words may be anything."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return {_text(str(name)): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _text(text: str) -> str:
    return printable(text, keep="\n")
