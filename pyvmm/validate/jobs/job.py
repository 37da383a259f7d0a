"""A job: cases, a seed, a kernel and a machine. It is one JSON object, named by its content.

    {"pyvmm-job": 1, "pyvmm": "0.1.0", "kernel": {"name": "default"}, "cases": ["MR6.…", …],
     "seed": 7, "cpus": 2, "memory_mib": 2048, "parameters": ["hugepages=16"],
     "model_examples": 0, "timeout_s": 1800.0, "beside": 2, "repeat": 0}

``kernel`` is {``name``}, one that the lab has by this name or knows how to build; {``image``,
``sha256``}, a bzImage; or {``source``, ``patches`` [{``name``, ``text``}], ``config``,
``debug``}, what one is built from, with the patches' whole texts. What stands behind ``seed`` may
be left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pyvmm import __version__
from pyvmm.errors import ConfigurationError
from pyvmm.lab.debug_options import debug_names, parse_debug
from pyvmm.lab.errors import LabUsageError
from pyvmm.lab.kernels import check_name
from pyvmm.lab.lab import check_machine
from pyvmm.validate.kit.case import Case
from pyvmm.validate.run.catalogue import all_cases, nearest, select
from pyvmm.validate.run.session import WORKERS

FORMAT = 1
#: For the cases with hugetlb memory; a lab has none otherwise.
HUGE_PAGES = "hugepages=16"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[^/\0\n]{1,200}")
_NAME_A_JOB = "name a file that `pyvmm lab cut` wrote"
_MAKE_AGAIN = "make it again with this version of pyvmm"
_LONGEST_FILE = 64 << 20
#: How much time a job may be given, in seconds.
LONGEST_S = 1e6
_MOST_EXAMPLES = 1_000_000
_MOST_BESIDE = 256

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Named:
    """A kernel that the lab has by this name, or knows how to build."""

    name: str


@dataclass(frozen=True, slots=True)
class Image:
    """A bzImage with these contents."""

    image: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch's name and text; bytes that are no UTF-8 are as "surrogateescape" has them."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Built:
    """What a kernel is built from; see :class:`pyvmm.lab.build.Recipe`."""

    source: str
    patches: tuple[Patch, ...] = ()
    config: str = ""
    debug: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """Cases by their names, and everything that what comes out may depend on.

    ``beside`` is how many cases run beside each other. ``repeat`` tells jobs apart that are alike
    otherwise, to see whether the same comes of them.
    Raises :class:`LabUsageError` for what cannot be, such as cases that this pyvmm does not have.
    """

    kernel: Named | Image | Built
    cases: tuple[str, ...]
    seed: int
    cpus: int = 2
    memory_mib: int = 2048
    parameters: tuple[str, ...] = (HUGE_PAGES,)
    model_examples: int = 0
    timeout_s: float = 1800.0
    beside: int = WORKERS
    repeat: int = 0

    def __post_init__(self) -> None:
        check_machine(self.cpus, self.memory_mib, self.parameters)
        known = {each.name for each in all_cases()}
        if not self.cases:
            _refuse("cases", "there is none")
        for name in self.cases:
            if name not in known:
                cause = "there is no such case"
                raise LabUsageError(f"case {name!r:.60}", cause, _nearest_case(name))
        if len(set(self.cases)) < len(self.cases):
            _refuse("cases", "one is there twice")
        _check_number("seed", self.seed, 0, (1 << 64) - 1)
        _check_number("beside", self.beside, 1, _MOST_BESIDE)
        _check_number("repeat", self.repeat, 0, _MOST_EXAMPLES)
        _check_number("model_examples", self.model_examples, 0, _MOST_EXAMPLES)
        if not 0 < self.timeout_s <= LONGEST_S:  # false for nan, too
            _refuse("timeout_s", f"want more than 0 and at most {LONGEST_S:.0f}")

    @property
    def name(self) -> str:
        """Of its content: another one for anything that differs."""
        return hashlib.sha256(to_text(self).encode()).hexdigest()[:16]

    @property
    def expression(self) -> str:
        """The cases for ``pyvmm validate -k``, those of an id together where all are chosen."""
        chosen = set(self.cases)
        of: dict[str, list[Case]] = {}
        for each in all_cases():
            of.setdefault(each.id, []).append(each)
        words: list[str] = []
        for id, cases in of.items():
            names = [each.name for each in cases if each.name in chosen]
            words += [id] if len(names) == len(cases) else names
        return " or ".join(words)

    @property
    def chosen(self) -> list[Case]:
        """The cases, in the catalogue's order."""
        names = set(self.cases)
        return [each for each in select(model_examples=self.model_examples) if each.name in names]

    @property
    def longest_s(self) -> float:
        """How long the slowest of its cases may take."""
        return max(each.longest_s for each in self.chosen)


def _nearest_case(name: str) -> str:
    """A remedy for a name that is none: of an id or part of a name, a whole one."""
    try:
        return f"did you mean {select(name)[0].name}?"
    except ConfigurationError:
        return nearest(name)


def to_text(job: Job) -> str:
    """The job as JSON; one text for one job."""
    data = {"pyvmm-job": FORMAT, "pyvmm": __version__, **asdict(job)}
    data["timeout_s"] = float(job.timeout_s)
    return json.dumps(data, sort_keys=True)


def load(path: Path) -> Job:
    """The job in a file. Raises :class:`LabUsageError` for anything else."""
    called = f"job {path}"
    try:
        with open(path, "rb") as file:
            text = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise LabUsageError(called, error.strerror or str(error), _NAME_A_JOB) from None
    if len(text) > _LONGEST_FILE:
        cause = f"it is longer than {_LONGEST_FILE >> 20} MiB"
        raise LabUsageError(called, cause, _NAME_A_JOB)
    return from_text(text.decode(errors="replace"), called)


def from_text(text: str, called: str = "job") -> Job:
    """The job that JSON says; errors name it as ``called``.

    Raises :class:`LabUsageError` for what is no job of this pyvmm.
    """
    try:
        return _job(json.loads(text, object_pairs_hook=_without_doubles))
    except LabUsageError as error:
        cause = ": ".join(filter(None, (error.thing, error.cause)))
        raise LabUsageError(called, cause, error.remedy) from None
    except (ValueError, RecursionError):
        raise LabUsageError(called, "it is not JSON", _NAME_A_JOB) from None


def _job(data: object) -> Job:
    if not isinstance(data, dict) or "pyvmm-job" not in data:
        _refuse("", "it is no job of pyvmm", _NAME_A_JOB)
    fields = _Fields("", data)
    number, made_by = fields.take("pyvmm-job", int), fields.take("pyvmm", str)
    if number != FORMAT:
        _refuse("", f"it has format {number!s:.40}, not {FORMAT}", _MAKE_AGAIN)
    if made_by != __version__:
        _refuse("", f"it is for pyvmm {made_by:.40}, and this is {__version__}", _MAKE_AGAIN)
    kernel = _kernel(fields.take("kernel", dict))
    job = Job(
        kernel,
        fields.texts("cases"),
        fields.take("seed", int),
        fields.take("cpus", int, 2),
        fields.take("memory_mib", int, 2048),
        fields.texts("parameters", (HUGE_PAGES,)),
        fields.take("model_examples", int, 0),
        fields.number("timeout_s", 1800.0),
        fields.take("beside", int, WORKERS),
        fields.take("repeat", int, 0),
    )
    fields.end()
    return job


def _kernel(data: dict[str, Any]) -> Named | Image | Built:
    fields = _Fields("kernel", data)
    kernel: Named | Image | Built
    if "name" in data:
        kernel = Named(check_name(fields.take("name", str)))
    elif "image" in data:
        kernel = Image(fields.take("image", str), fields.take("sha256", str))
        if not _SHA256.fullmatch(kernel.sha256):
            _refuse("kernel, sha256", "want 64 digits of a hexadecimal number")
    elif "source" in data:
        patches = [_patch(each) for each in fields.take("patches", list, [])]
        kernel = Built(
            fields.take("source", str),
            tuple(patches),
            fields.take("config", str, ""),
            fields.texts("debug", ()),
        )
        if unknown := set(kernel.debug) - set(debug_names()):
            _refuse("kernel, debug", f"{sorted(unknown)[0]!r:.60} is nothing to watch for")
        parse_debug(",".join(kernel.debug)) if kernel.debug else ()
    else:
        _refuse("kernel", "want name, image or source")
    fields.end()
    return kernel


def _patch(data: object) -> Patch:
    if not isinstance(data, dict):
        _refuse("kernel, patches", "want a list of objects")
    fields = _Fields("patch", data)
    patch = Patch(fields.take("name", str), fields.take("text", str))
    fields.end()
    if not _FILE_NAME.fullmatch(patch.name) or patch.name in (".", ".."):
        _refuse("patch, name", f"{patch.name!r:.60} is no name of a file")
    return patch


class _Fields:
    """The fields of an object, each to be taken once; ``what`` names it, "" the one at the top."""

    def __init__(self, what: str, data: Mapping[str, Any]) -> None:
        self._what = what
        self._left = dict(data)

    def take(self, name: str, kind: type[Kind], default: Kind | None = None) -> Kind:
        if name not in self._left:
            if default is None:
                _refuse(self._place(name), "it is missing")
            return default
        value = self._left.pop(name)
        if type(value) is not kind:  # a bool is no number
            _refuse(self._place(name), f"want {_WORDS[kind]}")
        if isinstance(value, str):
            _check_text(self._place(name), value)
        return value

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        values = self.take(name, list, None if default is None else list(default))
        for each in values:
            if type(each) is not str:
                _refuse(self._place(name), "want a list of texts")
            _check_text(self._place(name), each)
        return tuple(values)

    def number(self, name: str, default: float) -> float:
        if type(self._left.get(name)) is int:
            self._left[name] = float(max(-1, min(self._left[name], 1 << 64)))
        return self.take(name, float, default)

    def end(self) -> None:
        if self._left:
            _refuse(self._place(f"{sorted(self._left)[0]!r:.60}"), "nobody knows this key")

    def _place(self, name: str) -> str:
        return f"{self._what}, {name}" if self._what else name


_WORDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _check_text(place: str, text: str) -> None:
    """What no file's name and no command line can have."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        _refuse(place, "it has half a character")
    if "\0" in text:
        _refuse(place, "it has a character 0")


def _check_number(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        _refuse(name, f"want a number from {least} to {most}")


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        _refuse(f"{twice!r:.60}", "it is there twice")
    return data


def _refuse(thing: str, cause: str, remedy: str = "") -> NoReturn:
    raise LabUsageError(thing, cause, remedy)
