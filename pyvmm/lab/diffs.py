"""Diffs as `git apply` reads them: what of a text belongs to one, and what it does to files.

Mail has much else, before a diff and behind it: what people say, diffs against an older version,
signatures. patch(1) takes an indented diff for one, git does not.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_BEGINNING = re.compile(r"^(?:diff --git |--- )", re.M)
_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_SAME_NAMES = re.compile(r"diff --git [^/ ]+/(.+) [^/ ]+/\1$")
_GIT = "diff --git "
#: What may stand between "diff --git" and the names: git's diff-generate-patch.txt has them.
_EXTENDED = (
    "old mode ", "new mode ", "deleted file mode ", "new file mode ", "copy from ", "copy to ",
    "rename from ", "rename to ", "rename old ", "rename new ", "similarity index ",
    "dissimilarity index ", "index ",
)  # fmt: skip
_LINK = " 120000"
_BINARY = re.compile(r"GIT binary patch|Binary files .* differ")
_LONGEST_SHOWN = 60
#: How the lines of a hunk begin that the file has before and after. What has lost its only blank
#: on the way is an empty line of both.
_OLD, _NEW = ("-", " ", ""), ("+", " ", "")


@dataclass(frozen=True, slots=True)
class Hunk:
    """The first lines that it is about, before and after, and its text from @@ on."""

    old: int
    new: int
    lines: tuple[str, ...]

    def moved(self, lines: int) -> Hunk:
        """The hunk so many lines further down."""
        return self._changed(lines, 0)

    def without_first(self, lines: int) -> Hunk:
        """The hunk without so many of its first lines, which are context."""
        return self._changed(lines, lines)

    def _changed(self, down: int, fewer: int) -> Hunk:
        match = _HUNK.match(self.lines[0])
        if not (down or fewer) or match is None:
            return self
        old, new = self.old + down, self.new + down
        before, after = (int(match[group] or 1) - fewer for group in (2, 4))
        first = f"@@ -{old},{before} +{new},{after} @@{self.lines[0][match.end() :]}"
        return Hunk(old, new, (first, *self.lines[1 + fewer :]))


@dataclass(frozen=True, slots=True)
class FileDiff:
    """What a patch does to one file: its names before and after, "" for no file there.

    ``flaw`` says why it cannot be applied as it stands, "" if it can.
    """

    head: tuple[str, ...]
    old: str
    new: str
    hunks: tuple[Hunk, ...]
    flaw: str = ""

    @property
    def is_git(self) -> bool:
        return bool(self.head) and self.head[0].startswith(_GIT)

    @property
    def is_rename(self) -> bool:
        return any(line.startswith("rename from ") for line in self.head)

    @property
    def is_copy(self) -> bool:
        return any(line.startswith("copy from ") for line in self.head)

    @property
    def is_executable(self) -> bool | None:
        """Whether the file can be executed afterwards; None if that stays what it was."""
        for line in self.head:
            if line.startswith(("new mode ", "new file mode ")):
                return line.endswith("755")
        return None


def diffs_in(text: str) -> list[FileDiff]:
    """The diffs of a text, as `git apply` finds them."""
    return list(_diffs(_Lines(text)))


def flaw_of(text: str) -> str:
    """Why the first of a text's diffs that cannot be applied as it stands cannot, "" if all can."""
    return next((diff.flaw for diff in diffs_in(text) if diff.flaw), "")


def text_of(diffs: Iterable[FileDiff]) -> str:
    """Diffs and nothing else, "" for none."""
    lines: list[str] = []
    for diff in diffs:
        lines += diff.head
        for hunk in diff.hunks:
            lines += hunk.lines
    return "\n".join([*lines, ""]) if lines else ""


class _Lines:
    """A text that is read line by line. It may be long, so it is not taken to pieces at once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def peek(self) -> str | None:
        """The next line without its end, None behind the last."""
        if self.at >= len(self._text):
            return None
        end = self._text.find("\n", self.at)
        return self._text[self.at : end if end >= 0 else None]

    def take(self, *beginnings: str) -> str | None:
        """The next line if it begins with one of these, and go behind it."""
        line = self.peek()
        if line is None or not line.startswith(beginnings):
            return None
        self.at += len(line) + 1
        return line

    def take_all(self, *beginnings: str) -> list[str]:
        return list(iter(lambda: self.take(*beginnings), None))

    def find(self, beginning: re.Pattern[str]) -> bool:
        """Go to the next line that begins like this."""
        found = beginning.search(self._text, self.at)
        self.at = found.start() if found else len(self._text)
        return found is not None


def _diffs(lines: _Lines) -> Iterator[FileDiff]:
    while lines.find(_BEGINNING):
        start = lines.at
        first = lines.take_all(_GIT)[-1:]  # of several one after the other the last has a head
        head = [*first, *(lines.take_all(*_EXTENDED) if first else ())]
        names = _names(lines, needs_hunk=not first)
        if names or len(head) > 1:
            yield _diff(head, names, lines)
        elif lines.at == start:
            lines.take("")  # prose


def _names(lines: _Lines, *, needs_hunk: bool) -> list[str]:
    """The lines --- and +++, if they are next. Without a hunk below they may be of prose."""
    start = lines.at
    found = [line for line in (lines.take("--- "), lines.take("+++ ")) if line is not None]
    hunk = lines.peek() or ""
    if len(found) == 2 and (not needs_hunk or _HUNK.match(hunk)):
        return found
    lines.at = start
    return []


def _diff(head: Sequence[str], names: Sequence[str], lines: _Lines) -> FileDiff:
    old, new = _files(head, names)
    hunks: list[Hunk] = []
    flaw = ""
    top = [*head, *names]
    if any(line.endswith(_LINK) for line in head):
        flaw = "it is a symbolic link, and these are not supported"
    elif _BINARY.match(lines.peek() or ""):
        top += lines.take_all("GIT binary patch", "Binary files ")
        flaw = "git binary diffs are not supported"
    else:
        while not flaw and (lines.peek() or "").startswith("@@ "):
            hunk, flaw = _hunk(lines)
            hunks.append(hunk)
        if names and not hunks:
            flaw = "it has no hunk"
    name = new or old or top[0].removeprefix(_GIT)
    return FileDiff(tuple(top), old, new, tuple(hunks), f"{name}: {flaw}" if flaw else "")


def _files(head: Sequence[str], names: Sequence[str]) -> tuple[str, str]:
    """A file's names before and after, without the first part that --- and +++ have."""
    if names:
        old, new = (line[4:].split("\t")[0].partition("/") for line in names)
        return old[2] if old[0] else "", new[2] if new[0] else ""
    said = {word: line[len(word) :] for line in head for word in _EXTENDED if line.startswith(word)}
    same = _SAME_NAMES.match(head[0]) if head else None
    name = same[1] if same else ""
    old_name = said.get("rename from ") or said.get("copy from ") or name
    new_name = said.get("rename to ") or said.get("copy to ") or name
    return (
        "" if "new file mode " in said else old_name,
        "" if "deleted file mode " in said else new_name,
    )


def _hunk(lines: _Lines) -> tuple[Hunk, str]:
    """The hunk that is next, and what is wrong with it, if anything is."""
    head = lines.take("@@ ") or ""
    match = _HUNK.match(head)
    if match is None:
        return Hunk(0, 0, (head,)), f"{head:.{_LONGEST_SHOWN}} begins no hunk"
    old, new = (1 if count is None else int(count) for count in match.group(2, 4))
    body, flaw = [head], ""
    while old or new:
        line = lines.peek()
        if line is None:
            flaw = f"the hunk {match[0]} is cut off"
            break
        body.append(line)
        kind = line[:1]
        if not _fits(kind, old, new):
            flaw = f"{line[:_LONGEST_SHOWN]!r} is no line of the hunk {match[0]}"
            break
        lines.take("")
        old -= kind in _OLD
        new -= kind in _NEW
    if not flaw:
        body += lines.take_all("\\")
    return Hunk(int(match[1]), int(match[3]), tuple(body)), flaw


def _fits(kind: str, old: int, new: int) -> bool:
    """Whether a hunk that lacks so many lines can have one that begins like this."""
    return (
        (kind in _OLD or kind in _NEW or kind == "\\")
        and (old > 0 or kind not in _OLD)
        and (new > 0 or kind not in _NEW)
    )


# ---- the lines that patches add ----


def added_lines(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """The lines that patches, one after the other, add or change: by file, number and text.

    The numbers are those of the files once all are applied.
    """
    added: dict[str, dict[int, str]] = {}
    for text in texts:
        diffs = diffs_in(text)
        moved = {diff.old: added.pop(diff.old, {}) for diff in diffs if diff.is_rename}
        for diff in diffs:
            was = moved[diff.old] if diff.is_rename else added.get(diff.new, {})
            if diff.new:
                added[diff.new] = _applied(diff, was)
            else:
                added.pop(diff.old, None)
    return {name: lines for name, lines in added.items() if lines}


def _applied(diff: FileDiff, lines: dict[int, str]) -> dict[int, str]:
    """These lines with their new numbers, without those that go, and those that come."""
    removed: list[int] = []  # both in the order of the file
    inserted: list[tuple[int, int, str]] = []  # before which old line, number, text
    for hunk in diff.hunks:
        old, new = _first_lines(hunk)
        for line in hunk.lines[1:]:
            kind = line[:1]
            if kind == "+":
                inserted.append((old, new, line[1:]))
            elif kind == "-":
                removed.append(old)
            old += kind in _OLD
            new += kind in _NEW
    before = [each[0] for each in inserted]
    gone = set(removed)
    result = {
        number - bisect_left(removed, number) + bisect_right(before, number): text
        for number, text in lines.items()
        if number not in gone
    }
    result.update({number: text for _, number, text in inserted})
    return dict(sorted(result.items()))


def _first_lines(hunk: Hunk) -> tuple[int, int]:
    """Where a hunk begins. One without old lines comes behind the line that it names."""
    match = _HUNK.match(hunk.lines[0])
    has_none_old = match is not None and match[2] == "0"
    return hunk.old + has_none_old, hunk.new
