"""A run as JUnit XML, as systems for continuous integration read it.

One test suite per subject, of each report. A hang is a failure, a crash of the case's process an
error. A bug that upstream has fixed is skipped, type "xfail", and a failure for who asks for
strictness. A case that did not run is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pyvmm.printable import printable
from pyvmm.validate.results.report import Report
from pyvmm.validate.results.result import CaseResult, State

_SUITE = "pyvmm"


def to_xml(reports: Mapping[str, Report], *, strict: bool = False) -> bytes:
    """The document, in UTF-8; ``strict`` makes failures of known bugs.

    Reports have the names that tell their suites apart, or one has "".
    """
    top = Element("testsuites", name=_SUITE)
    top.set("time", f"{sum(report.duration_s for report in reports.values()):.3f}")
    for name, report in reports.items():
        suites = _suites(f"{_SUITE}.{name}" if name else _SUITE, report, strict)
        for suite in suites:
            suite.insert(0, _properties(report))
        top.extend(suites)
    for name in ("tests", "failures", "errors"):  # Jenkins' schema has no "skipped" here
        top.set(name, str(sum(int(suite.get(name, "0")) for suite in top)))
    ElementTree.indent(top)
    document: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _suites(prefix: str, report: Report, strict: bool) -> list[Element]:
    """One for each subject, and one for what did not run."""
    subjects: dict[str, list[CaseResult]] = {}
    for result in report.results:
        subjects.setdefault(result.subject, []).append(result)
    suites = [
        _suite(_text(f"{prefix}.{subject}"), results, strict)
        for subject, results in subjects.items()
    ]
    if report.not_run:
        suites.append(_not_run(_text(f"{prefix}.did_not_run"), report))
    return suites


def _suite(name: str, results: Sequence[CaseResult], strict: bool) -> Element:
    seconds = sum(result.duration_s for result in results)
    return _counted(name, seconds, [_test_case(name, result, strict) for result in results])


def _not_run(name: str, report: Report) -> Element:
    cases = []
    for each in report.not_run:
        case = Element("testcase", classname=name, name=_text(each), time="0")
        message = _text(f"did not run: {report.why_not_run}")
        SubElement(case, "error", message=message, type="missing")
        cases.append(case)
    return _counted(name, 0.0, cases)


def _counted(name: str, seconds: float, cases: Iterable[Element]) -> Element:
    suite = Element("testsuite", name=name, time=f"{seconds:.3f}")
    suite.extend(cases)
    suite.set("tests", str(len(suite)))
    for plural, one in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(plural, str(len(suite.findall(f"testcase/{one}"))))
    return suite


def _properties(report: Report) -> Element:
    from pyvmm import __version__

    facts = {"pyvmm": __version__, "seed": report.seed}
    facts |= {name: value for name, value in report.machine.items() if isinstance(value, str | int)}
    properties = Element("properties")
    for name, value in (facts | report.machine.get("parameters", {})).items():
        SubElement(properties, "property", name=_text(name), value=_text(str(value)))
    return properties


def _test_case(suite: str, result: CaseResult, strict: bool) -> Element:
    case = Element(
        "testcase", classname=suite, name=_text(result.name), time=f"{result.duration_s:.4f}"
    )
    outcome = _outcome(result, strict)
    if outcome is not None:
        outcome.text = _text(result.detail) if result.detail else None
        case.append(outcome)
    elif result.detail:
        SubElement(case, "system-out").text = _text(result.detail)
    return case


def _outcome(result: CaseResult, strict: bool) -> Element | None:
    """What stands in a case that did not just pass."""
    message = _text(result.words)
    if result.state is State.PASS:
        return None
    if result.state is State.SKIP:
        return Element("skipped", message=message)
    if result.state is State.KNOWN and not strict:
        return Element("skipped", message=message, type="xfail")
    kind = "error" if result.state is State.CRASH else "failure"
    return Element(kind, message=message, type=result.state.value)


def _text(text: str) -> str:
    """With what XML cannot hold written as an escape."""
    return printable(text, keep="\n")
