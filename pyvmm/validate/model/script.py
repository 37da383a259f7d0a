"""A script: a piece of guest memory, and steps that are taken on it one after the other.

As a file it is one JSON object: ``pyvmm-replay`` (the format's version), ``abi``, ``memory``
(the fields of :class:`Layout`), ``steps`` (each a name and its numbers, see :data:`STEPS`),
and what it came from: ``seed``, ``failure``, ``kernel``. Every sequence of steps whose numbers
are in bounds can be taken, so that a step can be left out of any script.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from pyvmm.errors import ConfigurationError
from pyvmm.json_file import read_json
from pyvmm.validate.kit.case import GIB, PAGE

VERSION = 1
MOST_STEPS = 100_000
_MOST_MIB = 16
_PLAIN_END = 0x40000  # below is the memory of the vCPUs' own code
SECOND_VIEW = GIB  # the shared view is so far above the private one
TAG_BITS = 24  # a filled word is a tag above the 40 bits of its own GPA


@dataclass(frozen=True, slots=True)
class Layout:
    """The memory of a script: ``slots`` memslots of about the same size from ``gpa`` on.

    They begin at page ``file_offset`` of file 0; there are ``files`` files of ``file_pages``
    pages. ``backing`` is what the host's side is made of. ``cpus`` vCPUs take steps; one
    more stays inside the guest while a page is watched.
    """

    gpa: int
    pages: int
    slots: int = 1
    files: int = 2
    file_pages: int = 0
    file_offset: int = 0
    backing: str = "anonymous"
    cpus: int = 2

    def slot_pages(self, slot: int) -> range:
        """The pages that a memslot covers."""
        each, rest = divmod(self.pages, self.slots)
        first = slot * each + min(slot, rest)
        return range(first, first + each + (slot < rest))

    def slot_of(self, page: int) -> int:
        return next(slot for slot in range(self.slots) if page in self.slot_pages(slot))


Step = tuple[Any, ...]  # a name and its numbers


@dataclass(frozen=True, slots=True)
class Rules:
    """What an ABI has: its name, its steps, views of each page, and what it needs."""

    abi: str
    needs: tuple[str, ...]
    steps: frozenset[str]
    backings: tuple[str, ...]
    views: int = 1
    most_slots: int = 64


#: Steps that every ABI has.
EVERYWHERE = frozenset(
    (
        "guest_read",
        "guest_write",
        "guest_add",
        "guest_fill",
        "guest_copy",
        "host_read",
        "host_write",
        "host_fill",
        "punch",
        "allocate",
        "delete_slot",
        "create_slot",
        "watch",
        "unwatch",
        "look",
    )
)

# What each step's numbers are. A "page" counts from the layout's first; where an ABI has two
# views, a "guest_page" past the last page is in the second one. A count goes with the page
# before it.
STEPS: dict[str, tuple[str, ...]] = {
    "to_private": ("page", "count"),
    "to_shared": ("page", "count"),
    "guest_read": ("cpu", "guest_page", "offset", "width"),
    "guest_write": ("cpu", "guest_page", "offset", "width", "value"),
    "guest_add": ("cpu", "guest_page", "offset", "width", "value"),  # lock xadd
    "guest_fill": ("cpu", "guest_page", "guest_count", "tag"),  # a word in each KiB
    "guest_copy": ("cpu", "guest_page", "guest_page", "copy_count"),  # from, to; rep movsq
    "host_read": ("page", "offset", "width"),
    "host_write": ("page", "offset", "width", "value"),
    "host_fill": ("page", "count", "tag"),
    "discard": ("page", "count"),  # of the host's side
    "punch": ("file", "file_page", "file_count"),
    "allocate": ("file", "file_page", "file_count"),
    "delete_slot": ("slot",),
    "create_slot": ("slot", "file_or_none", "file_page"),  # deletes the one that is there
    "close_file": ("file",),
    "new_file": ("file",),  # closes the one that is there
    "hypercall": ("cpu", "u64", "u64", "u64"),  # KVM_HC_MAP_GPA_RANGE: GPA, pages, attributes
    "watch": ("guest_page",),  # a vCPU reads its first word from now on, and never exits
    "unwatch": (),
    "look": ("cpu",),  # what changed last is read first, then everything
}
WIDTHS = (1, 2, 4, 8)
NEEDS_OF_STEPS: dict[str, tuple[str, ...]] = {
    "hypercall": ("hypercall_exit",),
    "watch": ("two_cpus", "native_guests"),
}


@dataclass(frozen=True, slots=True)
class Script:
    abi: str
    layout: Layout
    steps: tuple[Step, ...]
    seed: int = 0
    failure: str = ""
    kernel: str = ""

    @property
    def has_chances(self) -> bool:
        """Whether what comes of it may depend on when a vCPU beside it does what."""
        return any(step[0] == "watch" for step in self.steps)

    def needs(self, rules: Rules) -> tuple[str, ...]:
        """The capabilities without which it cannot run."""
        names = list(rules.needs)
        for name in dict.fromkeys(step[0] for step in self.steps):
            names += NEEDS_OF_STEPS.get(name, ())
        return tuple(dict.fromkeys(names))


# ---- the file ----


def to_text(script: Script) -> str:
    """The JSON, a step on each line."""
    head = {
        "pyvmm-replay": VERSION,
        "abi": script.abi,
        "memory": asdict(script.layout),
        "seed": script.seed,
        "kernel": script.kernel,
        "failure": script.failure,
    }
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    steps = ",\n".join(f"  {json.dumps(step)}" for step in script.steps)
    return "\n".join(["{", *lines, ' "steps": [', steps, " ]", "}"]) + "\n"


def load(path: str, rules: Callable[[str], Rules | None]) -> Script:
    """The script in a file. Raises :class:`ConfigurationError` for anything else.

    ``rules`` gives the rules of an ABI, None for one that is not known.
    """
    remedy = "name a file that `pyvmm validate` wrote for a failed MODEL case"
    data = read_json(path, _MOST_MIB, remedy)
    if not isinstance(data, dict) or "pyvmm-replay" not in data:
        raise ConfigurationError(path, "it is no script of pyvmm validate", remedy)
    if data["pyvmm-replay"] != VERSION or data["pyvmm-replay"] is True:
        version = f"{data['pyvmm-replay']!s:.40}"
        remedy = "run it with the pyvmm that wrote it, or let this one find the failure again"
        raise ConfigurationError(path, f"it has version {version}, not {VERSION}", remedy)
    try:
        return parse(data, rules)
    except ValueError as error:
        raise ConfigurationError(path, f"{error}", remedy) from None


def parse(data: dict[str, Any], rules: Callable[[str], Rules | None]) -> Script:
    """Check every number. Raises :class:`ValueError` that names the first that is wrong."""
    abi = data.get("abi")
    known = rules(abi) if isinstance(abi, str) else None
    if known is None:
        raise ValueError(f"abi {_short(abi)} is not known")
    layout = _layout(data.get("memory"), known)
    steps = data.get("steps")
    if not isinstance(steps, list) or len(steps) > MOST_STEPS:
        raise ValueError(f"steps is no list of at most {MOST_STEPS} steps")
    for number, step in enumerate(steps, 1):
        if problem := problem_with(step, layout, known):
            raise ValueError(f"step {number} {_short(step)}: {problem}")
    seed = data.get("seed", 0)
    texts = [data.get(name, "") for name in ("failure", "kernel")]
    if type(seed) is not int or not all(isinstance(text, str) for text in texts):
        raise ValueError("seed is no number, or failure or kernel is no text")
    return Script(known.abi, layout, tuple(tuple(step) for step in steps), seed, *texts)


def _layout(memory: object, rules: Rules) -> Layout:
    names = {each.name for each in fields(Layout)}
    if (
        not isinstance(memory, dict)
        or not set(memory) <= names
        or not {"gpa", "pages"} <= set(memory)
    ):
        raise ValueError(f"memory does not have the fields {', '.join(sorted(names))}")
    layout = Layout(**memory)
    bounds = {
        "gpa": range(_PLAIN_END, 6 * GIB + 1),
        "pages": range(1, 4097),
        "slots": range(1, rules.most_slots + 1),
        "files": range(1, 5),
        "file_pages": range(8193),
        "file_offset": range(4097),
        "cpus": range(1, 9),
    }
    for name, bound in bounds.items():
        value = getattr(layout, name)
        if type(value) is not int or value not in bound:
            raise ValueError(
                f"memory: {name} {_short(value)} is no number from {bound.start} to "
                f"{bound.stop - 1}"
            )
    if layout.backing not in rules.backings:
        raise ValueError(f"memory: backing {_short(layout.backing)} is not known")
    if layout.gpa % PAGE:
        raise ValueError(f"memory: gpa {layout.gpa:#x} is not a page's")
    if layout.slots > layout.pages or layout.file_offset + layout.pages > layout.file_pages:
        raise ValueError("memory: more slots than pages, or a file that ends before the pages do")
    return layout


def problem_with(step: object, layout: Layout, rules: Rules) -> str:
    """What is wrong with a step, "" for nothing."""
    if not isinstance(step, list | tuple) or not step or not isinstance(step[0], str):
        return "it is no name with numbers"
    if step[0] not in STEPS:
        return "there is no such step"
    if step[0] not in rules.steps:
        return f"{rules.abi} has no such step"
    kinds, numbers = STEPS[step[0]], step[1:]
    if len(numbers) != len(kinds):
        return f"it takes {len(kinds)} numbers: {', '.join(kinds)}"
    for index, (kind, number) in enumerate(zip(kinds, numbers, strict=True)):
        allowed = bounds_of(kind, numbers[:index], layout, rules)
        if type(number) is not int or number not in allowed:
            ends = f"from {allowed[0]} to {allowed[-1]}" if allowed else "that fits"
            if isinstance(allowed, tuple):
                ends = f"of {', '.join(map(str, allowed))}"
            return f"{kind} is no number {ends}"
    return ""


def bounds_of(
    kind: str, before: Iterable[int], layout: Layout, rules: Rules
) -> range | tuple[int, ...]:
    """What a number of a step may be, given those before it."""
    before = list(before)
    seen = layout.pages * rules.views
    match kind:
        case "page":
            return range(layout.pages)
        case "count":
            return range(1, layout.pages - before[-1] + 1)
        case "guest_page":
            return range(seen)
        case "guest_count":
            return range(1, seen - before[-1] + 1)
        case "copy_count":
            return range(1, seen - max(before[-2:]) + 1)
        case "offset":
            # An access that begins in the last page must end there.
            return range(PAGE - 7 if before[-1] % layout.pages == layout.pages - 1 else PAGE)
        case "width":
            return WIDTHS
        case "tag":
            return range(1 << TAG_BITS)
        case "value" | "u64":
            return range(1 << 64)
        case "cpu":
            return range(layout.cpus)
        case "slot":
            return range(layout.slots)
        case "file":
            return range(layout.files)
        case "file_or_none":
            return range(-1, layout.files)
        case "file_page":
            return range(layout.file_pages)
        case "file_count":
            return range(1, layout.file_pages - before[-1] + 1)
    raise AssertionError(kind)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
