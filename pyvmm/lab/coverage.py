"""Kernels whose KVM counts what it executes, and what the counters say.

The counters are gcov's: Documentation/dev-tools/gcov.rst. The kernel writes them in the
format of the compiler that it was built with, and `gcov` of that compiler reads them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import add
from pathlib import Path
from typing import NamedTuple

from pyvmm.lab.errors import LabError
from pyvmm.lab.programs import require

CONFIG = "CONFIG_GCOV_KERNEL=y\n"
#: virt/kvm is built from there, too. Counters that several CPUs change at once must not lose
#: anything: of most lines gcov works out the count from those of others.
APPENDED = {
    "arch/x86/kvm/Makefile": "GCOV_PROFILE := y\nccflags-y += -fprofile-update=prefer-atomic\n"
}
#: Where KVM on x86 is.
FOLDERS = ("virt/kvm/", "arch/x86/kvm/")
_FORMAT = "kernel/gcov/gcc_4_7.c"
_DEFINITIONS = re.compile(r"^#if .*?^#define GCOV_COUNTERS.*?^#endif", re.M | re.S)
_OBJECT = re.compile(r"\.size\s+\.LPBX0,\s*(\d+)")
#: struct gcov_info without its array of functions, with a pointer for each kind of counter.
_WITHOUT_COUNTERS = 48


def check_compiler(files: Path) -> None:
    """A LabError unless the kernel source in `files` writes counters as this compiler has them.

    Both are asked: the compiler for the size of its structure, the source for its number of
    counters. A kernel of another format would write what nobody can read, or crash.
    """
    require("gcc", "gcov")
    try:
        definitions = _DEFINITIONS.search((files / _FORMAT).read_text())
    except OSError:
        definitions = None
    if definitions is None:
        raise LabError("coverage", f"the source has no {_FORMAT} that pyvmm knows")
    said = _gcc("-E", "-P", text=f"{definitions[0]}\nGCOV_COUNTERS\n").split()
    made = _OBJECT.search(
        _gcc("-S", "-fprofile-arcs", "-ftest-coverage", text="int f(int a) { return a ? 1 : 2; }\n")
    )
    if made is None or not said:
        raise LabError("coverage", "gcc -fprofile-arcs makes nothing that pyvmm knows")
    of_gcc, of_kernel = (int(made[1]) - _WITHOUT_COUNTERS) // 8, int(said[-1])
    if of_gcc != of_kernel:
        version = _gcc("-dumpfullversion").strip()
        raise LabError(
            "coverage",
            f"gcc {version} has {of_gcc} kinds of counters and {_FORMAT} writes {of_kernel}",
            "use another gcc, or a newer kernel",
        )


def _gcc(*words: str, text: str = "") -> str:
    with tempfile.TemporaryDirectory(prefix="pyvmm-gcc-") as place:
        given = ["-x", "c", "-", "-o", "-"] if text else []
        done = subprocess.run(
            ["gcc", *words, *given], input=text, capture_output=True, text=True, cwd=place
        )
    if done.returncode:
        raise LabError("coverage", f"gcc {words[0]} fails", done.stderr.strip().splitlines()[-1])
    return done.stdout


def keep_notes(objects: Path, folder: Path) -> None:
    """Copy what the compiler noted of KVM's code from a build to where the kernel is kept."""
    for top in FOLDERS:
        for note in (objects / top).rglob("*.gcno"):
            target = folder / "gcno" / note.relative_to(objects)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(note, target)


# ---- counters as the kernel writes them ----

_MAGIC = b"adcg"  # GCOV_DATA_MAGIC, little-endian
_ARCS = 0x01A10000  # GCOV_TAG_COUNTER_BASE: how often each arc between blocks was taken
_SHORTEST = 16
_LONGEST = 64 << 20  # more counters than the largest object has
_LENGTH_IN_BYTES = 12  # the first gcc whose lengths count bytes, not words


def add_counters(one: bytes, other: bytes) -> bytes:
    """The sum of two .gcda files of one object, each empty if the object executed nothing.

    A LabError when they are none of one object.
    """
    if not one or not other:
        return one or other
    if not one.startswith(_MAGIC) or one[:12] != other[:12] or len(one) < _SHORTEST:
        raise LabError("coverage", "counters of different objects")
    total = b""
    for mine, others in zip_longest(_records(one), _records(other)):
        if mine is None or others is None or (mine.tag, mine.size) != (others.tag, others.size):
            raise LabError("coverage", "counters of different objects")
        if mine.tag == _ARCS:
            counts = map(add, array("Q", mine.content), array("Q", others.content))
            total += mine.head + array("Q", counts).tobytes()
        else:
            total += mine.head + mine.content
    return one[: _start(one)] + total


class _Record(NamedTuple):
    tag: int
    size: int
    content: bytes
    head: bytes


def _records(content: bytes) -> Iterator[_Record]:
    """The records of a .gcda file; counters that are left out because all are 0 are put in."""
    unit = 1 if _major(content) >= _LENGTH_IN_BYTES else 4
    at = _start(content)
    while at + 8 <= len(content):
        tag, length = struct.unpack_from("<Ii", content, at)
        size, at = abs(length) * unit, at + 8
        is_whole = at + max(length, 0) * unit <= len(content) and size <= _LONGEST
        if not is_whole or (tag == _ARCS and size % 8):
            raise LabError("coverage", "a file of counters is cut short, or is none")
        found = bytes(size) if length < 0 else content[at : at + size]
        yield _Record(tag, size, found, struct.pack("<II", tag, abs(length)))
        at += 0 if length < 0 else size


def _start(content: bytes) -> int:
    """Where the records begin: behind magic, version, stamp and, since gcc 12, a checksum."""
    return 16 if _major(content) >= _LENGTH_IN_BYTES else 12


def _major(content: bytes) -> int:
    """gcc's version in a .gcda: "B22*" for 12.2."""
    tens, ones = content[7] - ord("A"), content[6] - ord("0")
    return tens * 10 + ones


@dataclass(slots=True)
class Lines:
    """What was executed of one file: how often each line was, and each branch of a line.

    ``functions`` has the first and last line of each by name, ``calls`` how often it was entered.
    Several may begin in one line, which a macro or a file that is included twice makes of them.
    """

    counts: dict[int, int] = field(default_factory=dict)
    branches: dict[int, list[int]] = field(default_factory=dict)
    functions: dict[str, tuple[int, int]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, other: Lines) -> None:
        for line in other.counts.keys() | other.branches.keys():
            self._add_branches(line, other)
        for line, count in other.counts.items():
            self.counts[line] = self.counts.get(line, 0) + count
        self.functions.update(other.functions)
        for name, count in other.calls.items():
            self.calls[name] = self.calls.get(name, 0) + count

    def _add_branches(self, line: int, other: Lines) -> None:
        """Those of another copy of an inlined line. One that never ran says nothing of one that
        did; of several that did, what any of them took was taken."""
        ran, other_ran = self.counts.get(line, 0) > 0, other.counts.get(line, 0) > 0
        if other_ran and not ran:
            self.branches.pop(line, None)
        mine, taken = self.branches.get(line, []), other.branches.get(line, [])
        if not taken or (ran and not other_ran):
            return
        if len(mine) != len(taken):
            self.branches[line] = [*mine, *taken]
        else:
            self.branches[line] = [a + b for a, b in zip(mine, taken, strict=True)]

    @property
    def executed(self) -> int:
        return sum(count > 0 for count in self.counts.values())


Coverage = dict[str, Lines]


def read_counters(
    notes: Path, counters: Mapping[str, bytes], also: Container[str] = ()
) -> Coverage:
    """What counters say, by file of the kernel's source: of KVM's folders, and of ``also``.

    ``counters`` has the contents of the kernel's .gcda files by name from the build folder, empty
    for an object that executed nothing; ``notes`` is the folder of the .gcno files.
    Raises :class:`LabError` for what gcov refuses.
    """
    require("gcov")
    found: Coverage = {}
    with tempfile.TemporaryDirectory(prefix="pyvmm-gcov-") as place:
        names: dict[str, str] = {}
        for number, (name, content) in enumerate(counters.items()):
            note = (notes / name).with_suffix(".gcno")
            if not note.exists():
                raise LabError(f"coverage of {name}", "there are no notes of its compilation")
            # gcov looks for both files by one name.
            stem = Path(place, f"{number}-{note.stem}")
            if content:  # gcov takes a file that is not there for one of zeros
                stem.with_suffix(".gcda").write_bytes(content)
            stem.with_suffix(".gcno").symlink_to(note)
            names[stem.with_suffix(".gcda").name] = name
        if not names:
            return {}
        done = subprocess.run(
            ["gcov", "--json-format", "--stdout", "--branch-probabilities", *names],
            capture_output=True,
            cwd=place,
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise LabError("gcov", said[-1] if said else f"it ended with status {done.returncode}")
    for line in done.stdout.splitlines():
        if line.strip():
            report = json.loads(line)
            top = _top(names[report["data_file"]], [file["file"] for file in report["files"]])
            _take(report, top, also, found)
    return found


def _take(
    report: Mapping[str, list[dict[str, object]]],
    top: str | None,
    also: Container[str],
    found: Coverage,
) -> None:
    for file in report["files"]:
        name = _source_name(str(file["file"]), top)
        if name is None or not (name.startswith(FOLDERS) or name in also):
            continue
        lines = Lines()
        for line in file["lines"]:  # type: ignore[attr-defined]
            number = line["line_number"]
            taken = [branch["count"] for branch in line["branches"]]
            lines.add(Lines({number: line["count"]}, {number: taken} if taken else {}))
        for function in file["functions"]:  # type: ignore[attr-defined]
            span = function["start_line"], function["end_line"]
            lines.functions[function["demangled_name"]] = span
            lines.calls[function["demangled_name"]] = function["execution_count"]
        _enter_inlined(lines)
        found.setdefault(name, Lines()).add(lines)


def _enter_inlined(lines: Lines) -> None:
    """Let functions of one object be entered whose code was executed where it is inlined.

    gcov counts what is inlined in its lines, but for the first: that is of the function alone.
    """
    executed = sorted(number for number, count in lines.counts.items() if count)
    entered = {first for name, (first, _) in lines.functions.items() if lines.calls[name]}
    for name, (first, last) in lines.functions.items():
        at = bisect_right(executed, first)
        if first in entered or at == len(executed) or executed[at] > last:
            continue
        count = lines.counts[executed[at]]
        lines.add(Lines({first: count}, calls={name: count}))
        entered.add(first)


def _top(name: str, paths: Iterable[str]) -> str | None:
    """How the paths of the source begin in an object's report, which its own C file tells."""
    source = f"{name.removesuffix('.gcda')}.c"
    for path in map(os.path.normpath, paths):
        if path == source or path.endswith(f"/{source}"):
            return path.removesuffix(source)
    return None


def _source_name(path: str, top: str | None) -> str | None:
    """A file as the source's top has it; None for one of another part of the machine."""
    path = os.path.normpath(path)
    if top is not None:
        return path.removeprefix(top) if path.startswith(top) else None
    at = max(f"/{path}".rfind(f"/{folder}") for folder in FOLDERS)
    return path[at:] if at >= 0 else None


def merge(parts: Iterable[Coverage]) -> Coverage:
    total: Coverage = {}
    for part in parts:
        for name, lines in part.items():
            total.setdefault(name, Lines()).add(lines)
    return total
