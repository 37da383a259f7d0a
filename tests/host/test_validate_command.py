"""``pyvmm validate`` on this machine: results, outputs, choices, exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pyvmm_command import pyvmm

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture(scope="module")
def whole() -> dict[str, object]:
    """The whole catalogue, once: 16 s on two idle CPUs."""
    outcome = pyvmm("validate", "--json", "-j", 2, timeout_s=240)
    report: dict[str, object] = outcome.json
    results = report["results"]
    assert isinstance(results, list)
    bad = [each for each in results if each["state"] in ("fail", "hang", "crash")]
    assert not bad, "\n".join(map(str, bad))
    assert outcome.status == 0, outcome.stderr
    return report


def test_every_case_passes_or_says_what_is_missing(whole: dict[str, object]) -> None:
    results = whole["results"]
    assert isinstance(results, list)
    passed = [each["name"] for each in results if each["state"] == "pass"]
    assert len(passed) >= 60, passed
    assert not [each for each in results if each["state"] == "skip" and not each["message"]]


def test_json_is_whole(whole: dict[str, object]) -> None:
    assert whole["schema"] == 1
    assert {"pyvmm", "machine", "seed", "duration_s", "summary", "results"} <= set(whole)
    machine = whole["machine"]
    assert isinstance(machine, dict) and machine["kernel"] and "kvm_modules" in machine


def test_one_case_by_its_id() -> None:
    outcome = pyvmm("validate", "-k", "MR4", "--json")
    assert outcome.status == 0
    assert [each["id"] for each in outcome.json["results"]] == ["MR4"]


def test_the_order_is_repeatable() -> None:
    def order(seed: int) -> list[str]:
        outcome = pyvmm("validate", "-k", "MR6 or MR9", "--ktap", "--shuffle", seed, "-j", 1)
        assert outcome.status == 0
        assert f"# seed {seed}" in outcome.stdout
        lines = outcome.stdout.splitlines()
        return [line.split()[2] for line in lines if line.startswith("ok ")]

    assert order(5) == order(5) != order(6)
    assert sorted(order(5)) == sorted(order(6))


def test_json_lines_come_as_it_happens() -> None:
    outcome = pyvmm("validate", "-k", "MR6", "--json-lines", "--seed", 9, "-j", 1)
    assert outcome.status == 0
    first, *middle, last = map(json.loads, outcome.stdout.splitlines())
    assert (first["schema"], first["seed"]) == (1, 9)
    told = [each.get("started") or each["ended"]["name"] for each in middle]
    assert told == [name for name in first["cases"] for _ in range(2)]
    assert set(last) == {"duration_s"}


def test_what_the_machine_can_see_of_races_comes_first() -> None:
    words = ("validate", "-k", "MR7")
    data = pyvmm(*words, "--json").json
    (result,) = data["results"]
    if result["message"].startswith("two_cpus"):
        pytest.skip(result["message"])
    seen = r"[\d,]+ of [\d,]+ discards found the vCPU inside the guest"
    assert re.search(seen, data["machine"]["races"]) or "guests" in data["machine"]["races"]
    assert re.fullmatch(r"[\d,]+ of [\d,]+ calls began while another went on", result["detail"])
    assert pyvmm(*words).stdout.splitlines()[1].startswith("races: ")
    assert pyvmm(*words, "--ktap").stdout.splitlines()[3].startswith("# races: ")
    first = json.loads(pyvmm(*words, "--json-lines").stdout.splitlines()[0])
    assert first["machine"]["races"]
    # Nothing is measured for cases that are about something else.
    assert pyvmm("validate", "-k", "MR6", "--json").json["machine"]["races"] == ""


def test_a_table_for_people() -> None:
    outcome = pyvmm("validate", "-k", "memory_regions or PC1")
    assert outcome.status == 0
    assert "memory_regions" in outcome.stdout
    assert "\x1b" not in outcome.stdout
    assert "seed" in outcome.stdout.splitlines()[0]


def test_nothing_could_run() -> None:
    outcome = pyvmm("validate", "-k", "MR10 and hugetlb and slots=4")
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if free.exists() and int(free.read_text()) > 2:
        pytest.skip("there are hugetlb pages")
    assert outcome.status == 4
    assert "hugetlb" in outcome.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-k", "MR99"), "did you mean MR"),
        (("-k", "memory_region"), ""),
        (("-k", "xyzzy"), "--list"),
        (("-k", "(MR1"), "bracket"),
        (("-j", "0"), "0 is not a number from 1 to 256"),
        (("-j", "x"), "x is not a number"),
        (("--backend", "sev"), "invalid choice"),
        (("--shuffle", "x"), "x is not a number"),
        (("--baseline", "/nowhere/at/all"), "No such file"),
        (("--baseline", "/dev/null"), "not JSON"),
        (("--baseline", ""), "a file without a name: No such file"),
        (("--replay", ""), "a file without a name: No such file"),
        (("--json", "--ktap"), "not allowed with"),
        (("--seed", "1", "--shuffle", "2"), "a run has one seed"),
        (("--json-lines", "--baseline", "/dev/null"), "lines are not compared"),
        (("--junit", "/nowhere/at/all"), "--junit /nowhere/at/all: No such file"),
        (("--junit", "/"), "--junit /: Is a directory"),
        (("--kcidb", "/nowhere/at/all", "--kcidb-origin", "me"), "--kcidb /nowhere/at/all"),
        (("--kcidb", "/dev/null"), "--kcidb-origin NAME"),
        (("--kcidb", "/dev/null", "--kcidb-origin", "Me"), "lower-case letters"),
        (("--kcidb", "/dev/null", "--kcidb-origin", "me", "--kcidb-build", "7"), "want ORIGIN:ID"),
        (("--kcidb-build", "me:7"), "there is no --kcidb"),
        (("--coverage", "/nowhere/at/all"), "no such folder"),
    ],
)
def test_bad_words_are_one_line(words: tuple[str, ...], said: str) -> None:
    if said:
        pyvmm("validate", *words).error(2, said)
    else:
        assert pyvmm("validate", "--list", *words).status == 0


def test_words_that_are_wrong_empty_no_file(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text("earlier")
    pyvmm("validate", "--seed", 1, "--shuffle", 2, "--junit", junit).error(2, "leave one")
    pyvmm("validate", "--coverage", tmp_path / "no", "--junit", junit).error(2, "no such folder")
    assert junit.read_text() == "earlier"


def test_files_for_other_systems(tmp_path: Path) -> None:
    junit, kcidb = tmp_path / "junit.xml", tmp_path / "kcidb.json"
    files = ("--junit", junit, "--kcidb", kcidb, "--kcidb-origin", "me", "--kcidb-build", "me:7")
    outcome = pyvmm("validate", "-k", "MR6", "--json", *files)
    assert outcome.status == 0
    results = outcome.json["results"]
    top = ElementTree.fromstring(junit.read_text())
    assert [each.get("name") for each in top.iter("testcase")] == [each["name"] for each in results]
    tests = json.loads(kcidb.read_text())["tests"]
    assert [(each["status"], each["build_id"]) for each in tests] == [("PASS", "me:7")] * len(
        results
    )
    assert all(each["start_time"].startswith("20") for each in tests)
    # Nothing runs, and nothing is overwritten, where a file has two purposes or no room.
    pyvmm("validate", "-k", "MR6", *files[:3], junit, *files[4:]).error(2, "it is --junit's file")
    assert ElementTree.fromstring(junit.read_text()).get("failures") == "0"
    full = pyvmm("validate", "-k", "MR6", "--junit", "/dev/full")
    assert full.status == 2 and "pass" in full.stdout
    assert full.stderr.startswith("pyvmm: --junit /dev/full: No space left"), full


def test_compared_with_an_earlier_run(tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    choice = ("-k", "MR6 or MR9", "--shuffle", 3)
    first = pyvmm("validate", *choice, "--json")
    file.write_text(first.stdout)
    outcome = pyvmm("validate", *choice, "--baseline", file)
    assert outcome.status == 0
    assert "cases are as they were" in outcome.stdout
    assert "another machine" not in outcome.stdout

    data = first.json
    data["machine"]["kernel"] = "5.0"
    data["results"][0].update(state="fail", message="it was wrong")
    data["results"] = data["results"][:-1]
    file.write_text(json.dumps(data))
    outcome = pyvmm("validate", *choice, "--baseline", file)
    assert outcome.status == 0
    assert "another machine or kernel: kernel 5.0, here" in outcome.stdout
    assert "fixed (1):" in outcome.stdout and "was: it was wrong" in outcome.stdout
    assert "1 case only in now" in outcome.stdout
    changes = pyvmm("validate", *choice, "--json", "--baseline", file).json["baseline"]
    assert changes["changes"]["fixed"] == [data["results"][0]["name"]]

    data["schema"] = 2
    file.write_text(json.dumps(data))
    pyvmm("validate", *choice, "--baseline", file).error(2, "schema 2, not 1")
