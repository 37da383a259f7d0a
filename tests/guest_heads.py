"""What the heads of the guests in guests/ promise, and whether a run kept it.

A head's lines are ``# key [conditions]: value``, or `` * key …`` in C. Conditions are options of
``pyvmm run`` (``--views 1``, ``--mode long``, ``--param NAME=VALUE``), a backend's name, or
``hypercall`` when the guest could use one. Of the lines with the same key, the last whose
conditions hold counts.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pyvmm.guest.assembler import load_guest
from pyvmm.guest.image import Image
from pyvmm.guest.shipped import guests_dir
from pyvmm.machine import Machine
from pyvmm.report import RunReport

DEADLINE_S = 200.0  # a guest that needs it has a busy host, or is in the lab
EXPECTED_DEADLINE_S = 1.0

_KEYS = "modes|vcpus|options|expect|skip|conversions|measures"
_LINE = re.compile(rf"(?:#| \*) ({_KEYS})\b([^:]*):\s*(.*)")
_OPTION = re.compile(r"--(views|param|mode) (\S+)|--irqchip")


@dataclass(frozen=True, slots=True)
class Head:
    """What a guest's head says: (key, conditions, value), in order."""

    lines: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, path: Path) -> Head:
        found = (_LINE.match(line) for line in path.read_text().splitlines())
        return cls(tuple((m[1], m[2].strip(), m[3].strip()) for m in found if m))

    def option_sets(self) -> list[str]:
        """The options that lines are conditional on, in each of its modes; none at first."""
        sets = [
            " ".join(m[0] for m in _OPTION.finditer(where) if m[1] != "mode")
            for _, where, _ in self.lines
        ]
        modes = [f"--mode {mode}" for mode in self.value("modes", "").split()] or [""]
        each = itertools.product(dict.fromkeys(["", *sets]), modes)
        return [f"{options} {mode}".strip() for options, mode in each]

    def value(self, key: str, holding: str) -> str:
        """The last value of ``key`` whose conditions are all among ``holding``."""
        words = set(_conditions(holding))
        mine = [(where, value) for each, where, value in self.lines if each == key]
        fitting = [value for where, value in mine if words.issuperset(_conditions(where))]
        return fitting[-1] if fitting else ""

    def vcpus(self) -> range:
        first, _, last = self.value("vcpus", "").split(",")[0].partition("-")
        return range(int(first), int(last or first) + 1)


@dataclass(frozen=True, slots=True)
class Options:
    views: int = 2
    irqchip: bool = False
    parameters: dict[str, int] = field(default_factory=dict)
    mode: str | None = None

    @classmethod
    def of(cls, text: str) -> Options:
        views, irqchip, parameters, mode = 2, False, {}, None
        for option in _OPTION.finditer(text):
            if option[1] == "views":
                views = int(option[2])
            elif option[1] == "mode":
                mode = option[2]
            elif option[1] == "param":
                name, _, value = option[2].partition("=")
                parameters[name] = int(value, 0)
            else:
                irqchip = True
        return cls(views, irqchip, parameters, mode)


def _conditions(text: str) -> list[str]:
    """``--views 1 hypercall`` is two conditions."""
    options = [m[0] for m in _OPTION.finditer(text)]
    return options + _OPTION.sub("", text).split()


def guests() -> list[Path]:
    folders = (guests_dir(), guests_dir() / "long")
    return [path for folder in folders for path in sorted(folder.glob("*.[Sc]"))]


def cases(vcpus: tuple[int, ...] = (1, 2), rounds: int = 1) -> list[Any]:
    """Every guest with each set of options that its head names, on so many vCPUs; all of that
    ``rounds`` times."""
    found: list[Any] = []
    for turn, path in itertools.product(range(rounds), guests()):
        head = Head.of(path)
        for options in head.option_sets():
            for count in vcpus:
                if count in head.vcpus():
                    name = "-".join([path.stem, *options.replace("--", "").split(), str(count)])
                    name += f"-round-{turn + 1}" if rounds > 1 else ""
                    found.append(pytest.param(path, options, count, id=name))
    return found


@cache
def _image(path: Path, parameters: tuple[tuple[str, int], ...], mode: str | None) -> Image:
    """A compiler takes longer than most of the guests, and in the lab far longer."""
    return load_guest(str(path), dict(parameters), mode)


def run_guest(path: Path, head: Head, options: str, vcpus: int, backend: str = "auto") -> RunReport:
    asked = Options.of(f"{options} {head.value('options', '')}")
    forever = head.value("expect", options) == "deadline"
    image = _image(path, tuple(asked.parameters.items()), asked.mode)
    with Machine(
        image, backend=backend, views=asked.views, vcpus=vcpus, irqchip=asked.irqchip
    ) as machine:
        return machine.run(EXPECTED_DEADLINE_S if forever else DEADLINE_S)


def skip_where_the_head_says(head: Head, options: str, backend: str) -> None:
    """Skip the test of a guest that this backend cannot run, with the head's reason."""
    if reason := head.value("skip", f"{options} {backend}"):
        pytest.skip(reason)


def check_report(report: RunReport, head: Head, options: str) -> None:
    """Assert that a run ended as the head promises, with as many conversions."""
    holding = f"{options} {report.backend}"
    if report.exits.get("hypercall"):
        holding += " hypercall"

    outcome = [f"{report.result}", f"{report.result} exit_code={report.exit_code}"]
    allowed = [each.strip() for each in head.value("expect", holding).split("|")]
    assert set(outcome) & set(allowed), report.reason

    done = report.conversions
    counts = {
        name: getattr(done, name) for name in ("to_private", "to_shared", "implicit", "explicit")
    }
    assert done.to_private + done.to_shared == done.implicit + done.explicit
    promised = head.value("conversions", holding)
    if report.passed and promised not in ("", "any"):
        assert promised == " ".join(f"{name}={count}" for name, count in counts.items())
    measures = head.value("measures", holding).split()
    if report.passed and measures:
        assert list(report.measures) == [counts[name] for name in measures]
