"""Verdicts, results on file, and what is said about files that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyvmm.bench.comparison import Verdict, compare, merge, to_json
from pyvmm.bench.html import page
from pyvmm.bench.result import BenchResult, CaseResult, Skipped, doubts, from_json, load, reasons
from pyvmm.bench.result import to_json as result_to_json
from pyvmm.cli.bench_text import write_csv
from pyvmm.cli.main import main
from pyvmm.errors import ConfigurationError

PERCENTILES = {"min": 900, "p50": 1000, "p90": 1100, "p99": 2000, "p999": 9000, "max": 90000}


# The least that a case of a file may have.
CASE_DATA = {
    "name": "x",
    "floor_ns": 1.0,
    "ns": 1.0,
    "ratio": 1.0,
    "ci": [1.0, 1.0],
    "percentiles": {},
    "split": {},
}


def case(name: str = "one", ratio: float = 1.0, half: float = 0.005, **more: Any) -> CaseResult:
    ci = (ratio * (1 - half), ratio * (1 + half))
    return CaseResult(name, 1000.0, 1000.0 * ratio, ratio, ci, PERCENTILES, {}, **more)


def result(*cases: CaseResult, **host: Any) -> BenchResult:
    return BenchResult(host, cases)


def verdict(a: CaseResult, b: CaseResult) -> Verdict:
    return compare(result(a), result(b)).changes[0].verdict


@pytest.mark.parametrize(
    ("ratio", "half", "wanted"),
    [
        (1.0, 0.005, Verdict.SAME),
        (1.02, 0.005, Verdict.SAME),  # surely slower, but by less than the threshold
        (1.05, 0.005, Verdict.WORSE),
        (0.95, 0.005, Verdict.BETTER),
        (1.0, 0.2, Verdict.CANNOT_TELL),
        (1.05, 0.2, Verdict.CANNOT_TELL),
        (1.6, 0.2, Verdict.WORSE),
    ],
)
def test_verdicts(ratio: float, half: float, wanted: Verdict) -> None:
    assert verdict(case(), case(ratio=ratio, half=half)) is wanted


def test_only_ratios_count() -> None:
    assert verdict(case(), replace(case(), ns=5000.0, floor_ns=5000.0)) is Verdict.SAME


def test_the_order_of_the_sides_turns_the_verdict_around() -> None:
    slow = case(ratio=1.08)
    assert verdict(case(), slow) is Verdict.WORSE
    assert verdict(slow, case()) is Verdict.BETTER


def test_cases_of_one_side_and_other_machines_are_told() -> None:
    a = result(case("both"), case("left"), kernel="6.1", load_before=[1.0])
    b = result(case("both"), case("right"), kernel="6.2", load_before=[9.0])
    comparison = compare(a, b)
    assert [change.name for change in comparison.changes] == ["both"]
    assert (comparison.only_a, comparison.only_b) == (("left",), ("right",))
    assert comparison.differing == ("kernel: 6.1 and 6.2",)
    assert to_json(comparison)["only_b"] == ["right"]
    assert to_json(comparison)["schema"] == 1


def test_facts_of_one_side_are_one_line() -> None:
    plain = from_json({"schema": 1, "host": {}, "cases": [CASE_DATA]}, "plain")
    comparison = compare(result(case("x"), kernel="6.1", cpu="y"), plain)
    assert comparison.differing == ("only A tells cpu, kernel",)


def test_merging_takes_the_middle_and_widens_for_disagreement() -> None:
    runs = [result(case(ratio=ratio)) for ratio in (1.0, 1.1, 1.2)]
    merged = merge(runs).cases[0]
    assert merged.ratio == 1.1
    assert merged.ci[0] <= 1.0 and merged.ci[1] >= 1.2
    alike = merge([result(case())] * 4).cases[0]
    assert 1 - 0.005 < alike.ci[0] < 1 < alike.ci[1] < 1 + 0.005


def test_a_result_survives_its_json() -> None:
    before = BenchResult(
        {"cpu": "x"},
        (case(title="t", samples=3, warnings=("ratio: what",)),),
        (Skipped("two", "not here"),),
        ("noise",),
    )
    data = json.loads(json.dumps(result_to_json(before)))
    assert data["schema"] == 1
    assert {"name", "floor_ns", "ns", "ratio", "ci", "percentiles", "split"} <= set(
        data["cases"][0]
    )
    assert from_json(data, "x") == before


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ("[]", "no benchmark result"),
        ("{}", "no benchmark result"),
        ('{"schema": 2, "host": {}, "cases": []}', "schema version 2"),
        ('{"schema": "1", "host": {}, "cases": []}', "schema version"),
        ('{"schema": true, "host": {}, "cases": []}', "schema version"),
        ('{"schema": 1, "host": [], "cases": []}', "no benchmark result"),
        ('{"schema": 1, "host": {}, "cases": [5]}', "no benchmark result"),
        ("[" * 100_000, "not JSON"),
        (json.dumps({"schema": 1, "host": {}, "cases": [CASE_DATA, CASE_DATA]}), "twice"),
        ('{"schema": 1, "host": {}}', "no benchmark result"),
        ('{"schema": 1, "host": {}, "cases": [{"name": "x"}]}', "no benchmark result"),
        (
            '{"schema": 1, "host": {}, "cases": [{"name": "x", "floor_ns": 1, "ns": 1, '
            '"ratio": NaN, "ci": [1, 1], "percentiles": {}, "split": {}}]}',
            "no benchmark result",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, word: str
) -> None:
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text(text)
    good.write_text(json.dumps(result_to_json(result(case()))))
    with pytest.raises(ConfigurationError, match=word):
        load(str(bad))
    assert main(["bench", "compare", str(bad), str(good)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(bad) in said and word in said


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "/nonexistent", "/nonexistent"]) == 2
    assert "/nonexistent" in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (1.1, 1), (0.9, 0)])
def test_exit_status_of_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: float, status: int
) -> None:
    files = []
    for name, each in (("a", case()), ("b", case(ratio=ratio))):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(result_to_json(result(each, case("only_" + name)))))
        files.append(str(file))
    assert main(["bench", "compare", *files]) == status
    text = capsys.readouterr().out
    assert "only in A: only_a" in text and "only in B: only_b" in text
    assert main(["bench", "compare", "--json", *files]) == status
    assert json.loads(capsys.readouterr().out)["changes"][0]["name"] == "one"


def test_nothing_in_common_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        text = json.dumps(result_to_json(result(case(name))))
        (tmp_path / f"{name}.json").write_text(text)
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    assert main(["bench", "compare", *files]) == 2
    assert "no case in common" in capsys.readouterr().err


def test_the_same_doubt_is_one_line() -> None:
    noisy = replace(case("a"), warnings=("ratio: known only to within 9.0%", "max: preempted"))
    also = replace(case("b"), warnings=("max: preempted",))
    assert list(doubts(BenchResult({}, (noisy, also, case("c")), (), ("much steal",)))) == [
        "ratio of a: known only to within 9.0%",
        "max (preempted) of a, b",
        "much steal",
    ]


def test_the_same_reason_is_one_line() -> None:
    skipped = (Skipped("a", "no x"), Skipped("b", "no y"), Skipped("c", "no x"))
    assert reasons(skipped) == {"no x": ["a", "c"], "no y": ["b"]}


# ---- the page ----


def test_the_page_needs_nothing_else_and_escapes_what_it_shows() -> None:
    full = replace(
        case("<script>alert(1)</script>", buckets=((900, 5), (1000, 90), (90000, 1))),
        split={"exit": 700.0, "discard": 300.0, "bookkeeping": -5.0},
        warnings=("ratio: <b>",),
        promise="at most 2% more",
        kept=False,
    )
    text = page(BenchResult({"cpu": "<i>"}, (full,), (Skipped("x", "<u>"),)), "bench & more")
    assert "<script" not in text and "<b>" not in text and "<i>" not in text and "<u>" not in text
    assert "http" not in text.replace("http-equiv", "") and "src=" not in text
    assert "prefers-color-scheme: dark" in text
    assert "<svg" in text and "not kept" in text


def test_the_page_of_nothing() -> None:
    assert "<h2>The machine</h2>" in page(BenchResult({}, ()), "bench")


def test_csv_has_the_split_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    write_csv(result(replace(case(), split={"exit": 7.0}), case("two")), sys.stdout)
    head, one, two = capsys.readouterr().out.splitlines()
    assert head.endswith(",split_exit") and one.endswith(",7.0") and two.endswith(",")
