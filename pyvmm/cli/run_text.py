"""The report of a run as text for people."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from typing import TextIO

from pyvmm.host import host_facts, kernel_release
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.printable import counted, printable, shown
from pyvmm.report import Latency, RegionReport, Result, RunReport, duration

_PAGES_PER_ROW = 64
_MOST_ROWS = 16
_MOST_MEASURES = 64

_BOLD, _GREEN, _RED, _YELLOW = "1", "1;32", "1;31", "1;33"
_COLOURS = {Result.PASS: _GREEN, Result.DEADLINE: _YELLOW, Result.INTERRUPTED: _YELLOW}


class ConsoleText:
    """Shows a guest's console on ``out``, where nothing but newline and tab is obeyed.

    The rest of what a terminal acts on is written as escapes: a guest is hostile. A terminal
    is shown only the beginning of a long one; a pipe gets all of it.
    """

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.is_live = out.isatty()
        self.has_colour = self.is_live and has_colour()
        self._taken = b""
        self._decoded = 0
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._hidden = 0
        self._at_line_start = True

    def take(self, console: bytes) -> None:
        """All that the guest has printed until now."""
        self._taken = console

    def show(self, final: bool = False) -> None:
        """Print what has been taken and not shown; a half character waits unless ``final``."""
        new = self._taken[self._decoded :]
        self._decoded = len(self._taken)
        decoded = self._held + self._decoder.decode(new, final)
        # The \r of \r\n moves nothing; any other one would overwrite what was printed.
        self._held = "\r" if decoded.endswith("\r") and not final else ""
        text = printable(self._fitting(decoded.removesuffix(self._held)), "\n\t")
        if text:
            self._at_line_start = text.endswith("\n")
        if final and not self._at_line_start:
            text += "\n"
        if final and self._hidden:
            text += f"[{self._hidden} more bytes; --json has them, and a pipe]\n"
        self.out.write(text)
        self.out.flush()

    def _fitting(self, new: str) -> str:
        new = new.replace("\r\n", "\n")
        if not self.is_live:
            return new
        before = len(self._text)
        self._text = shown(self._text + new)
        fitting = "" if self._hidden else self._text[before:]
        self._hidden += len(new[len(fitting) :].encode("utf-8", "surrogateescape"))
        return fitting

    def styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.has_colour else text


def has_colour() -> bool:
    """Whether a terminal may be sent colours (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render(report: RunReport, console: ConsoleText, guest: str, seconds: float) -> None:
    """Print the report of a run of ``guest`` that took ``seconds``, below its console."""
    console.show(final=True)
    for line in _lines(report, console, guest, seconds):
        print(line, file=console.out)


def _lines(report: RunReport, console: ConsoleText, guest: str, seconds: float) -> Iterator[str]:
    verdict = console.styled(report.result.value.upper(), _COLOURS.get(report.result, _RED))
    reason = f": {report.reason}" if report.reason else ""
    yield f"{verdict}  {printable(guest)}{printable(reason)}"
    if not report.backend:
        return
    backend = f"{report.backend} ({report.mechanism})"
    yield f"{backend} on Linux {kernel_release()}, {seconds:.3f} s in all"
    code = "no exit code" if report.exit_code is None else f"exit code {report.exit_code}"
    yield f"{report.mode} mode ({report.platform}), {code}; {_host()}"
    for title, part in (
        ("", _exit_table(report)),
        ("Latency", _latency_table(report)),
        ("Conversions", _conversions(report)),
        ("Pages at the end", _picture(report)),
        ("Measures", _measures(report)),
        ("Serial port", _serial(report)),
        ("Lost and unclaimed", _lost(report)),
        ("Where it ended", report.where.lines() if report.where else ()),
    ):
        lines = list(part)
        if lines:
            yield ""
            if title:
                yield console.styled(title, _BOLD)
            else:
                lines[0] = console.styled(lines[0], _BOLD)
            yield from lines


def _host() -> str:
    facts = host_facts()
    modules = facts["kvm_modules"]
    assert isinstance(modules, list)
    parts = (facts["cpu"], f"{facts['cpus']} CPUs", *modules, f"Python {facts['python']}")
    return printable(", ".join(map(str, parts)))


def _serial(report: RunReport) -> Iterator[str]:
    """What went to COM1, where that was not shown as the console already."""
    if report.platform == "protocol":
        yield from printable(report.serial, "\n\t").splitlines()


def _exit_table(report: RunReport) -> Iterator[str]:
    """As `perf kvm stat` prints it. A time is the VMM's: from KVM_RUN's return to its next call."""
    if not report.exits:
        return
    samples = sum(report.exits.values())
    total = sum(row.total_ns for row in report.by_reason.values())
    times = "".join(f"{head:>13}" for head in ("Min", "Max", "Avg"))
    yield f"{'VM-EXIT':<18}{'Samples':>9}{'Samples%':>10}{'Time%':>9}{times}"
    for name, count in sorted(report.exits.items(), key=lambda row: -row[1]):
        line = f"{name:<18}{count:>9}{count / samples:>10.2%}"
        row = report.by_reason.get(name)
        if row is None:  # not recorded
            yield line
            continue
        times = "".join(
            f"{nanoseconds / 1000:>11.2f}us"
            for nanoseconds in (row.min_ns, row.max_ns, row.total_ns / row.count)
        )
        share = row.total_ns / total if total else 0.0
        yield f"{line}{share:>9.2%}{times}"


def _latency_table(report: RunReport) -> Iterator[str]:
    rows = [
        (name, latency)
        for name, latency in (
            ("exit", report.exit_latency),
            ("conversion", report.conversion_latency),
        )
        if latency.count
    ]
    if rows:
        heads = ("count", "min", "p50", "p90", "p99", "p99.9", "max")
        yield f"{'':<12}" + "".join(f"{head:>10}" for head in heads)
    for name, latency in rows:
        yield f"{name:<12}{latency.count:>10}" + "".join(
            f"{duration(nanoseconds):>10}" for nanoseconds in _points(latency)
        )


def _points(latency: Latency) -> tuple[int, ...]:
    points = (latency.min, latency.p50, latency.p90, latency.p99, latency.p999, latency.max)
    return tuple(point for point in points if point is not None)


def _conversions(report: RunReport) -> Iterator[str]:
    pages = report.conversions
    total = pages.to_private + pages.to_shared
    if not total:
        yield "none"
        return
    yield (
        f"{counted(total, 'page')}: {pages.to_private} to private and {pages.to_shared} to shared, "
        f"{pages.implicit} implicit and {pages.explicit} explicit"
    )


def _picture(report: RunReport) -> Iterator[str]:
    """Each region in rows of characters, one for a page, or for several in a large region."""
    folded = False
    for region in report.memory:
        each = max(1, -(-region.size // (PAGE_SIZE * _PAGES_PER_ROW * _MOST_ROWS)))
        folded = folded or each > 1
        text = _region_text(region, each)
        rows = [text[at : at + _PAGES_PER_ROW] for at in range(0, len(text), _PAGES_PER_ROW)]
        for number, row in enumerate(rows):
            # As hexdump(1) does it: rows that are the same again are a star.
            if number == 0 or row != rows[number - 1]:
                gpa = region.gpa + number * _PAGES_PER_ROW * each * PAGE_SIZE
                yield f"{gpa:#010x}  {row}"
            elif number == 1 or row != rows[number - 2]:
                yield "*"
        private = sum(size for _, size in region.private)
        scale = f", {each} pages a character" if each > 1 else ""
        yield (
            f"{'':<12}{private // PAGE_SIZE} of {region.size // PAGE_SIZE} pages private{scale} "
            f"(# private, . shared{', + both' if each > 1 else ''})"
        )


def _region_text(region: RegionReport, each: int) -> str:
    pages = bytearray(region.size // PAGE_SIZE)
    for gpa, size in region.private:
        first = (gpa - region.gpa) // PAGE_SIZE
        pages[first : first + size // PAGE_SIZE] = b"\1" * (size // PAGE_SIZE)
    groups = (pages[at : at + each] for at in range(0, len(pages), each))
    return "".join("#" if all(group) else "+" if any(group) else "." for group in groups)


def _measures(report: RunReport) -> Iterator[str]:
    shown = report.measures[:_MOST_MEASURES]
    for at in range(0, len(shown), 8):
        yield "".join(f"{measure:<11}" for measure in shown[at : at + 8]).rstrip()
    if more := len(report.measures) - len(shown):
        yield f"and {more} more, all of them with --json"


def _lost(report: RunReport) -> Iterator[str]:
    for count, what in (
        (report.console_dropped, "console bytes dropped: the first 1 MiB is kept"),
        (report.serial_dropped, "bytes sent to COM1 dropped: the first 1 MiB is kept"),
        (report.measures_dropped, "measures dropped: the first 4096 are kept"),
        (report.spurious_exits, "memory exits that found the page already as they wanted it"),
        (
            report.unclaimed_ports,
            "accesses to ports that nobody has: read all ones, writes ignored",
        ),
        (report.unclaimed_mmio, "accesses where no memory is: read all ones, writes ignored"),
    ):
        if count:
            yield f"{count} {what}"
    yield from _unclaimed(report)


def _unclaimed(report: RunReport) -> Iterator[str]:
    """Which those were; in a line for all others those that the report does not name."""
    others = {"ports": report.unclaimed_ports, "addresses": report.unclaimed_mmio}
    for each in report.unclaimed:
        others["addresses" if each.port is None else "ports"] -= each.count
        yield f"unclaimed: {each}"
    for kind, count in others.items():
        if count:
            yield f"unclaimed: other {kind} {counted(count, 'time')}"
