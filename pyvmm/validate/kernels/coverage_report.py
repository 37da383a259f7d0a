"""What coverage says, for people and for other tools: lines, figures, lcov, a page of the diff."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pyvmm.lab.coverage import Coverage, Lines
from pyvmm.printable import printable
from pyvmm.validate.kernels.changed_code import (
    NO_CODE,
    NOT_COUNTED,
    NOT_SEEN,
    WHY_NOT_COUNTED,
    CoveredLine,
)

_MOST_CASES = 5
_MOST_MISSED = 4
#: Changed lines with more lines between them are of two hunks.
_BETWEEN_HUNKS = 6
_WORDS = {"yes": "executed", "half": "not every branch executed"}
_TITLES = {
    "no": "never",
    "silent": "without code of their own, so look around them",
    "absent": "unknown to gcov (not compiled here, inlined, or noinstr)",
    "outside": "not counted (assembly, or outside KVM's folders)",
}
_MARKS = {NO_CODE: "silent", NOT_SEEN: "absent", NOT_COUNTED: "outside"}


def changed_lines(lines: Sequence[CoveredLine], *, are_there: bool = True) -> list[str]:
    """How many were executed, a line on those that never were and on each kind that has no counter,
    and one for each stretch that was executed.

    ``are_there`` says whether there are changed lines at all, code or not.
    """
    if not are_there:
        return ["no line is added or changed; whether what was removed was executed is not known"]
    executed = sum(line.count > 0 for line in lines)
    counted = sum(line.count >= 0 for line in lines)
    by_mark: dict[str, list[Stretch]] = {}
    for each in stretches(lines):
        by_mark.setdefault(each.mark, []).append(each)
    told = f"{executed} of {counted} changed lines executed"
    if not counted:
        told = "no changed line is code of KVM that this configuration compiles"
        told = "no changed line has a counter" if "silent" in by_mark else told
    places = [_places(title, by_mark[mark]) for mark, title in _TITLES.items() if mark in by_mark]
    stories = [each.story for each in stretches(lines) if each.mark in _WORDS]
    return [told, *(f"  {line}" for line in (*places, *stories))]


def _places(title: str, found: Sequence[Stretch]) -> str:
    more = f" and {len(found) - _MOST_MISSED} more" * (len(found) > _MOST_MISSED)
    return f"{title}: {', '.join(each.place for each in found[:_MOST_MISSED])}{more}"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Changed lines of one hunk one after the other that fared alike, as :func:`mark_of` says.

    Lines between which there is changed code that fared otherwise are two stretches.
    """

    mark: str
    lines: tuple[CoveredLine, ...]

    @property
    def place(self) -> str:
        """``mmu.c:4531-4533 (if …)``"""
        first, last = self.lines[0], self.lines[-1]
        where = f"{first.number}" if first is last else f"{first.number}-{last.number}"
        return printable(f"{first.file.rpartition('/')[2]}:{where} ({first.text.strip()})")

    @property
    def story(self) -> str:
        cases = tuple(dict.fromkeys(case for line in self.lines for case in line.cases))
        which = f" by {cases[0]}" if cases else ""
        which += f" and {len(cases) - 1} more" * (len(cases) > 1)
        return f"{self.place}: {_WORDS[self.mark]}{which}"


def stretches(lines: Sequence[CoveredLine]) -> list[Stretch]:
    found: list[list[CoveredLine]] = []
    for line in lines:
        last = found[-1][-1] if found else None
        if last and _is_next(last, line) and mark_of(last) == mark_of(line):
            found[-1].append(line)
        else:
            found.append([line])
    return [Stretch(mark_of(group[0]), tuple(group)) for group in found]


def _is_next(one: CoveredLine, other: CoveredLine) -> bool:
    return one.file == other.file and other.number - one.number - 1 <= _BETWEEN_HUNKS


def mark_of(line: CoveredLine) -> str:
    """What became of a line: "no", "half" where a branch was never taken, "yes".

    What has no counter is "silent", "absent" from what gcov knows, or "outside" of what is counted.
    """
    if line.count <= 0:
        return _MARKS.get(line.count, "no")
    return "half" if line.branches and 0 in line.branches else "yes"


def figures(coverage: Coverage) -> Iterator[str]:
    """A line for each file: how many of its lines were executed."""
    width = max((len(name) for name in coverage), default=0)
    for name, lines in sorted(coverage.items()):
        if lines.counts:
            part = 100 * lines.executed / len(lines.counts)
            yield f"{name:<{width}}  {lines.executed:>5} of {len(lines.counts):>5}  {part:5.1f} %"


def of_functions(lines: Lines, only: str = "") -> Iterator[str]:
    """A line for each function of a file, or one: how many of its lines were, and which not."""
    for name, (first, last) in sorted(lines.functions.items(), key=lambda item: item[1]):
        if only and name != only:
            continue
        inside = {at: count for at, count in lines.counts.items() if first <= at <= last}
        if inside:
            executed = sum(count > 0 for count in inside.values())
            missed = _ranges([at for at, count in sorted(inside.items()) if not count])
            yield f"{executed:>4} of {len(inside):>4}  {name}" + (f": not {missed}" * bool(missed))


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def lcov(coverage: Coverage) -> str:
    """The tracefile that geninfo(1) describes; lcov and diff-cover read it."""
    out = []
    for name, lines in sorted(coverage.items()):
        out += ["TN:", f"SF:{name}"]
        for function, first in _told_functions(lines):
            out.append(f"FN:{first},{function}")
            out.append(f"FNDA:{lines.calls.get(function, 0)},{function}")
        for number, taken in sorted(lines.branches.items()):
            reached = lines.counts.get(number, 0)  # of others nobody knows which way they go
            counts = taken if reached else ["-"] * len(taken)
            out += [f"BRDA:{number},0,{at},{count}" for at, count in enumerate(counts)]
        out += [f"DA:{number},{count}" for number, count in sorted(lines.counts.items())]
        out += [f"LH:{lines.executed}", f"LF:{len(lines.counts)}", "end_of_record"]
    return "\n".join([*out, ""])


def _told_functions(lines: Lines) -> Iterator[tuple[str, int]]:
    """Functions and their first lines, but for some that were never entered.

    The format has no last lines. To lcov since 2.0 a function reaches to the next one, and a file
    in which one that was never entered has lines that ran is corrupt. A function that is inlined,
    of which gcov knows lines alone, would do that to the one before it.
    """
    calls = Counter[int]()
    for name, (first, _) in lines.functions.items():
        calls[first] += lines.calls.get(name, 0)
    executed = sorted(number for number, count in lines.counts.items() if count)
    told, end = set(), len(executed)
    for first in sorted(calls, reverse=True):
        begin = bisect_left(executed, first)
        if calls[first] or begin == end:
            told.add(first)
            end = begin
    for name, (first, _) in sorted(lines.functions.items(), key=lambda item: item[1]):
        if first in told:
            yield name, first


_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --page: #fff; --soft: #666;
  --yes: #d8f5d8; --no: #ffd9d6; --half: #fff0c2; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --page: #16181b; --soft: #999;
  --yes: #17381f; --no: #4a1f1d; --half: #433613; --line: #333; } }
body { color: var(--ink); background: var(--page); font: 15px/1.5 system-ui, sans-serif;
  margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font: 13px/1.45 ui-monospace, monospace; }
td { padding: 0 .6rem; vertical-align: top; white-space: pre-wrap; }
td:first-child, td:nth-child(2) { text-align: right; color: var(--soft); user-select: none; }
td:last-child { color: var(--soft); font-size: 12px; }
tr.yes { background: var(--yes); } tr.no { background: var(--no); }
tr.half { background: var(--half); }
tr.file td { border-top: 1px solid var(--line); padding-top: 1rem; font-weight: bold;
  color: var(--ink); text-align: left; }
"""


def page(title: str, diff: Sequence[tuple[str, int, str]], lines: Sequence[CoveredLine]) -> str:
    """A self-contained page of changed lines (file, number, text) and what became of them."""
    known = {(line.file, line.number): line for line in lines}
    rows, file = [], ""
    for name, number, text in diff:
        if name != file:
            file = name
            rows.append(f'<tr class="file"><td colspan="4">{escape(name)}</td></tr>')
        line = known.get((name, number))
        mark, count, cases = "", "", ""
        if line is not None:
            mark = mark_of(line)
            count = WHY_NOT_COUNTED.get(line.count) or str(line.count)
            cases = ", ".join(line.cases[:_MOST_CASES])
            if len(line.cases) > _MOST_CASES:
                cases += f" and {len(line.cases) - _MOST_CASES} more"
        rows.append(
            f'<tr class="{mark}"><td>{number}</td><td>{count}</td><td>{escape(text)}</td>'
            f"<td>{escape(cases)}</td></tr>"
        )
    told = f"<p>{escape(changed_lines(lines, are_there=bool(diff))[0])}</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{told}<p>Number, times executed, changed line, cases. "
        "Green: executed. Yellow: not every branch. Red: never.</p>"
        f"<table>{''.join(rows)}</table></body></html>\n"
    )
