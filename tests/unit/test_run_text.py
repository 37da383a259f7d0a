"""The text of ``pyvmm run``, from reports made by hand."""

from __future__ import annotations

import base64
import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyvmm.cli.run_text import ConsoleText, render
from pyvmm.loop.vcpu_loop import ExitRecord
from pyvmm.memory.guest_memory import Conversions
from pyvmm.page_states import PageState
from pyvmm.printable import counted, printable
from pyvmm.report import (
    Latency,
    ReasonStatistics,
    RegionReport,
    Result,
    RunReport,
    Where,
    duration,
    to_json,
)
from pyvmm.unclaimed import Unclaimed


def text_of(report: RunReport, console: bytes = b"", guest: str = "guest.S") -> str:
    out = io.StringIO()
    shown = ConsoleText(out)
    shown.take(console)
    render(report, shown, guest, 0.25)
    return out.getvalue()


def ran(result: Result = Result.PASS, **fields: object) -> RunReport:
    return RunReport(result, backend="emulated", mechanism="slots", **fields)  # type: ignore[arg-type]


def test_only_a_verdict_when_nothing_ran() -> None:
    report = RunReport(Result.INTERRUPTED, reason="SIGINT ended the run")
    assert text_of(report) == "INTERRUPTED  guest.S: SIGINT ended the run\n"


def test_exit_table() -> None:
    report = ran(
        exits={"io": 1, "mmio": 3},
        by_reason={
            "io": ReasonStatistics(1, 1000, 1000, 1000),
            "mmio": ReasonStatistics(3, 9000, 2000, 4000),
        },
    )
    rows = [line.split() for line in text_of(report).splitlines()]
    assert ["VM-EXIT", "Samples", "Samples%", "Time%", "Min", "Max", "Avg"] in rows
    mmio = ["mmio", "3", "75.00%", "90.00%", "2.00us", "4.00us", "3.00us"]
    assert rows.index(mmio) + 1 == rows.index(
        ["io", "1", "25.00%", "10.00%", "1.00us", "1.00us", "1.00us"]
    )


def test_an_exit_that_took_no_time_at_all() -> None:
    report = ran(exits={"io": 1}, by_reason={"io": ReasonStatistics(1, 0, 0, 0)})
    assert "0.00%" in text_of(report)


def test_exits_that_were_not_recorded_are_counted_all_the_same() -> None:
    report = ran(exits={"io": 1, "other": 3}, by_reason={"io": ReasonStatistics(1, 9, 9, 9)})
    rows = [line.split() for line in text_of(report).splitlines()]
    assert ["other", "3", "75.00%"] in rows


def test_what_nobody_has_is_named_and_the_rest_counted() -> None:
    report = ran(
        unclaimed=(Unclaimed(0x20, None, 4), Unclaimed(None, 0x90000, 2), Unclaimed(0x21, None, 1)),
        unclaimed_ports=12,
        unclaimed_mmio=2,
    )
    lines = text_of(report).splitlines()
    assert "unclaimed: port 0x20 4 times (the PIC: there is one with --irqchip)" in lines
    assert "unclaimed: GPA 0x90000 2 times" in lines
    assert "unclaimed: other ports 7 times" in lines
    assert to_json(report)["unclaimed"] == [
        {"port": 0x20, "count": 4, "hint": "the PIC: there is one with --irqchip"},
        {"gpa": 0x90000, "count": 2},
        {"port": 0x21, "count": 1, "hint": "the PIC: there is one with --irqchip"},
    ]


def test_latencies_and_conversions() -> None:
    text = text_of(
        ran(
            exit_latency=Latency(5, 43, 850, 12_340, 1_000_000, 2_500_000, 1_050_000_000),
            conversions=Conversions(3, 2, 4, 1),
        )
    )
    for word in ("43 ns", "850 ns", "12.3 us", "1.00 ms", "2.50 ms", "1.05 s"):
        assert word in text
    assert "5 pages: 3 to private and 2 to shared, 4 implicit and 1 explicit" in text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1.00 us"), (99_949, "99.9 us"), (99_951, "100 us")],
)
def test_duration(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


@given(st.integers(0, 10**12))
def test_a_duration_is_never_wide(nanoseconds: int) -> None:
    assert len(duration(nanoseconds)) <= 7


def test_picture_of_a_region() -> None:
    region = RegionReport(0x40000, 0x42000, ((0x41000, 0x2000), (0x81000, 0x1000)))
    rows = [line for line in text_of(ran(memory=(region,))).splitlines() if line[:2] == "0x"]
    assert rows == ["0x00040000  .##" + "." * 61, "0x00080000  .#"]


def test_a_large_region_is_folded() -> None:
    size = 1 << 30
    region = RegionReport(0, size, ((0, size // 2), (size // 2 + 4096, 4096)))
    lines = text_of(ran(memory=(region,))).splitlines()
    start = lines.index("Pages at the end") + 1
    assert lines[start : start + 5] == [
        "0x00000000  " + "#" * 64,
        "*",
        "0x20000000  +" + "." * 63,
        "0x24000000  " + "." * 64,
        "*",
    ]
    assert "256 pages a character" in text_of(ran(memory=(region,)))


def test_what_was_lost_is_said_only_if_there_was_something() -> None:
    assert "Lost" not in text_of(ran())
    text = text_of(ran(console_dropped=7, measures=tuple(range(100)), measures_dropped=8))
    assert "7 console bytes dropped" in text and "8 measures dropped" in text
    assert "and 36 more" in text


def test_details_of_a_failure() -> None:
    exits = (
        ExitRecord(1000, 2500, "mmio", 0x40000, 2, True, PageState.PRIVATE, 900),
        ExitRecord(3000, 3043, "hlt", 0, 0, False, None, 0),
    )
    where = Where(1, "x.S:7", b"\xcd\x21", {"eip": 0x7C00, "eax": 1, "cs": 0x10}, exits)
    assert text_of(ran(Result.FAIL, reason="triple fault", where=where)).endswith(
        "Where it ended\nvCPU 1 at CS:IP 0010:7c00 (x.S:7)\ncode cd 21\n"
        "eip=00007c00 eax=00000001\ncs=0010\n"
        "exit mmio write 0x40000 size 2, 1.50 us, to private in 900 ns\nexit hlt, 43 ns\n"
    )


def test_a_hostile_name_or_reason_is_escaped() -> None:
    report = ran(Result.FAIL, reason="\x1b[2J")
    assert "\x1b" not in text_of(report, guest="\x1b]0;x\x07.S")


@given(st.binary(), st.integers(0))
@example(b"a\r\nb", 2)
@example("\u00e9".encode(), 1)
def test_whatever_the_console_holds_and_however_it_arrives(console: bytes, cut: int) -> None:
    text = shown_in_parts(console[: cut % (len(console) + 1)], console)
    assert all(char.isprintable() or char in "\n\t" for char in text)
    assert not text or text.endswith("\n")
    assert text == shown_in_parts(console)


def shown_in_parts(*taken: bytes) -> str:
    out = io.StringIO()
    console = ConsoleText(out)
    for part in taken[:-1]:
        console.take(part)
        console.show()
    console.take(taken[-1])
    console.show(final=True)
    return out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("console", "most", "hidden"),
    [
        (bytes(range(256)) * 256, 6_000, 63_700),
        (b"\xff" * 65_536, 4_000, 64_536),
        (b"x" * (1 << 20), 65_537, (1 << 20) - (1 << 16)),
        (b"\n" * 65_536, 1_000, 64_536),
        (b"\r\n" * 2_000, 1_000, 1_000),
        (("\u00e9" * 70_000).encode(), 65_537, 2 * (70_000 - 65_536)),
    ],
    ids=["any", "no text", "long", "lines", "crlf", "characters of two bytes"],
)
@pytest.mark.parametrize("part", [1 << 20, 5_000])
def test_a_terminal_is_not_flooded_and_a_pipe_gets_all(
    console: bytes, most: int, hidden: int, part: int
) -> None:
    shown = {}
    for out in (Terminal(), io.StringIO()):
        text = ConsoleText(out)
        for end in range(part, len(console), part):
            text.take(console[:end])
            text.show()
        text.take(console)
        text.show(final=True)
        shown[type(out)] = out.getvalue()
    cut, note = shown[Terminal].removesuffix("\n").rsplit("\n", 1)
    assert len(cut) <= most
    assert shown[io.StringIO].startswith(cut)
    assert len(shown[io.StringIO]) >= len(console) // 2
    (count,) = map(int, re.findall(r"^\[(\d+) more bytes; --json has them, and a pipe\]$", note))
    assert abs(count - hidden) < 300


def test_a_console_that_a_terminal_can_take_has_no_note() -> None:
    out = Terminal()
    text = ConsoleText(out)
    text.take(b"\x1b[1mhello\x1b[0m\n" * 499)
    text.show(final=True)
    assert out.getvalue() == "\\x1b[1mhello\\x1b[0m\n" * 499


def test_json_has_the_console_whole() -> None:
    text = to_json(ran(console_bytes="a\u00e9\0".encode()))
    assert (text["console"], text["console_base64"]) == ("a\u00e9\0", None)
    noise = to_json(ran(console_bytes=b"a\xff\xfe"))
    assert noise["console"] == "a\ufffd\ufffd"
    assert base64.b64decode(noise["console_base64"]) == b"a\xff\xfe"


@given(st.text())
def test_printable(text: str) -> None:
    assert printable(text).isprintable() or not text
    if text.isprintable():
        assert printable(text) == text


def test_one_of_a_kind_is_no_plural() -> None:
    assert [counted(number, "case") for number in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [counted(number, "patch", "patches") for number in (1, 2)] == ["1 patch", "2 patches"]
