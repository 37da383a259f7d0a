"""Finds trouble in a kernel's log: warnings, oopses, panics, hung tasks, lockups.

The kernel prints no mark that all of these share, so they are known by how their first line
begins (lib/bug.c, kernel/panic.c, arch/x86/kernel/dumpstack.c, kernel/hung_task.c,
kernel/watchdog.c, kernel/rcu/tree_stall.h, mm/ and lib/ sanitizers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

_STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[[^\]]*\])? ")
_SECONDS = re.compile(r"^(?:<\d+>)?\[ *(\d+\.\d+)\]")
_FIRST_LINE = re.compile(
    r"WARNING: |(?:watchdog: )?BUG: |kernel BUG at |Oops: |Oops\b.*\[#\d+\]"
    r"|(?:traps: )?(?:PANIC: )?double fault|general protection fault.*\[#\d+\]"
    r"|invalid opcode: .*\[#\d+\]|Kernel panic - not syncing"
    r"|INFO: task .* blocked for more than|INFO: rcu\w* .*stall|rcu: INFO: .*stall"
    r"|UBSAN: |\[ BUG: |kmemleak: \d+ new suspected|unchecked MSR access error|Uhhuh\. NMI received"
)
#: What begins as trouble does, but is a later line of the block that it stands in.
_MIDDLE = re.compile(r"Oops: |kernel BUG at ")
_CUT_HERE = "------------[ cut here ]------------"
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
#: What `pyvmm validate` writes as a case begins and ends.
_MARK = re.compile(r"pyvmm: (begins|ended): (\S.*)")
#: Hung tasks, stalls and sanitizers print no end mark: so many lines are taken to be theirs.
_LONGEST = 60


#: What differs between two occurrences of the same trouble, and between two builds.
_NUMBERS = re.compile(r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?|\b(?:0x)?[0-9a-f]{8,16}\b|\d+")


@dataclass(frozen=True, slots=True)
class Splat:
    """One piece of trouble: its first line without the time stamp, and all its lines.

    ``cases`` are those of `pyvmm validate` in the middle of which it came.
    """

    title: str
    lines: tuple[str, ...]
    cases: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The title without CPUs, processes, addresses and line numbers."""
        return _NUMBERS.sub("*", self.title)


def find_splats(log: Iterable[str]) -> tuple[Splat, ...]:
    """The splats of a kernel log, in order. `log` gives its lines without line ends."""
    splats: list[Splat] = []
    title = ""
    lines: list[str] = []
    running: dict[str, None] = {}
    cases: tuple[str, ...] = ()

    def close() -> None:
        nonlocal title, lines
        if title:
            splats.append(Splat(title, tuple(lines), cases))
        title, lines = "", []

    for line in log:
        text = _STAMP.sub("", line)
        if _take_mark(text, running):
            continue
        if lines and not title:  # the line after the cut mark names the trouble
            title = text
            lines.append(line)
        elif text == _CUT_HERE:
            close()
            lines, cases = [line], tuple(running)
        elif _FIRST_LINE.match(text) and not (lines and _MIDDLE.match(text)):
            close()
            title, lines, cases = text, [line], tuple(running)
        elif lines:
            lines.append(line)
            if _END.match(text) or len(lines) == _LONGEST:
                close()
    close()
    return tuple(splats)


def _take_mark(text: str, running: dict[str, None]) -> bool:
    """Whether this line of the log says that a case begins or ends; ``running`` then knows it."""
    mark = _MARK.fullmatch(text)
    if mark is None:
        return False
    if mark[1] == "begins":
        running[mark[2]] = None
    else:
        running.pop(mark[2], None)
    return True


def running_at(log: Iterable[str], at: float, within: float = 0.0) -> tuple[str, ...]:
    """The cases that ran so many seconds after boot, give or take ``within``."""
    running: dict[str, None] = {}
    found: dict[str, None] = {}
    for line in log:
        stamp = _SECONDS.match(line)
        if stamp and float(stamp[1]) > at + within:
            break
        if stamp and float(stamp[1]) >= at - within:
            found.update(running)
        _take_mark(_STAMP.sub("", line), running)
    found.update(running)
    return tuple(found)


def by_kind(splats: Iterable[Splat]) -> Iterator[tuple[Splat, int]]:
    """The first splat of each kind, and how many there are of it; the cases of all."""
    found: dict[str, list[Splat]] = {}
    for splat in splats:
        found.setdefault(splat.kind, []).append(splat)
    for each in found.values():
        cases = tuple(dict.fromkeys(case for splat in each for case in splat.cases))
        yield replace(each[0], cases=cases), len(each)
