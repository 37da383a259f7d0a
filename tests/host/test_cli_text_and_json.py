"""However a run ends: what its text says its JSON says, and the other way round."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyvmm_command import COMMAND, GUESTS, ROOT, pyvmm
from snippets import EXIT_0, PAGE, PRIVATE, SHARED, guest, passing, spin, touches
from text_and_json import TIMES, both, compare

from pyvmm import Machine, Policy, Result, load_guest
from pyvmm.report import RunReport, to_json

F_SEAL_FUTURE_WRITE = 0x10


class Broken:
    def read(self, address: int, size: int) -> int:
        raise ValueError("broken")

    def write(self, address: int, size: int, value: int) -> None:
        raise ValueError("broken")


def sealed(machine: Machine) -> None:
    machine.memory.regions[0].backing.shared_file.seal(F_SEAL_FUTURE_WRITE)


def broken(machine: Machine) -> None:
    machine.bus.add_ports(range(0x10, 0x11), Broken())


def kicked(machine: Machine) -> None:
    machine.log_exits(lambda vcpu, record: machine.kick())


def nothing(machine: Machine) -> None:
    pass


POPCNT = ".code16\n mov $3, %cx\n popcnt %cx, %ax\n"
FAILS = (
    '.include "pyvmm.inc"\n guest "fails.S"\n movb $7, %al\n assert_eqb %al, $9\n exit_guest $0\n'
)
MISSES = (
    "inb $0x70, %al\n inb $0x70, %al\n outw %ax, $0xE9\n movw $0xB000, %ax\n movw %ax, %es\n"
    f"movb %es:0, %al\n movw $0x614, %dx\n movl $77, %eax\n outl %eax, %dx\n{EXIT_0}"
)
PRINTS = f"movb $'a', %al\n outb %al, $0xE9\n movb $0x1B, %al\n outb %al, $0xE9\n{EXIT_0}"

# result, guest, options of the machine, what is done to it before it runs
ENDS: dict[str, tuple[Result, Callable[[], Any], dict[str, Any], Callable[[Machine], None]]] = {
    "pass": (Result.PASS, lambda: load_guest("guests/convert.S"), {}, nothing),
    "pass on vCPUs": (Result.PASS, lambda: load_guest("guests/smp.S"), {"vcpus": 3}, nothing),
    "measures": (Result.PASS, lambda: load_guest("guests/hostile.S"), {}, nothing),
    "console": (Result.PASS, lambda: guest(PRINTS), {}, nothing),
    "unclaimed": (Result.PASS, lambda: guest(MISSES), {}, nothing),
    "not recorded": (Result.PASS, lambda: guest(MISSES), {"recording": False}, nothing),
    "code": (Result.FAIL, lambda: guest("movw $0x142, %ax\n outw %ax, $0xf4"), {}, nothing),
    "vector": (Result.FAIL, lambda: guest("int $3"), {}, nothing),
    "hlt": (Result.FAIL, lambda: guest("hlt"), {}, nothing),
    "triple fault": (Result.FAIL, lambda: load_guest("guests/triplefault.S"), {}, nothing),
    "internal error": (Result.FAIL, lambda: guest(POPCNT), {}, nothing),
    "denied": (Result.FAIL, lambda: touches(PRIVATE), {"policy": Policy.DENY}, nothing),
    "deadline": (Result.DEADLINE, spin, {"vcpus": 2}, nothing),
    "conversion failed": (Result.ERROR, lambda: touches(PRIVATE), {"backend": "emulated"}, sealed),
    "device": (Result.ERROR, lambda: guest("inb $0x10, %al"), {}, broken),
    "kicked": (Result.INTERRUPTED, lambda: guest("1: outb %al, $0x10\n jmp 1b"), {}, kicked),
}


@pytest.mark.parametrize("end", ENDS)
def test_one_run_said_in_both_ways(end: str) -> None:
    result, make, options, prepare = ENDS[end]
    with Machine(make(), **options) as machine:
        prepare(machine)
        try:
            machine.run(0.1 if result is Result.DEADLINE else 30)
        except ValueError as error:
            assert end == "device", error
        report = machine.report()
    if end == "internal error" and "INTERNAL_ERROR" not in report.reason:
        pytest.skip("this KVM runs popcnt in real mode")
    assert report.result is result, report.reason
    compare(*both(report))


def test_an_assert(tmp_path: Path) -> None:
    (tmp_path / "fails.S").write_text(FAILS)
    with Machine(load_guest(str(tmp_path / "fails.S"))) as machine:
        report = machine.run(20)
    assert report.result is Result.FAIL and "fails.S:4: assert failed" in report.reason
    compare(*both(report))


def test_the_iterator_that_denies() -> None:
    with Machine(touches(SHARED, PRIVATE + PAGE), policy=Policy.ASK) as machine:
        for _ in machine.exits(20):
            machine.deny()
        compare(*both(machine.report()))


def test_a_console_that_is_no_text() -> None:
    with Machine(guest("movb $0xFF, %al\n outb %al, $0xE9\n" + EXIT_0)) as machine:
        text, data = both(machine.run(20))
    assert text.startswith("\\xff\n") and data["console_base64"] == "/w=="


# ---- the command, run once for each ----


def keys_of(value: Any) -> Any:
    return {name: keys_of(each) for name, each in value.items()} if isinstance(value, dict) else 0


@pytest.mark.parametrize(
    ("code", "words", "status"),
    [
        (EXIT_0, [], 0),
        (MISSES, ["--views", "1"], 0),
        ("movb $5, %al\n outb %al, $0xf4", [], 1),
        ("hlt", [], 1),
        ("lidt 1f\n int $3\n1: .word 0, 0, 0", [], 1),
        ("movb $'x', %al\n outb %al, $0xe9\n jmp .", ["--deadline", "0.2"], 3),
    ],
    ids=["pass", "unclaimed", "code", "hlt", "triple fault", "deadline"],
)
def test_the_command_in_both_ways(code: str, words: list[str], status: int, tmp_path: Path) -> None:
    path = tmp_path / "guest.S"
    path.write_text(f".code16\n{code}\n")
    text = pyvmm("run", path, *words, environment={"PYTHONUTF8": "1"})
    machine = pyvmm("run", path, *words, "--json")
    assert text.status == machine.status == status
    assert text.stderr == machine.stderr == ""
    compare(text.stdout, machine.json, but=TIMES)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["nowhere.S"], 2),
        (["hello.S", "--vcpus", "29"], 2),
        (["hello.S", "--backend", "memory_error"], 4),
        (["hello.S", "--log", "/nowhere/log"], 2),
    ],
)
def test_what_does_not_start(words: list[str], status: int) -> None:
    """The one line on stderr is the reason; the JSON has the same keys as ever."""
    text, machine = pyvmm("run", *words), pyvmm("run", *words, "--json")
    if machine.status == 0:
        pytest.skip("this host has that backend")
    assert text.status == machine.status == status
    assert text.stdout == "" and text.stderr == machine.stderr
    data = machine.json
    assert text.stderr == f"pyvmm: {data['reason']}\n"
    assert data["schema"] == 1 and data["backend"] == "" and data["where"] is None
    report = RunReport(Result.PASS)
    expected = {**to_json(report), "guest": "", "seconds": 0}
    assert keys_of(data) == keys_of(expected)


@pytest.mark.parametrize(
    ("words", "platform", "mode"),
    [
        (["nowhere.S"], "protocol", "real"),
        (["nowhere.S", "--platform", "bare", "--mode", "long"], "bare", "long"),
        (["hello.S", "--platform", "multiboot"], "multiboot", "protected"),
        (["guests/long/widths.c", "--vcpus", "65"], "protocol", "long"),
        (["hello.S", "--platform", "bare", "--set", "cr4=0xffffffffffff"], "bare", "real"),
    ],
)
def test_what_does_not_start_names_the_world_that_it_was_for(
    words: list[str], platform: str, mode: str
) -> None:
    found = pyvmm("run", *words, "--json")
    assert found.status == 2
    assert (found.json["platform"], found.json["mode"]) == (platform, mode)


def test_a_run_that_fails_at_its_end_says_both() -> None:
    words = ("run", GUESTS / "hello.S", "--log", "/dev/full")
    text, machine = pyvmm(*words), pyvmm(*words, "--json")
    assert text.status == machine.status == 2
    assert text.stderr == machine.stderr == f"pyvmm: {machine.json['reason']}\n"
    compare(text.stdout, machine.json, but=TIMES)


def test_interrupted() -> None:
    outputs = []
    for words in ([], ["--json"]):
        process = subprocess.Popen(
            [*COMMAND, "run", "spin.S", *words], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        while "SigCgt:\t0000000000000000" in (status := status_of(process.pid)) or not any(
            "kvm-vcpu" in name for name in open_files(process.pid)
        ):
            assert process.poll() is None, status
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        outputs.append(process.communicate(timeout=30)[0])
        assert process.returncode == 143
    data = json.loads(outputs[1])
    assert data["result"] == "interrupted" and data["reason"] == "SIGTERM ended the run"
    compare(outputs[0], data, but=(*TIMES, "exits"))


def test_every_json_has_a_schema_number(tmp_path: Path) -> None:
    bench, log, timeline = tmp_path / "bench.json", tmp_path / "log", tmp_path / "timeline"
    objects = [
        pyvmm("run", "hello.S", "--log", log, "--timeline", timeline, "--json").json,
        pyvmm("run", "nowhere.S", "--json").json,
        pyvmm("doctor", "--json").json,
        pyvmm("validate", "-k", "PC1.explicit[gpa=512K,range=0+4K]", "--json").json,
        pyvmm("bench", "exits", "-k", "out", "--seconds", "0.1", "--json").json,
        json.loads(timeline.read_text()),
        *map(json.loads, log.read_text().splitlines()),
    ]
    bench.write_text(json.dumps(objects[4]))
    objects.append(pyvmm("bench", "compare", bench, bench, "--json").json)
    lines = pyvmm("validate", "-k", "PC1.explicit[gpa=512K,range=0+4K]", "--json-lines").stdout
    objects.append(json.loads(lines.splitlines()[0]))
    assert [each["schema"] for each in objects] == [1] * len(objects)


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def open_files(pid: int) -> list[str]:
    names = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(str(path.readlink()))
        except OSError:
            continue
    return names


def test_the_walk_finds_what_one_of_them_lacks() -> None:
    with Machine(passing()) as machine:
        text, data = both(machine.run(20))
    compare(text, data)
    wrongs: list[dict[str, Any]] = [
        {"measures_dropped": 31},
        {"reason": "lost"},
        {"where": {"registers": {"eax": 1}}},
        {"exits": {"mmio": 1}},
        {"serial": "hello"},
        {"console": "hello"},
    ]
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            compare(text, {**data, **wrong})
            pytest.fail(f"{wrong} was not missed")
    with pytest.raises(AssertionError, match=r"the JSON lacks \{'31'\}"):
        compare(text + "31 lost\n", data)
