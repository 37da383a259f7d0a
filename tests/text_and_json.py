"""Whether the text of a run and its JSON say the same: a walk over all that either has."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

from pyvmm.cli.run_text import ConsoleText, render
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.printable import printable
from pyvmm.report import RunReport, duration, to_json

# Numbers in the text's own words, which are no finding.
_WORDS = re.compile(r"p50|p90|p99\.9|p99|1 MiB|4096 are kept")
_REGISTER = re.compile(r"\b([a-z][a-z0-9]+)=([0-9a-f]{4,})\b")
_ROW = re.compile(r"^(0x[0-9a-f]{8,})  ([#.]+)$", re.MULTILINE)
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")
_MEASURES_SHOWN = 64
_NO_TIME = ("count", "address", "size", "reason")

# What the text says in words of its own, checked apart.
_APART = ("schema", "console", "console_base64", "memory", "measures", "where.registers")
# What differs between two runs of one guest.
TIMES = ("seconds", "times", "latency_ns", "where.last_exits")


def both(report: RunReport) -> tuple[str, dict[str, Any]]:
    """Text and JSON of one run."""
    out = io.StringIO()
    console = ConsoleText(out)
    console.take(report.console_bytes)
    render(report, console, "guest", 0.25)
    return out.getvalue(), {**to_json(report), "guest": "guest", "seconds": 0.25}


def compare(text: str, data: dict[str, Any], *, but: tuple[str, ...] = ()) -> None:
    """Fail if one of the two has what the other one lacks.

    ``but`` names parts of the JSON that are of another run: then it is only asked whether
    the text has the rest.
    """
    rest = _without_console(text, data)
    for row in _ROW.finditer(rest):
        _check_row(row, data["memory"])
    rest = _ROW.sub("", rest)
    _check_pages(rest, data["memory"])
    registers = {name: int(value, 16) for name, value in _REGISTER.findall(rest)}
    assert registers == ((data["where"] or {}).get("registers") or {})
    rest = _WORDS.sub("", _REGISTER.sub("", rest))

    apart = (*_APART, *but)
    leaves = [leaf for leaf in _leaves("", data) if not _is_in(leaf[0], apart)]
    # The text has the mean in its place.
    leaves = [(path, value) for path, value in leaves if not path.endswith("total_ns")]
    strings = sorted({value for _, value in leaves if isinstance(value, str)}, key=len)
    for string in reversed(strings):
        shown = printable(string)
        assert shown in rest or shown.upper() in rest, f"the text lacks {string!r}"
    for string in reversed(strings):
        if string:
            rest = rest.replace(printable(string), " ")

    said = set(_NUMBER.findall(rest.replace(" once", " 1 ")))
    for path, value in leaves:
        if _is_number(value) and value and not said & _renderings(path, value):
            raise AssertionError(f"the text lacks {path} {value}")
    if not but:
        for each in data["times"].values():
            assert f"{each['total_ns'] / each['count'] / 1000:.2f}" in said, "the text lacks a mean"
        known = {
            each for path, value in leaves if _is_number(value) for each in _renderings(path, value)
        }
        odd = said - known - set(_derived(data)) - {"0"}
        assert not odd, f"the JSON lacks {odd}: {rest}"


def _without_console(text: str, data: dict[str, Any]) -> str:
    console = data["console"]
    if data["console_base64"] is not None:
        console = base64.b64decode(data["console_base64"]).decode("utf-8", "surrogateescape")
    shown = printable(console.replace("\r\n", "\n"), "\n\t")
    assert text.startswith(shown), "the text lacks the console"
    return text[len(shown) :]


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(f"{path}.{name}".lstrip("."), each)
            # Names that are findings, such as reasons of exits.
            if path in ("exits", "times"):
                yield f"{path}.{name}", name
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(path, each)
    else:
        yield path, value


def _is_in(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == part or path.startswith(f"{part}.") for part in parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _renderings(path: str, number: float) -> set[str]:
    """How the text writes a number that the JSON has there."""
    if path == "seconds":
        return {f"{number:.3f}"}
    if _is_in(path, ("times", "latency_ns", "where.last_exits")) and not path.endswith(_NO_TIME):
        return {f"{number / 1000:.2f}", duration(number).split()[0]}
    return {str(number), hex(int(number)), f"{number:#010x}"}


def _derived(data: dict[str, Any]) -> Iterator[str]:
    """What the text has reckoned from numbers of the JSON."""
    pages = data["conversions"]
    yield str(pages["to_private"] + pages["to_shared"])
    count = sum(data["exits"].values())
    total = sum(each["total_ns"] for each in data["times"].values())
    for exits in data["exits"].values():
        yield f"{exits / count:.2%}".rstrip("%")
    for each in data["times"].values():
        yield f"{each['total_ns'] / total if total else 0:.2%}".rstrip("%")
        yield f"{each['total_ns'] / each['count'] / 1000:.2f}"
    for name in ("port", "gpa"):
        listed = sum(each["count"] for each in data["unclaimed"] if name in each)
        yield str(data[f"unclaimed_{'ports' if name == 'port' else 'mmio'}"] - listed)
    for region in data["memory"]:
        yield str(region["size"] // PAGE_SIZE)
        yield str(sum(size for _, size in region["private"]) // PAGE_SIZE)
    yield from map(str, data["measures"][:_MEASURES_SHOWN])
    yield str(len(data["measures"]) - _MEASURES_SHOWN)


def _check_row(row: re.Match[str], memory: list[dict[str, Any]]) -> None:
    first = int(row[1], 16)
    private = [tuple(each) for region in memory for each in region["private"]]
    for at, mark in enumerate(row[2]):
        page = first + at * PAGE_SIZE
        is_private = any(gpa <= page < gpa + size for gpa, size in private)
        assert (mark == "#") == is_private, hex(page)


def _check_pages(text: str, memory: list[dict[str, Any]]) -> None:
    pages = [
        (sum(size for _, size in region["private"]) // PAGE_SIZE, region["size"] // PAGE_SIZE)
        for region in memory
    ]
    shown = re.findall(r"(\d+) of (\d+) pages private", text)
    assert [tuple(map(int, each)) for each in shown] == pages
