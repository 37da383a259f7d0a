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
_CUT_HERE = "------------[ cut here ]------------"
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
#: A splat without an end mark (a hung task has none) ends where the log goes on without one of
#: these: indented lines, registers, code.
_CONTINUES = re.compile(
    r"\s|Modules linked in|CPU: |Hardware name|RIP: |Code: |R[A-Z0-9]{2}: |FS: |CS: |CR2: |DR\d: "
    r"|PKRU|Call Trace|Tainted|Workqueue|task:|\"echo 0|</?\w+>|Not tainted|Sending NMI"
    r"|NMI backtrace|Kernel Offset|Mem abort|page:|page dumped|flags:|raw:|#PF: |PGD |Oops: |general protection"
)
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class Splat:
    """One piece of trouble: its first line without the time stamp, and all its lines."""

    title: str
    lines: tuple[str, ...]


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
        starts = _FIRST_LINE.match(text) is not None
        if text == _CUT_HERE:
            close()
            lines = [line]
        elif lines and not title:  # the line after the cut mark names the trouble
            title = text
            lines.append(line)
        elif title and (_CONTINUES.match(text) or _END.match(text)) and len(lines) < _LONGEST:
            lines.append(line)
            if _END.match(text):
                close()
        else:
            close()
            if starts:
                title, lines = text, [line]
    close()
    return tuple(splats)
