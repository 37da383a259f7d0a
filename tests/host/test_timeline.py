"""``--timeline``: one file with exits, conversions and kicks, and the kernel's view beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyvmm_command import pyvmm, with_mounts
from snippets import PRIVATE, SHARED, out_loop, touches

from pyvmm import Machine
from pyvmm.errors import UnsupportedError
from pyvmm.trace.timeline import TimelineFile, call_name
from pyvmm.trace.tracefs import KernelTrace


def events(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return found


def named(found: list[dict[str, Any]], group: int, kind: str) -> list[dict[str, Any]]:
    return [each for each in found if each["pid"] == group and each["ph"] == kind]


def has_tracefs() -> bool:
    try:
        KernelTrace().close()
    except UnsupportedError:
        return False
    return True


def timeline_of(machine: Machine, path: Path) -> list[dict[str, Any]]:
    with TimelineFile(str(path)) as timeline:
        machine.log_exits(timeline.exit)
        machine.run(20)
        timeline.finish(machine, tuple)
    return events(path)


def test_every_exit_is_there_with_its_conversion(tmp_path: Path) -> None:
    with Machine(touches(PRIVATE, SHARED, 0x80000)) as machine:
        found = timeline_of(machine, tmp_path / "t.json")
    slices = named(found, 1, "X")
    assert [each["name"] for each in slices if each["cat"] == "exit"] == ["mmio"] * 3 + ["io"]
    assert [each["name"] for each in slices if each["cat"] == "conversion"] == [
        "to private",
        "to shared",
    ]
    exits = [each for each in slices if each["cat"] == "exit"]
    guests = [each for each in slices if each["name"] == "KVM_RUN"]
    assert len(guests) == len(exits) - 1
    for before, inside, after in zip(exits, guests, exits[1:], strict=False):
        assert before["ts"] + before["dur"] == pytest.approx(inside["ts"], abs=0.002)
        assert inside["ts"] + inside["dur"] == pytest.approx(after["ts"], abs=0.002)


def test_each_vcpu_has_a_row(tmp_path: Path) -> None:
    with Machine(touches(PRIVATE), vcpus=2) as machine:
        found = timeline_of(machine, tmp_path / "t.json")
    assert {each["tid"] for each in named(found, 1, "X")} == {0, 1}


def test_a_kick_is_there(tmp_path: Path) -> None:
    with Machine(out_loop()) as machine:
        machine.log_exits(lambda index, record: machine.kick())
        with TimelineFile(str(tmp_path / "t.json")) as timeline:
            machine.run(20)
            timeline.finish(machine, tuple)
    kicks = {each["name"]: each["ts"] for each in named(events(tmp_path / "t.json"), 1, "i")}
    # The run may end before the loop is entered again, which is where a kick is seen.
    assert 0 < kicks["kick sent"] <= kicks.get("kick seen", kicks["kick sent"])


def test_the_kernel_s_view_is_on_the_same_clock(tmp_path: Path) -> None:
    if not has_tracefs():
        pytest.skip("no tracefs that may be used here")
    file = tmp_path / "t.json"
    outcome = pyvmm("run", "guests/convert.S", "--timeline", file)
    assert outcome.status == 0, outcome
    found = events(file)
    conversions = [each for each in named(found, 1, "X") if each["cat"] == "conversion"]
    calls = [each for each in named(found, 2, "X") if each["name"] == "allocate"]
    assert conversions and len(calls) == len(conversions)
    # Each lies in its exit, whose ends were stamped; where in it, only its length says. The
    # kernel's clock here counts microseconds.
    exits = [each for each in named(found, 1, "X") if each["name"] == "mmio"]
    for exit, call in zip(exits, calls, strict=True):
        assert exit["ts"] - 2 <= call["ts"] <= exit["ts"] + exit["dur"] + 2


def test_without_tracefs_the_rest_is_still_shown(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    hide = "mount -t tmpfs -o ro tmpfs /sys/kernel/tracing"
    outcome = pyvmm(
        "run", "guests/hello.S", "--timeline", file, prefix=with_mounts(hide, capabilities=False)
    )
    assert outcome.status == 0, outcome
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1 and "no tracepoints of the kernel" in lines[0]
    assert [each["name"] for each in named(events(file), 1, "X") if each["cat"] == "exit"]


def test_in_a_pid_namespace_there_is_no_view_of_the_kernel_s(tmp_path: Path) -> None:
    """The kernel's trace would number the threads otherwise than this process does."""
    if not has_tracefs():
        pytest.skip("no tracefs that may be used here")
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    outcome = pyvmm("run", "guests/hello.S", "--timeline", tmp_path / "t.json", prefix=inside)
    assert outcome.status == 0, outcome
    assert "no tracepoints of the kernel: tracefs: this process is in a PID name" in outcome.stderr


@pytest.mark.parametrize("name", ["/nonexistent/t.json", "/dev/full", "/"])
def test_a_file_that_cannot_be_written_is_one_line(name: str) -> None:
    outcome = pyvmm("run", "guests/hello.S", "--timeline", name)
    # In a PID namespace the run says first that the kernel's trace is not to be had.
    lines = [line for line in outcome.stderr.splitlines() if "no tracepoints" not in line]
    outcome._replace(stderr="\n".join(lines)).error(2, "--timeline", name)


@pytest.mark.parametrize(
    ("details", "name"),
    [
        ("NR 16 (d, ae80, 0, 0, 0, 0)", "KVM_RUN"),
        ("NR 16 (d, 1234, 0, 0, 0, 0)", "ioctl"),
        ("NR 285 (6, 1, 0, 1000, 0, 1)", "allocate"),
        ("NR 285 (6, 3, 0, 1000, 0, 1)", "discard"),
        ("NR 999 (0, 0)", "system call 999"),
    ],
)
def test_calls_have_names(details: str, name: str) -> None:
    assert call_name(details) == name
