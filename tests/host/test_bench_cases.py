"""``pyvmm bench`` on /dev/kvm: every case runs, splits add up, and bad words are one line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from pyvmm_command import pyvmm

from pyvmm.bench import conversions, exits, lifecycle
from pyvmm.bench.measure import Bench, Case, run, select
from pyvmm.errors import ConfigurationError
from pyvmm.native import lib

ALL = [*exits.benches(), *conversions.benches(), *lifecycle.benches()]


def name_of(bench: Bench) -> str:
    return bench.cases[0].name


@pytest.mark.parametrize("bench", ALL, ids=name_of)
def test_every_case_runs_or_says_why_not(bench: Bench, no_leak: None) -> None:
    result = run([bench], 0.01)
    assert [each.name for each in (*result.cases, *result.skipped)] == [
        case.name for case in bench.cases
    ]
    for case in result.cases:
        assert case.ns > 0 and case.floor_ns > 0
        assert case.ci[0] <= case.ratio <= case.ci[1]
        assert case.samples > 0
        values = list(case.percentiles.values())
        assert values == sorted(values)
    for skipped in result.skipped:
        assert skipped.reason


def test_names_are_unique() -> None:
    names = [case.name for bench in ALL for case in bench.cases]
    assert len(names) == len(set(names))


def test_the_split_of_a_conversion_adds_up() -> None:
    """The parts come from other batches than the whole."""
    chosen = [
        bench
        for bench in select(conversions.benches(), "emulated")
        if "touch" in name_of(bench) and bench.pinned and len(bench.cases) == 3
    ]
    assert chosen
    result = run(chosen, 6)
    whole, *directions = result.cases
    for case in directions:
        assert sum(case.split.values()) == pytest.approx(case.ns, rel=0.05)
    mean = sum(sum(case.split.values()) for case in directions) / 2
    assert mean == pytest.approx(whole.ns, rel=0.05)


def test_conversions_leave_the_pages_shared() -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        machine = conversions._machine(stack, "emulated", conversions._TOUCH)
        guests = conversions.Guests(machine)
        guests.bare_convert(0, 8, lib.BARE_UNTIMED)
        guests.convert(0, 8)
        assert machine.memory.regions[0].private_ranges() == []
        assert machine.memory.conversions().to_private == 6  # 4 to warm up


def test_a_cpu_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--cpu 4095"):
        run([Bench((Case("x", "x"),), lambda stack: None)], 1, cpu=4095)


# ---- the command ----


def test_json_is_the_schema_that_is_promised(tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    words = ("bench", "exits", "-k", "port_out_c", "--seconds", "0.2")
    data = pyvmm(*words, "--json", "--report", report).json
    assert data["schema"] == 1 and data["host"]["kernel"] and data["cases"]
    for case in data["cases"]:
        assert set(case) >= {"name", "floor_ns", "ns", "ratio", "ci", "percentiles", "split"}
        assert list(case["percentiles"]) == ["min", "p50", "p90", "p99", "p999", "max"]
    assert report.read_text().startswith("<!doctype html>")
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(data))
    outcome = pyvmm("bench", "compare", tmp_path / "a", tmp_path / "b", "--json")
    assert outcome.status == 0
    assert {each["verdict"] for each in outcome.json["changes"]} <= {"same", "cannot tell"}


def test_text_and_csv() -> None:
    words = ("bench", "exits", "-k", "port_out_c", "--seconds", "0.2")
    text = pyvmm(*words)
    assert text.status == 0 and text.stdout.startswith("VM-EXIT")
    rows = list(csv.DictReader(io.StringIO(pyvmm(*words, "--csv").stdout)))
    assert [row["name"] for row in rows] == ["port_out_c", "port_out_coalesced"]
    assert all(float(row["ratio"]) > 0 for row in rows)


def test_the_list_measures_nothing() -> None:
    outcome = pyvmm("bench", "all", "--list")
    assert outcome.status == 0
    assert [line.split()[0] for line in outcome.stdout.splitlines()] == [
        case.name for bench in ALL for case in bench.cases
    ]


def test_two_environments_by_turns() -> None:
    words = ("--env", "PYVMM_NOTHING=1", "--seconds", "0.2", "--repeat", "2", "--json")
    outcome = pyvmm("bench", "ab", "exits", "-k", "port_in_c", *words)
    assert outcome.status in (0, 1)
    assert [each["name"] for each in outcome.json["changes"]] == ["port_in_c"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("exits", "-k", "nonsense"), "no case"),
        (("exits", "--seconds", "0"), "--seconds"),
        (("exits", "--seconds", "nan"), "--seconds"),
        (("exits", "--cpu", "4095"), "--cpu"),
        (("exits", "--report", "/nonexistent/r.html"), "--report"),
        (("nonsense",), "nonsense"),
        (("ab",), "--kernel"),
        (("ab", "--kernel", "one"), "--kernel"),
        (("ab", "--env", "NOVALUE"), "NOVALUE"),
        (("ab", "--env", "A=1", "--repeat", "0"), "--repeat"),
        (("compare", "x"), "B.json"),
    ],
)
def test_bad_words_are_one_line(words: tuple[str, ...], said: str) -> None:
    pyvmm("bench", *words).error(2, said)


def test_what_cannot_run_here_is_skipped_with_its_reason() -> None:
    """Where there is no hypercall, the case alone is a skip, not a failure."""
    outcome = pyvmm("bench", "exits", "-k", "hypercall", "--seconds", "0.1")
    if outcome.status == 4:
        assert "hypercall" in outcome.stderr
    else:
        assert outcome.status == 0 and "hypercall" in outcome.stdout
