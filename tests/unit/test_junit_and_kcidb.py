"""JUnit XML and KCIDB: files that other systems read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from pyvmm.errors import ConfigurationError
from pyvmm.host import build_id, kernel_build_id
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results import junit, kcidb
from pyvmm.validate.results.kcidb import Build
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import all_cases

MACHINE: dict[str, Any] = {
    "kernel": "6.12.1",
    "cpu": "a CPU",
    "cpus": 2,
    "kvm_modules": ["kvm_amd"],
    "parameters": {"kvm_amd.npt": "1"},
    "races": "",
}
FIXED = KnownBug("0123456789ab", "KVM: Do it right", "6.18")
UNFIXED = KnownBug("", "it is wrong", "7.3")
BUILD = Build("tester", identity="0a1b", release="6.12.1", architecture="x86_64")


def result(name: str, state: State, message: str = "", **more: Any) -> CaseResult:
    given = CaseResult(name, name.split(".")[0], "a title", "tests", state, message)
    return replace(given, **more)


RESULTS = (
    result("A1.passes", State.PASS, detail="5 lost races", duration_s=0.5),
    result("A2.fails[gpa=4G]", State.FAIL, "seen 1", detail="page 7"),
    result("A3.hangs", State.HANG, "no end after 60 s"),
    result("A4.crashes", State.CRASH, "ended by SIGBUS"),
    result("B1.skips", State.SKIP, "hugetlb: none", subject="others"),
    result("B2.known", State.KNOWN, "it spins", bug=FIXED, subject="others"),
    result("B3.known", State.KNOWN, "it lies", bug=UNFIXED, subject="others"),
)
NOT_RUN = "did not run: the cases that failed had taken too long"
REPORT = Report(MACHINE, 7, 12.5, RESULTS, not_run=("C1.late", "C2.later[n=1]"))


def parsed(report: Report, **more: bool) -> ElementTree.Element:
    return ElementTree.fromstring(junit.to_xml({"": report}, **more))


# ---- JUnit ----


def test_suites_are_counted() -> None:
    top = parsed(REPORT)
    names = ("tests", "failures", "errors", "skipped")
    assert [top.get(name) for name in names[:3]] == ["9", "2", "3"]
    counts = {suite.get("name"): [suite.get(name) for name in names] for suite in top}
    assert counts == {
        "pyvmm.tests": ["4", "2", "1", "0"],
        "pyvmm.others": ["3", "0", "0", "3"],
        "pyvmm.did_not_run": ["2", "0", "2", "0"],
    }
    properties = {each.get("name"): each.get("value") for each in top[0].iter("property")}
    assert properties["kernel"] == "6.12.1" and properties["kvm_amd.npt"] == "1"
    assert properties["seed"] == "7"


def test_what_became_of_each_case() -> None:
    seen = {}
    for each in parsed(REPORT).iter("testcase"):
        inside = each[0]
        seen[each.get("name")] = (inside.tag, inside.get("type"), inside.get("message"))
    assert seen == {
        "A1.passes": ("system-out", None, None),
        "A2.fails[gpa=4G]": ("failure", "fail", "seen 1"),
        "A3.hangs": ("failure", "hang", "no end after 60 s"),
        "A4.crashes": ("error", "crash", "ended by SIGBUS"),
        "B1.skips": ("skipped", None, "hugetlb: none"),
        "B2.known": ("skipped", "xfail", f"it spins; {FIXED}"),
        "B3.known": ("skipped", "xfail", f"it lies; {UNFIXED}"),
        "C1.late": ("error", "missing", NOT_RUN),
        "C2.later[n=1]": ("error", "missing", NOT_RUN),
    }
    first = parsed(REPORT).find(".//testcase")
    assert first is not None and first.get("time") == "0.5000"
    assert parsed(REPORT).findtext(".//failure") == "page 7"


#: What may stand in each element, and which attributes it has: junit-10.xsd of Jenkins' xUnit
#: plugin, which refuses a file with anything else.
_COUNTS = {"name", "tests", "failures", "errors", "time"}
_SCHEMA: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, _COUNTS),
    "testsuite": ({"properties", "testcase"}, _COUNTS | {"skipped", "timestamp", "hostname", "id"}),
    "properties": ({"property"}, set()),
    "property": (set(), {"name", "value"}),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name", "time", "classname", "group"},
    ),
    "skipped": (set(), {"type", "message"}),
    "failure": (set(), {"type", "message"}),
    "error": (set(), {"type", "message"}),
    "system-out": (set(), set()),
}


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_that_the_schema_has_not(strict: bool) -> None:
    for each in parsed(REPORT, strict=strict).iter():
        inside, attributes = _SCHEMA[each.tag]
        assert {child.tag for child in each} <= inside
        assert set(each.keys()) <= attributes, each.tag


def test_strictness_makes_failures_of_known_bugs() -> None:
    top = parsed(REPORT, strict=True)
    assert top.get("failures") == "4"
    assert [suite.get("skipped") for suite in top] == ["0", "1", "0"]


def test_a_run_of_nothing_is_a_document() -> None:
    top = parsed(Report(MACHINE, 7, 0.0, ()))
    assert (top.tag, top.get("tests"), len(top)) == ("testsuites", "0", 0)


def test_every_character_there_is_can_stand_in_a_message() -> None:
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    failed = result("A1.a]]>", State.FAIL, f'"<&\n{text}', detail=text)
    top = parsed(Report(MACHINE, 7, 1.0, (failed,)))
    failure = top.find(".//failure")
    assert failure is not None and failure.text is not None
    assert (failure.get("message") or "").startswith('"<&\n\\x00\\x01')
    assert "\\x1b" in failure.text and "\\ufffe" in failure.text and "\U0001f600" in failure.text


def test_reports_of_several_kernels_have_suites_of_their_own() -> None:
    other = Report({**MACHINE, "kernel": "6.13"}, 8, 1.0, RESULTS[:1])
    top = ElementTree.fromstring(junit.to_xml({"before": REPORT, "now a=1": other}))
    assert [suite.get("name") for suite in top] == [
        "pyvmm.before.tests",
        "pyvmm.before.others",
        "pyvmm.before.did_not_run",
        "pyvmm.now a=1.tests",
    ]
    assert (top.get("tests"), top.get("time")) == ("10", "13.500")
    kernel = top[3].find("properties/property[@name='kernel']")
    assert kernel is not None and kernel.get("value") == "6.13"


# ---- KCIDB ----


def checked(
    report: Report, build: Build = BUILD, started: dict[str, float] | None = None
) -> dict[str, Any]:
    """As KCIDB's own library takes it, in its first and in its newest version of the schema."""
    kcidb_io = pytest.importorskip("kcidb_io")
    data: dict[str, Any] = kcidb.to_json(report, build, "run1", started)
    data = json.loads(json.dumps(data))
    kcidb_io.schema.V5_0.validate(data)
    newest = kcidb_io.schema.LATEST.upgrade(data)
    assert kcidb_io.schema.LATEST.is_valid_exactly(newest)
    return data


def test_statuses_and_known_bugs_as_incidents() -> None:
    data = checked(REPORT, started={"A1.passes": 1.0e9})
    assert [(each["path"], each["status"]) for each in data["tests"]] == [
        ("pyvmm.A1.passes", "PASS"),
        ("pyvmm.A2.fails.gpa_4G", "FAIL"),
        ("pyvmm.A3.hangs", "FAIL"),
        ("pyvmm.A4.crashes", "ERROR"),
        ("pyvmm.B1.skips", "SKIP"),
        ("pyvmm.B2.known", "FAIL"),
        ("pyvmm.B3.known", "FAIL"),
        ("pyvmm.C1.late", "MISS"),
        ("pyvmm.C2.later.n_1", "MISS"),
    ]
    assert len({each["id"] for each in data["tests"]}) == 9
    first, second = data["tests"][:2]
    assert first["start_time"] == "2001-09-09T01:46:40+00:00"
    assert "start_time" not in second and second["log_excerpt"] == "seen 1\npage 7"
    assert first["environment"] == {
        "comment": "a CPU",
        "misc": {"cpus": 2, "kvm_modules": ["kvm_amd"], "parameters": {"kvm_amd.npt": "1"}},
    }
    issues = {each["id"]: each["report_subject"] for each in data["issues"]}
    assert issues["tester:0123456789ab"] == FIXED.title and UNFIXED.title in issues.values()
    of = {each["test_id"]: each["issue_id"] for each in data["incidents"]}
    assert of[data["tests"][5]["id"]] == "tester:0123456789ab"
    assert set(of.values()) == set(issues)


def test_reports_of_several_kernels_are_one_object() -> None:
    kcidb_io = pytest.importorskip("kcidb_io")
    builds = (BUILD, replace(BUILD, identity="0a1c"), BUILD)
    parts = [kcidb.to_json(REPORT, build, f"run.{at}") for at, build in enumerate(builds)]
    data = json.loads(json.dumps(kcidb.put_together(parts)))
    kcidb_io.schema.V5_0.validate(data)
    counts = {kind: len(objects) for kind, objects in data.items() if kind != "version"}
    assert counts == {"checkouts": 2, "builds": 2, "tests": 27, "issues": 2, "incidents": 6}
    assert not kcidb.put_together([]).keys() - {"version"}


def test_a_build_that_kcidb_knows_is_named_and_no_other_is_described() -> None:
    data = checked(REPORT, Build("tester", "maestro:6912"))
    assert {each["build_id"] for each in data["tests"]} == {"maestro:6912"}
    assert not {"builds", "checkouts"} & set(data)
    data = checked(REPORT)
    (build,), (checkout,) = data["builds"], data["checkouts"]
    assert {each["build_id"] for each in data["tests"]} == {build["id"]} == {"tester:0a1b"}
    assert build["checkout_id"] == checkout["id"]
    assert set(checkout) == {"id", "origin", "comment"}, "what is not known is left out"


def test_the_kernel_that_runs_here() -> None:
    identity = kernel_build_id()
    if not identity:
        with pytest.raises(ConfigurationError, match="--kcidb-build"):
            kcidb.described("tester", identity, "6.12")
        return
    assert len(identity) >= 16 and int(identity, 16)
    checked(REPORT, kcidb.described("tester", identity, "6.12"))


def test_a_build_id_among_other_notes() -> None:
    def note(name: bytes, kind: int, value: bytes) -> bytes:
        sizes = [len(name), len(value), kind]
        padded = [each + bytes(-len(each) % 4) for each in (name, value)]
        return b"".join(size.to_bytes(4, "little") for size in sizes) + b"".join(padded)

    other = note(b"Linux\0", 3, b"12345")
    assert build_id(other + note(b"GNU\0", 3, b"\xab\xcd\xef")) == "abcdef"
    assert build_id(other + note(b"GNU\0", 1, b"\xab")) == ""
    for length in range(len(other)):
        assert build_id(other[:length]) == ""


def test_every_case_has_a_path_of_its_own() -> None:
    paths = [kcidb.path_of(each.name) for each in all_cases()]
    assert len(set(paths)) == len(paths)
    everything = tuple(result(each.name, State.PASS) for each in all_cases())
    checked(Report(MACHINE, 7, 1.0, everything))


def test_texts_that_kcidb_does_not_take_as_they_are() -> None:
    text = "a\0b\udc80\n" + "x" * 20000
    data = checked(Report(MACHINE, 7, 1.0, (result("A1.a[x=\0]", State.FAIL, text),)))
    (test,) = data["tests"]
    assert test["log_excerpt"].startswith("a\\x00b\\x80\nxxx") and len(test["log_excerpt"]) == 16384


def texts_in(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        yield from texts_in([*data.keys(), *data.values()])
    elif isinstance(data, list):
        for each in data:
            yield from texts_in(each)


def test_what_no_database_takes_is_nowhere() -> None:
    """The schema says nothing of names within "misc"; PostgreSQL takes neither of these two."""
    odd = "a\0\ud800é"
    machine = {**MACHINE, "cpu": odd, "kvm_modules": [odd], "parameters": {odd: odd, "n": 5}}
    case = result(f"A1.a[x={odd}]", State.FAIL, odd, title=odd, detail=odd)
    data = checked(Report(machine, 7, 1.0, (case,), (odd,), why_not_run=odd))
    assert all(text.replace("\n", "").isprintable() for text in texts_in(data))
    misc = data["tests"][0]["environment"]["misc"]
    assert misc["parameters"] == {"a\\x00\\ud800é": "a\\x00\\ud800é", "n": 5}


@pytest.mark.parametrize("words", [("Tester",), ("",), ("a b",), ("a", "6912"), ("a", "a:")])
def test_origins_and_builds_that_cannot_be(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="want"):
        Build(*words)
