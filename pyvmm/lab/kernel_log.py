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
    r"WARNING: |(?:NMI )?(?:watchdog: )?BUG: |BUG \S.* \(.*\): |kernel BUG at |Oops: "
    r"|Oops\b.*\[#\d+\]"
    r"|[^\[]*: [0-9a-f]{4} \[#\d+\]|(?:traps: )?(?:PANIC: )?double fault"
    r"|Kernel panic - not syncing|(?:NMI )?watchdog: .*hard LOCKUP"
    r"|INFO: task .* for more than \d+ seconds|(?:rcu: )?INFO: rcu\w* .*stall"
    r"|INFO: trying to register non-static key|UBSAN: |\[ (?:BUG|INFO): "
    r"|kmemleak: \d+ new suspected|unchecked MSR access error|Uhhuh\. NMI received"
)
#: What a processor's exception says before the line with [#1], which then is a later line of it.
_BEFORE_DEATH = re.compile(
    r"kernel BUG at |BUG: (?:unable to handle|kernel NULL|.*stack guard page)|.*double fault, "
)
_DEATH = re.compile(r"(?:Oops|[^\[]*): .*\[#\d+\]|double fault: ")
_CUT_HERE = "------------[ cut here ]------------"
#: What stands below the first line of a warning, where that has no message.
_NO_MESSAGE = re.compile(r"Modules linked in|CPU: |RIP: |Call Trace|\s|$")
#: Where RCU was used without its lock. All such reports have the same first line.
_PLACE = re.compile(r"\S+:\d+ .+[!.]$")
_RCU = "WARNING: suspicious RCU usage"
_LONGEST_MESSAGE = 200
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
#: What `pyvmm validate` writes as a case begins and ends.
_MARK = re.compile(r"pyvmm: (begins|ended): (\S.*)")
#: Hung tasks, stalls and sanitizers print no end mark: so many lines are taken to be theirs.
_LONGEST = 60


#: What differs between two occurrences of the same trouble, and between two builds.
_PROCESS = re.compile(r", CPU#\d+: .*?/\d+(?=$|: )| code: .*/\d+$| \[[^\]]*:\d+\]$")
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
        return _NUMBERS.sub("*", _PROCESS.sub("", self.title))


@dataclass(slots=True)
class _Block:
    """Lines that are being read. ``title`` is empty behind a cut mark, until a first line comes.

    ``message`` is what a warning says: between the mark and its first line, or in newer kernels
    below that. It tells apart what is warned of in one place, as by refcount_warn_saturate().
    """

    title: str
    lines: list[str]
    cases: tuple[str, ...]
    message: str = ""
    died: bool = False

    def begins_with(self, text: str) -> bool:
        """Whether this first line of trouble is no other trouble than that of the block."""
        if not self.title:  # there is only the cut mark
            self.title = text
            return True
        if _BEFORE_DEATH.match(self.title) and _DEATH.match(text) and not self.died:
            self.died = True
            return True
        return False

    def take(self, line: str, text: str) -> bool:
        """One more line. Whether it is the last."""
        if not self.message and not text.startswith("-----"):
            is_place = self.title == _RCU and _PLACE.match(text)
            if not self.title or is_place or self._may_say(text):
                self.message = text
        self.lines.append(line)
        return _END.match(text) is not None or len(self.lines) >= _LONGEST

    def _may_say(self, text: str) -> bool:
        is_cut = self.lines[0].endswith(_CUT_HERE)
        return (
            is_cut
            and len(self.lines) == 2
            and self.title.startswith("WARNING: ")
            and not _NO_MESSAGE.match(text)
        )

    def splat(self) -> Splat:
        parts = filter(None, (self.title, self.message[:_LONGEST_MESSAGE]))
        return Splat(": ".join(parts) or _CUT_HERE, tuple(self.lines), self.cases)


def find_splats(log: Iterable[str]) -> tuple[Splat, ...]:
    """The splats of a kernel log, in order. `log` gives its lines without line ends."""
    splats: list[Splat] = []
    block: _Block | None = None
    running: dict[str, None] = {}
    for line in log:
        text = _STAMP.sub("", line)
        if _take_mark(text, running):
            continue
        if text == _CUT_HERE:
            if block and (block.title or block.message):  # else another CPU has begun meanwhile
                splats.append(block.splat())
            block = _Block("", [line], tuple(running))
        elif _FIRST_LINE.match(text):
            if block and block.begins_with(text):
                block.lines.append(line)
                continue
            splats += [block.splat()] if block else []
            block = _Block(text, [line], tuple(running))
        elif block and block.take(line, text):
            splats.append(block.splat())
            block = None
    return (*splats, block.splat()) if block else tuple(splats)


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
