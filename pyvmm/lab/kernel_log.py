"""Finds trouble in a kernel's log: warnings, oopses, panics, hung tasks, lockups.

The kernel prints no mark that all of these share, so they are known by how their first line
begins (lib/bug.c, kernel/panic.c, arch/x86/kernel/dumpstack.c, kernel/hung_task.c,
kernel/watchdog.c, kernel/rcu/tree_stall.h, mm/ and lib/ sanitizers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[[^\]]*\])? ")
_FIRST_LINE = re.compile(
    r"WARNING: |(?:watchdog: )?BUG: |kernel BUG at |Oops: |Oops\b.*\[#\d+\]"
    r"|(?:traps: )?(?:PANIC: )?double fault|general protection fault.*\[#\d+\]"
    r"|invalid opcode: .*\[#\d+\]|Kernel panic - not syncing"
    r"|INFO: task .* blocked for more than|INFO: rcu\w* .*stall|rcu: INFO: .*stall"
    r"|UBSAN: |unchecked MSR access error|Uhhuh\. NMI received"
)
#: What begins as trouble does, but is a later line of the block that it stands in.
_MIDDLE = re.compile(r"Oops: |kernel BUG at ")
_CUT_HERE = "------------[ cut here ]------------"
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
#: Hung tasks, stalls and sanitizers print no end mark: so many lines are taken to be theirs.
_LONGEST = 60


#: What differs between two occurrences of the same trouble, and between two builds.
_NUMBERS = re.compile(r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?|\b(?:0x)?[0-9a-f]{8,16}\b|\d+")


@dataclass(frozen=True, slots=True)
class Splat:
    """One piece of trouble: its first line without the time stamp, and all its lines."""

    title: str
    lines: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The title without CPUs, processes, addresses and line numbers."""
        return _NUMBERS.sub("*", self.title)


def find_splats(log: Iterable[str]) -> tuple[Splat, ...]:
    """The splats of a kernel log, in order. `log` gives its lines without line ends."""
    splats: list[Splat] = []
    title = ""
    lines: list[str] = []

    def close() -> None:
        nonlocal title, lines
        if title:
            splats.append(Splat(title, tuple(lines)))
        title, lines = "", []

    for line in log:
        text = _STAMP.sub("", line)
        if lines and not title:  # the line after the cut mark names the trouble
            title = text
            lines.append(line)
        elif text == _CUT_HERE:
            close()
            lines = [line]
        elif _FIRST_LINE.match(text) and not (lines and _MIDDLE.match(text)):
            close()
            title, lines = text, [line]
        elif lines:
            lines.append(line)
            if _END.match(text) or len(lines) == _LONGEST:
                close()
    close()
    return tuple(splats)
