"""``pyvmm run`` as a person and a script see it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from pyvmm_command import COMMAND, GUESTS, ROOT, pyvmm

from pyvmm import __version__

EXIT_CODES = bytes.fromhex("b0 2a e6f4 f4")  # mov $42, %al; out %al, $0xf4; hlt


def test_json_of_a_conversion_run() -> None:
    outcome = pyvmm("run", GUESTS / "convert.S", "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    report = outcome.json
    assert report["result"] == "pass" and report["exit_code"] == 0 and report["reason"] == ""
    conversions = report["conversions"]
    assert min(conversions["to_private"], conversions["to_shared"]) >= 128
    assert conversions["to_private"] + conversions["to_shared"] == (
        conversions["implicit"] + conversions["explicit"]
    )
    assert report["latency_ns"]["exit"]["count"] == sum(report["exits"].values())
    assert report["latency_ns"]["conversion"]["count"] == conversions["implicit"]


def test_text_of_a_conversion_run() -> None:
    outcome = pyvmm("run", GUESTS / "convert.S")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "\x1b" not in outcome.stdout  # a pipe gets no colours
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("PASS")
    for head in ("VM-EXIT", "Samples%", "Time%", "Min", "Max", "Avg", "p99.9", "implicit"):
        assert head in outcome.stdout
    (picture,) = (line for line in lines if line.startswith("0x00040000"))
    assert len(picture.split()[1]) == 64


def test_exit_codes(tmp_path: Path) -> None:
    guest = tmp_path / "guest.bin"
    guest.write_bytes(EXIT_CODES)
    outcome = pyvmm("run", guest, "--json")
    assert outcome.status == 1 and outcome.json["exit_code"] == 42
    assert outcome.json["result"] == "fail" and "42" in outcome.json["reason"]
    text = pyvmm("run", guest)
    assert text.status == 1 and text.stdout.startswith("FAIL") and text.stderr == ""


def test_deadline() -> None:
    outcome = pyvmm("run", GUESTS / "spin.S", "--deadline", "0.2", "--json")
    assert outcome.status == 3 and outcome.json["result"] == "deadline"
    text = pyvmm("run", GUESTS / "spin.S", "--deadline", "0.2", "--vcpus", 2)
    assert text.status == 3 and text.stdout.startswith("DEADLINE")
    assert "eip=00007c00" in text.stdout  # where it was


def test_an_instruction_that_the_kernel_cannot_emulate(tmp_path: Path) -> None:
    guest = tmp_path / "popcnt.S"
    guest.write_text(".code16\n mov $3, %cx\n popcnt %cx, %ax\n xor %al, %al\n out %al, $0xf4\n")
    outcome = pyvmm("run", guest)
    if outcome.status == 0:
        pytest.skip("this KVM runs popcnt in real mode")
    assert outcome.status == 1
    assert "KVM_EXIT_INTERNAL_ERROR, suberror 1" in outcome.stdout
    assert "f3 0f b8 c1" in outcome.stdout and "0000:7c03" in outcome.stdout
    assert "ecx=00000003" in outcome.stdout
    pytest.importorskip("capstone")
    assert "popcnt ax, cx" in outcome.stdout


def test_a_console_cannot_command_the_terminal(tmp_path: Path) -> None:
    guest = tmp_path / "evil.S"
    guest.write_text(
        """
.code16
    mov $text, %si
1:  lodsb
    test %al, %al
    jz 2f
    out %al, $0xe9
    jmp 1b
2:  out %al, $0xf4
text: .ascii "a\\033[31mb\\r\\nc\\td\\re\\302\\233f\\377\\303\\251"
    .byte 0
"""
    )
    # The last line has no newline of its own: the verdict still gets a line.
    shown = "a\\x1b[31mb\nc\td\\re\\x9bf\\xff\u00e9\nPASS"
    assert pyvmm("run", guest, environment={"PYTHONUTF8": "1"}).stdout.startswith(shown)
    on_terminal, status = in_terminal("run", str(guest), NO_COLOR="1")
    assert status == 0 and on_terminal.startswith(shown)
    console = pyvmm("run", guest, "--json").json["console"]
    assert console == "a\x1b[31mb\r\nc\td\re\x9bf\ufffd\u00e9"


def in_terminal(*words: str, until: str = "", **environment: str) -> tuple[str, int]:
    """What the command writes to a terminal; after ``until`` it is interrupted."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", **environment},
        cwd=ROOT,
    )
    os.close(slave)
    text, sent = b"", False
    while True:
        try:
            text += os.read(master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            break
        if until and not sent and until.encode() in text:
            process.send_signal(signal.SIGINT)
            sent = True
    os.close(master)
    return text.decode().replace("\r\n", "\n"), process.wait(60)


def test_colour_on_a_terminal_only_if_wanted() -> None:
    text, status = in_terminal("run", "guests/hello.S", NO_COLOR="")
    assert status == 0 and "\x1b[1;32mPASS\x1b[0m" in text
    for environment in ({"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}):
        text, status = in_terminal("run", "guests/hello.S", **environment)
        assert status == 0 and "\x1b" not in text


def test_a_terminal_sees_the_console_while_the_guest_runs(tmp_path: Path) -> None:
    guest = tmp_path / "live.S"
    guest.write_text(".code16\n mov $'@', %al\n out %al, $0xe9\n jmp .\n")
    text, status = in_terminal("run", str(guest), "--deadline", "60", until="@", NO_COLOR="1")
    assert status == 130
    assert re.match(r"@\nINTERRUPTED .*SIGINT", text)


def test_what_was_dropped_and_unclaimed_is_said() -> None:
    outcome = pyvmm("run", GUESTS / "hostile.S")
    assert outcome.status == 0, outcome
    assert "ports that nobody has" in outcome.stdout
    assert "where no memory is" in outcome.stdout


def test_log_has_every_exit_of_every_vcpu_in_order(tmp_path: Path) -> None:
    guest, log = tmp_path / "many.S", tmp_path / "log"
    guest.write_text(
        """
.code16
    mov $COUNT, %ecx
1:  out %al, $0xe9
    dec %ecx
    jnz 1b
    xor %al, %al
    out %al, $0xf4
"""
    )
    count = 40_000
    outcome = pyvmm("run", guest, "--json", "--vcpus", 3, "--param", f"COUNT={count}", "--log", log)
    assert outcome.status == 0, outcome
    seen, times = [0, 0, 0], [0, 0, 0]
    with log.open() as lines:
        for line in lines:
            record = json.loads(line)
            index = record["vcpu"]
            assert times[index] <= record["time_in"] <= record["time_out"]
            assert record["reason"] == "io" and record["is_write"] and record["size"] == 1
            assert record["address"] == (0xE9 if seen[index] < count else 0xF4)
            times[index] = record["time_out"]
            seen[index] += 1
    assert seen == [count + 1] * 3
    assert outcome.json["exits"] == {"io": sum(seen)}


def test_log_says_what_was_converted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = pyvmm("run", GUESTS / "convert.S", "--json", "--log", log)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for direction in ("shared", "private"):
        converted = [record for record in records if record["conversion"] == direction]
        assert len(converted) == outcome.json["conversions"][f"to_{direction}"]
        assert all(record["conversion_ns"] > 0 for record in converted)


def test_one_version() -> None:
    """What the command says, the package says, and pip was told."""
    outcome = pyvmm("--version")
    assert (outcome.status, outcome.stdout) == (0, f"pyvmm {__version__}\n")
    assert metadata.version("pyvmm-kvm") == __version__
