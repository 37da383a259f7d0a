"""Applies diffs to the files of a folder: names and modes as git does it, hunks by patch(1).

patch(1) reads a patch from its beginning to its end. To git all of it is about the files as they
were: two of them may have changed names, or one be copied from another that moved.
"""

from __future__ import annotations

import re
import stat
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pyvmm.lab.diffs import FileDiff, Hunk, text_of

#: What patch(1) says of trouble; for the last of these its status is 0.
_FAILURES = ("FAILED", "can't find", "malformed", "Not deleting", "not supported")
_PATCHING = "patching file "
_ELSEWHERE = re.compile(r"Hunk #(\d+) succeeded at \d+ \(offset (-?\d+) lines?\)")
_LONGEST_NAME = 255  # NAME_MAX of linux/limits.h
EXECUTABLE, NOT_EXECUTABLE = 0o755, 0o644


def is_below(name: str) -> bool:
    """Whether a file of this name can be, and below the folder that it is looked for in."""
    parts = name.split("/")
    return ".." not in parts and "" not in parts and max(map(len, parts)) <= _LONGEST_NAME


def names_of(diffs: Iterable[FileDiff]) -> set[str]:
    """The files that diffs may change, make or remove."""
    return {name for diff in diffs for name in (diff.old, diff.new) if name and is_below(name)}


class CannotApply(Exception):
    """Why diffs cannot be applied."""


def apply_diffs(diffs: Sequence[FileDiff], folder: Path, log: Path) -> list[FileDiff]:
    """Apply the diffs of one patch. Gives them with the line numbers that their hunks really have.

    A hunk may fit some lines away from where it says. ``log`` has what patch(1) said. Raises
    :class:`CannotApply`; what is done before trouble is not undone.
    """
    there = {name for name in names_of(diffs) if (folder / name).is_file()}
    trouble = next(filter(None, map(_trouble, diffs)), "") or _move(diffs, folder)
    if trouble:
        raise CannotApply(trouble)
    for diff in diffs:
        made = not diff.old
        if made and diff.new in there and diff.new not in _given_up(diffs):
            raise CannotApply(f"{diff.new}: it is there already")
        if not diff.hunks and not (made or (folder / (diff.new or diff.old)).is_file()):
            raise CannotApply(f"{diff.old}: there is no such file")
        if made and not diff.hunks:
            _write(folder / diff.new, b"", NOT_EXECUTABLE)
        if not diff.new and not diff.hunks:
            if (folder / diff.old).stat().st_size:  # git format-patch -D: to be read only
                raise CannotApply(f"{diff.old}: the patch does not have what it removes")
            (folder / diff.old).unlink()
    said = _patch("".join(_plain(_lean(diffs))), folder, log)
    _set_modes(diffs, folder, there)
    found = placed(diffs, said)
    _check_surplus(found, folder)
    return found


def placed(diffs: Sequence[FileDiff], said: Iterable[str]) -> list[FileDiff]:
    """Diffs with the line numbers at which, by what it ``said``, patch(1) applied their hunks."""
    moved: list[dict[int, int]] = []  # of each file: by how many lines, by the hunk's number
    for line in said:
        if line.startswith(_PATCHING):
            moved.append({})
        elif moved and (match := _ELSEWHERE.match(line)):
            moved[-1][int(match[1])] = int(match[2])
    found = []
    left = iter(moved)
    for diff in diffs:
        lines = next(left, {}) if diff.hunks else {}
        hunks = (hunk.moved(lines.get(at, 0)) for at, hunk in enumerate(diff.hunks, 1))
        found.append(replace(diff, hunks=tuple(hunks)))
    return found


def _trouble(diff: FileDiff) -> str:
    if diff.flaw:
        return diff.flaw
    bad = next((name for name in (diff.old, diff.new) if name and not is_below(name)), "")
    return f"{bad}: it is not below the source" if bad and diff.is_git else ""


def _given_up(diffs: Iterable[FileDiff]) -> set[str]:
    return {diff.old for diff in diffs if diff.is_rename or not diff.new}


def _move(diffs: Sequence[FileDiff], folder: Path) -> str:
    """Give files their new names, and make copies."""
    moved = [diff for diff in diffs if diff.is_rename or diff.is_copy]
    for diff in moved:
        if not (folder / diff.old).is_file():
            return f"{diff.old}: there is no such file"
    files = {diff.old: (folder / diff.old).read_bytes() for diff in moved}
    modes = {diff.old: _mode(folder / diff.old) for diff in moved}
    for diff in moved:
        if diff.is_rename:
            (folder / diff.old).unlink(missing_ok=True)
    for diff in moved:
        if (folder / diff.new).exists():
            return f"{diff.new}: it is there already"
        _write(folder / diff.new, files[diff.old], modes[diff.old])
    return ""


def _plain(diffs: Iterable[FileDiff]) -> Iterator[str]:
    """The hunks for patch(1), under the names that files have by now."""
    for diff in diffs:
        if not diff.hunks:
            continue
        if not diff.is_git:
            yield text_of([diff])
            continue
        tab = "\t" * (" " in diff.old + diff.new)
        before = diff.new if diff.is_rename or diff.is_copy else diff.old
        yield f"--- a/{before}{tab}\n" if before else "--- /dev/null\n"
        yield f"+++ b/{diff.new}{tab}\n" if diff.new else "+++ /dev/null\n"
        yield "".join(f"{line}\n" for hunk in diff.hunks for line in hunk.lines)


# ---- hunks with more context before the change than behind it ----
#
# patch(1) applies such a hunk nowhere but at the file's end, git wherever it fits. So patch(1) gets
# as much before as there is behind, and the rest is compared where it put the hunk.


def _surplus(hunk: Hunk) -> int:
    """How many lines of context there are more before the change than behind it, if any are."""
    lines = [line for line in hunk.lines[1:] if not line.startswith("\\")]
    changed = [at for at, line in enumerate(lines) if line.startswith(("+", "-"))]
    if not changed:
        return 0
    before, behind = changed[0], len(lines) - 1 - changed[-1]
    return before - behind if 0 < behind < before else 0  # with none behind it is at the end


def _with_surplus(diffs: Sequence[FileDiff]) -> set[str]:
    """The files with such hunks. One that has two diffs is left to patch(1)."""
    often = Counter(diff.new for diff in diffs)
    return {diff.new for diff in diffs if often[diff.new] == 1 and any(map(_surplus, diff.hunks))}


def _lean(diffs: Sequence[FileDiff]) -> list[FileDiff]:
    files = _with_surplus(diffs)
    return [
        replace(diff, hunks=tuple(hunk.without_first(_surplus(hunk)) for hunk in diff.hunks))
        if diff.new in files
        else diff
        for diff in diffs
    ]


def _check_surplus(diffs: Sequence[FileDiff], folder: Path) -> None:
    files = _with_surplus(diffs)
    for diff in diffs:
        if diff.new not in files:
            continue
        lines = (folder / diff.new).read_bytes().split(b"\n")
        added = 0
        for number, hunk in enumerate(diff.hunks, 1):
            wanted = [_bytes(line[1:]) for line in hunk.lines[1 : 1 + _surplus(hunk)]]
            at = hunk.old - 1 + added
            if lines[at : at + len(wanted)] != wanted:
                raise CannotApply(f"{diff.new}: Hunk #{number} FAILED at {hunk.old}.")
            added += sum({"+": 1, "-": -1}.get(line[:1], 0) for line in hunk.lines[1:])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _patch(text: str, folder: Path, log: Path) -> list[str]:
    command = ["patch", "-p1", "-F0", "-f", "--no-backup-if-mismatch", "-r", "-", "-d", str(folder)]
    with open(log, "a+") as output:
        start = output.tell()
        done = subprocess.run(command, input=_bytes(text), stdout=output, stderr=output)
        output.seek(start)
        said = output.read().splitlines()
    failures = [at for at, line in enumerate(said) if any(word in line for word in _FAILURES)]
    if done.returncode or failures:
        raise CannotApply(_failure(said, failures))
    return said


def _failure(said: Sequence[str], failures: Sequence[int]) -> str:
    """The first line of patch(1) that tells of trouble, and the file that it was at."""
    if not failures:
        return said[0] if said else "patch(1) failed"
    at = failures[0]
    files = [line for line in said[:at] if line.startswith(_PATCHING)]
    file = files[-1].removeprefix(_PATCHING).partition(" (")[0] if files else ""
    return f"{file}: {said[at]}" if file and file not in said[at] else said[at]


def _set_modes(diffs: Sequence[FileDiff], folder: Path, there: set[str]) -> None:
    for diff in diffs:
        path = folder / diff.new
        if not diff.new or not path.is_file():
            continue
        if diff.is_executable is not None:
            path.chmod(EXECUTABLE if diff.is_executable else NOT_EXECUTABLE)
        elif diff.new not in there and not diff.is_git and path.read_bytes().startswith(b"#!"):
            # A diff without modes; and the kernel's build runs scripts of its own.
            path.chmod(EXECUTABLE)


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
