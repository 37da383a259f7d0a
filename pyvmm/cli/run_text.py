"""The report of a run as text for people."""

from __future__ import annotations

from typing import TextIO

from pyvmm.report import RunReport


def render(report: RunReport, out: TextIO) -> None:
    print(report.console, end="", file=out)
    print(f"{report.result.value} {report.reason}", file=out)
