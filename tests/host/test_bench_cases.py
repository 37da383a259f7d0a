"""``pyvmm bench`` on /dev/kvm: every case runs, splits add up, and bad words are one line."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyvmm_command import COMMAND, pyvmm

from pyvmm.bench import conversions
from pyvmm.bench.case import Bench, Case, select
from pyvmm.bench.measure import run
from pyvmm.bench.subjects import benches
from pyvmm.bench.turn import Turn
from pyvmm.bench.worker import Worker
from pyvmm.errors import ConfigurationError, PyvmmError, UnsupportedError
from pyvmm.native import ffi, lib

ALL = benches("all")
TOUCH = "emulated_touch"


def name_of(bench: Bench) -> str:
    return str(bench.cases[0].name)


@pytest.mark.parametrize("bench", ALL, ids=name_of)
def test_every_case_runs_or_says_why_not(bench: Bench, no_leak: None) -> None:
    result = run([bench], 0.01)
    assert [*(done.name for done in result.cases), *(each.name for each in result.skipped)] == [
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


def test_processes_share_the_turns(monkeypatch: pytest.MonkeyPatch, no_leak: None) -> None:
    """Each of the first rounds is somebody else's; what they found is put together."""
    processes = set()
    take = Worker.take

    def watched(self: Worker, *words: Any) -> Turn:
        processes.add(self._process.pid)
        return take(self, *words)

    monkeypatch.setattr(Worker, "take", watched)
    chosen = select(ALL, "port_out_c")
    result = run(chosen, 1.0, processes=16)
    assert len(processes) >= 3 and os.getpid() not in processes
    for case in result.cases:
        assert case.samples >= 8 and case.ci[0] <= case.ratio <= case.ci[1]


def test_what_a_process_cannot_do_it_says(no_leak: None) -> None:
    bench = select(ALL, "hypercall")[0]
    with Worker() as worker:
        try:
            turn = worker.take(bench, 0, 0.1, max(os.sched_getaffinity(0)))
        except UnsupportedError as error:
            assert error.thing == "KVM_EXIT_HYPERCALL" and error.remedy
        else:
            assert turn.cases[0].ours > 0


def test_a_process_that_dies_is_one_line(no_leak: None) -> None:
    with Worker() as worker, pytest.raises(PyvmmError, match="ended with status -9"):
        worker._process.kill()
        worker._process.wait()
        worker.take(ALL[0], 0, 0.1, 0)


def test_an_interrupted_measurement_leaves_no_process() -> None:
    words = [*COMMAND, "bench", "exits", "--seconds", "30"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, process_group=0) as process:
        child = psutil.Process(process.pid)
        deadline = time.monotonic() + 30
        while not (workers := child.children()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert workers
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == b""
    _, left = psutil.wait_procs(workers, 30)  # each sees the end of its input
    assert not left


def test_names_are_unique() -> None:
    names = [case.name for bench in ALL for case in bench.cases]
    assert len(names) == len(set(names))


def test_the_split_of_a_conversion_adds_up() -> None:
    """Its parts are a mean of the conversions that the histogram has the times of."""
    (chosen,) = [
        bench for bench in select(conversions.benches(), "emulated") if name_of(bench) == TOUCH
    ]
    with ExitStack() as stack:
        experiment = chosen.set_up(stack)
        latencies = [ffi.new("struct histogram *") for _ in chosen.cases]
        for latency in latencies:
            lib.histogram_clear(latency)
        whole, *measured = experiment.sample(64, latencies)
    assert not whole
    assert len(measured) == 2
    for each, latency in zip(measured, latencies[1:], strict=True):
        parts = chosen.split(each)
        assert set(parts) == {"exit", "refault", "allocate", "switch", "discard", "bookkeeping"}
        assert all(parts[name] > 0 for name in ("exit", "allocate", "switch", "discard"))
        assert latency.count in (31, 32)  # of the last record nobody knows the end
        assert sum(parts.values()) == pytest.approx(latency.sum / latency.count)


def test_conversions_leave_the_pages_shared() -> None:
    with ExitStack() as stack:
        machine = conversions._machine(stack, "emulated", conversions._TOUCH)
        guests = conversions.Guests(machine)
        guests.bare_convert(0, 8, lib.BARE_UNTIMED)
        guests.convert(0, 8)
        assert machine.memory.regions[0].private_ranges() == []
        assert machine.memory.conversions().to_private == 6  # 4 to warm up


def test_a_cpu_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--cpu 4095"):
        never: Any = None  # a bench that is not begun
        run([Bench((Case("x", "x"),), never)], 1, cpu=4095)


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
    assert {row["name"] for row in rows} >= {"port_out_c", "port_out_coalesced"}
    assert all(float(row["ratio"]) > 0 for row in rows)


def test_a_page_that_cannot_be_written_takes_nothing_from_the_rest() -> None:
    words = ("bench", "exits", "-k", "hlt", "--seconds", "0.1", "--json")
    outcome = pyvmm(*words, "--report", "/dev/full")
    outcome.error(2, "--report /dev/full")
    assert outcome.json["cases"][0]["name"] == "hlt"


def test_only_what_was_asked_for_is_shown() -> None:
    """One bench measures both directions."""
    words = ("bench", "conversions", "-k", "emulated_host_to_private_4k", "--seconds", "0.2")
    assert [each["name"] for each in pyvmm(*words, "--json").json["cases"]] == [words[3]]
    assert pyvmm(*words, "--list").stdout.split()[0] == words[3]


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
        assert "KVM_EXIT_HYPERCALL" in outcome.stderr
    else:
        assert outcome.status == 0 and "hypercall" in outcome.stdout
