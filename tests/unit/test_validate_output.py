"""KTAP, JSON and the comparison with an earlier run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyvmm.bench.result import load as bench_load
from pyvmm.errors import ConfigurationError
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results import baseline, ktap, lines, report
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.result import CaseResult, State

MACHINE = {"kernel": "6.12", "cpu": "x", "cpus": 2, "kvm_modules": ["kvm_amd"], "parameters": {}}


def result(name: str = "X1.a", state: State = State.PASS, message: str = "") -> CaseResult:
    return CaseResult(name, name.split(".")[0], "a title", "tests", state, message)


BUG = KnownBug("0123456789ab", "KVM: Do it right", "6.18")


def known(name: str = "X1.a", seen: str = "it hangs") -> CaseResult:
    return replace(result(name, State.KNOWN, seen), bug=BUG)


def test_a_bug_without_a_fix_says_so() -> None:
    unfixed = KnownBug("", "it is wrong", "7.3")
    assert str(unfixed) == 'not fixed up to Linux 7.3 ("it is wrong")'
    assert str(BUG).startswith("fixed by 0123456789ab (")


def test_ktap_lines() -> None:
    assert ktap.heading(2) == ["KTAP version 1", "1..2"]
    assert ktap.lines(1, result()) == ["ok 1 X1.a a title"]
    assert ktap.lines(1, replace(result(), detail="5 lost races")) == [
        "# X1.a: 5 lost races",
        "ok 1 X1.a a title",
    ]
    assert ktap.lines(2, result(state=State.SKIP, message="no KVM")) == [
        "ok 2 X1.a a title # SKIP no KVM"
    ]
    assert ktap.lines(3, result(state=State.FAIL, message="seen 1")) == [
        "# X1.a: seen 1",
        "not ok 3 X1.a a title",
    ]
    assert ktap.lines(4, result(state=State.HANG, message="no end"))[-1].endswith("# HANG")
    assert ktap.lines(5, known()) == [
        'ok 5 X1.a a title # XFAIL it hangs; fixed by 0123456789ab ("KVM: Do it right", Linux 6.18)'
    ]


def test_ktap_of_text_that_would_be_directives_or_lines() -> None:
    lines = ktap.verdict(1, "a # SKIP\nok 2 b", "fail", ["one\nok 2 two", "\x1b[31m"])
    assert len(lines) == 3
    assert lines[-1].count("#") == 0
    assert not any("\n" in line or "\x1b" in line for line in lines)


def saved(tmp_path: Path, *results: CaseResult) -> Path:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json(report.Report(MACHINE, 7, 1.5, results))))
    return path


def test_json_is_read_back(tmp_path: Path) -> None:
    results = result(), result("X2.b", State.FAIL, "bad"), known("X3.c")
    path = saved(tmp_path, *results)
    loaded = report.load(str(path))
    assert loaded.results == results
    assert (loaded.machine, loaded.seed) == (MACHINE, 7)
    data = json.loads(path.read_text())
    assert data["schema"] == report.SCHEMA
    counts = {"known": 1, "pass": 1, "fail": 1, "skip": 0, "hang": 0, "crash": 0}
    assert list(data["summary"].items()) == list(counts.items())
    fix = {"commit": "0123456789ab", "title": "KVM: Do it right", "release": "6.18"}
    assert [each["bug"] for each in data["results"]] == [None, None, fix]
    # Reports from before there were known bugs.
    for each in data["results"]:
        del each["bug"]
    path.write_text(json.dumps(data))
    assert report.load(str(path)).results[0] == result()


CASE = report.result_to_json(result())


def report_with(**fields: Any) -> str:
    """A report in which these are wrong."""
    return json.dumps({**report.to_json(report.Report(MACHINE, 7, 1.5, ())), **fields})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "not JSON"),
        ("[]", "no report"),
        ("{}", "no report"),
        ('{"schema": 99}', "schema 99, not 1"),
        ('{"schema": 1}', "damaged"),
        ('{"schema": 1, "results": [{"state": "odd"}]}', "damaged"),
        ('{"schema": 1, "results": 5, "machine": {}}', "damaged"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        (report_with(seed=float("inf")), "damaged"),
        (report_with(machine={"parameters": [1]}), "parameters is no object"),
        (report_with(results=[1]), "a result is no object"),
        (report_with(results=[{**CASE, "name": []}]), "name is no text"),
        (report_with(results=[{**CASE, "message": 5}]), "message is no text"),
        (report_with(results=[{**CASE, "duration_s": "x"}]), "duration_s is no number"),
        (report_with(results=[{**CASE, "x" * 1000: 1}]), "damaged"),
    ],
)
def test_what_is_no_report_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        report.load(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300
    with pytest.raises(ConfigurationError, match="No such file"):
        report.load(str(tmp_path / "nothing"))


def test_a_file_without_an_end_is_read_up_to_a_limit() -> None:
    for load in (report.load, bench_load):
        with pytest.raises(ConfigurationError, match="more than 64 MiB"):
            load("/dev/zero")


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ((State.PASS, ""), (State.PASS, ""), Change.SAME),
        ((State.PASS, ""), (State.FAIL, "a"), Change.BROKEN),
        ((State.SKIP, "s"), (State.CRASH, "a"), Change.BROKEN),
        ((State.FAIL, "a"), (State.PASS, ""), Change.FIXED),
        ((State.FAIL, "a"), (State.FAIL, "a"), Change.SAME_FAILURE),
        ((State.FAIL, "a"), (State.FAIL, "b"), Change.DIFFERENT),
        ((State.FAIL, "a"), (State.HANG, "a"), Change.DIFFERENT),
        ((State.PASS, ""), (State.SKIP, "s"), Change.NEWLY_SKIPPED),
        ((State.FAIL, "a"), (State.SKIP, "s"), Change.NEWLY_SKIPPED),
        ((State.SKIP, "s"), (State.PASS, ""), Change.NO_LONGER_SKIPPED),
        ((State.SKIP, "s"), (State.SKIP, "other"), Change.SAME),
        ((State.KNOWN, "a"), (State.KNOWN, "a"), Change.SAME_KNOWN),
        ((State.KNOWN, "a"), (State.KNOWN, "b"), Change.DIFFERENT),
        ((State.KNOWN, "a"), (State.PASS, ""), Change.FIXED),
        ((State.PASS, ""), (State.KNOWN, "a"), Change.BROKEN),
        ((State.KNOWN, "a"), (State.HANG, "a"), Change.DIFFERENT),
        ((State.KNOWN, "a"), (State.SKIP, "s"), Change.NEWLY_SKIPPED),
    ],
)
def test_changes(before: tuple[State, str], now: tuple[State, str], change: Change) -> None:
    comparison = baseline.compare([result("X1.a", *before)], [result("X1.a", *now)])
    (difference,) = comparison.differences
    assert difference.change is change
    if change is not Change.NEWLY_SKIPPED:
        assert comparison.worse == (change in (Change.BROKEN, Change.DIFFERENT))


def test_a_comparison_in_words() -> None:
    before = [result("A.a"), result("B.b", State.FAIL, "old"), result("C.c")]
    before.append(known("E.e"))
    now = [result("A.a", State.FAIL, "new"), result("B.b"), result("D.d"), known("E.e")]
    text = "\n".join(baseline.summary(baseline.compare(before, now)))
    assert "broken (1):\n  A.a: new" in text
    assert "fixed (1):\n  B.b: was: old" in text
    assert "same known bug (1):\n  E.e: it hangs; fixed by 0123456789ab (" in text
    assert "1 case only in the baseline: C.c" in text
    assert "1 case only in now: D.d" in text


def test_another_machine_is_said() -> None:
    assert not report.differing_facts(MACHINE, dict(MACHINE))
    other = {**MACHINE, "kernel": "7.3", "parameters": {"kvm_amd.npt": "0"}}
    assert report.differing_facts(MACHINE, other) == [
        "kernel 6.12, here 7.3",
        "kvm_amd.npt=None, here 0",
    ]
    # Another module's parameters are none of this one's.
    other["kvm_modules"] = ["kvm_intel"]
    assert report.differing_facts(MACHINE, other) == [
        "kernel 6.12, here 7.3",
        "kvm_modules kvm_amd, here kvm_intel",
    ]


def test_a_case_that_passed_and_is_skipped_now_is_worse() -> None:
    states = (State.PASS, True), (State.FAIL, False), (State.SKIP, False), (State.KNOWN, False)
    for before, worse in states:
        comparison = baseline.compare([result("X1.a", before)], [result("X1.a", State.SKIP, "s")])
        assert comparison.worse is worse


def test_a_run_that_ends_in_the_middle_is_read_back() -> None:
    told = [
        lines.first(MACHINE, 7, ["X1.a", "X2.b", "X3.c"]),
        lines.started("X1.a"),
        lines.started("X2.b"),
        lines.ended(result("X1.a", State.FAIL, "seen \u2026")),
    ]
    data = "".join(f"{line}\n" for line in told).encode() + b'{"started": "X3'
    transcript = lines.Transcript()
    for at in range(0, len(data), 7):
        transcript.feed(data[at : at + 7])
    assert (transcript.machine, transcript.seed) == (MACHINE, 7)
    assert transcript.planned == ("X1.a", "X2.b", "X3.c")
    assert transcript.results == [result("X1.a", State.FAIL, "seen \u2026")]
    assert list(transcript.running) == ["X2.b"]
    began, ended = transcript.times["X1.a"]
    assert began <= ended
    assert not transcript.whole
    transcript.feed(b'.c", "at": 1}\n' + lines.last(3.0).encode() + b"\n")
    assert transcript.whole and transcript.duration_s == 3.0


@pytest.mark.parametrize("line", ["text", "[]", "{}", '{"ended": {"name": 1}, "at": 1}'])
def test_what_is_no_line_of_a_run_is_one_error(line: str) -> None:
    with pytest.raises(ConfigurationError, match="printed"):
        lines.Transcript().feed(line.encode() + b"\n")
