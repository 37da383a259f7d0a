"""A run as JSON lines, written while it goes on: what was seen outlives a kernel that dies.

The first line has ``schema``, ``pyvmm``, ``machine`` and ``seed`` as the report has them, and
``cases``, the names of those that are to run. Then comes, as it happens,
``{"started": name}`` or ``{"ended": result}``, both with ``at`` (s, CLOCK_MONOTONIC), and last
``{"duration_s": …}``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from pyvmm.errors import ConfigurationError
from pyvmm.validate.results import report
from pyvmm.validate.results.result import CaseResult


def first(machine: dict[str, Any], seed: int, names: Iterable[str]) -> str:
    return json.dumps({**report.heading(machine, seed), "cases": list(names)})


def started(name: str) -> str:
    return json.dumps({"at": time.monotonic(), "started": name})


def ended(result: CaseResult) -> str:
    return json.dumps({"at": time.monotonic(), "ended": report.result_to_json(result)})


def last(duration_s: float) -> str:
    return json.dumps({"duration_s": round(duration_s, 3)})


class Transcript:
    """What such lines say so far; :meth:`feed` takes bytes as they come.

    ``planned`` are the names of the cases that are to run, ``running`` those that began and
    have not ended, ``times`` when each began and ended; ``whole`` says that the last line was
    there. Raises :class:`ConfigurationError` for lines that are none of these.
    """

    def __init__(self) -> None:
        self.machine: dict[str, Any] = {}
        self.seed = 0
        self.planned: tuple[str, ...] = ()
        self.running: dict[str, float] = {}
        self.times: dict[str, tuple[float, float]] = {}
        self.results: list[CaseResult] = []
        self.duration_s = 0.0
        self.whole = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except (KeyError, TypeError, ValueError):
                words = line.decode(errors="replace")
                raise ConfigurationError(
                    "pyvmm validate --json-lines", f"it printed {words!r:.200}"
                ) from None

    def _take(self, data: dict[str, Any]) -> None:
        if "started" in data:
            self.running[data["started"]] = data["at"]
        elif "ended" in data:
            result = report.result_from_json(data["ended"])
            self.times[result.name] = (self.running.pop(result.name), data["at"])
            self.results.append(result)
        elif "cases" in data:
            self.machine, self.seed = dict(data["machine"]), int(data["seed"])
            self.planned = tuple(data["cases"])
        else:
            self.duration_s, self.whole = data["duration_s"], True
