"""A series of patches: read from mail as it comes, or from a range of a git tree.

Mail is what git format-patch, b4 and the archives of mailing lists write: mboxes, single
mails, folders of them. Cover letters and replies are no patches and are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvmm.lab.diffs import diffs_in
from pyvmm.lab.errors import LabUsageError
from pyvmm.lab.mail import LIST, Letter, letters
from pyvmm.lab.processes import die_with_parent
from pyvmm.lab.programs import require
from pyvmm.printable import counted

_NUMBER = re.compile(r"(?<![^\s\[(,])(\d{1,9})/(\d{1,9})(?![^\s\]),;:])")
_VERSION = re.compile(r"(?:\b|PATCH|RFC)v(\d{1,9})\b", re.I)
#: What stands before a subject in brackets; all that is read of it is in there.
_TAGS = re.compile(r"\s*(?:\[[^\]]*\]\s*)*")
# Mail programs of other languages have other words, and lists put their names before them.
_REPLY = re.compile(
    r"\s*(?:\[(?![^\]]*patch)[^\]/]*\]\s*)?(?:(?:re|aw|fwd?)\s*(?:\[\d+\])?:|\w{1,3}:\s*\[[^\]]*\bpatch)",
    re.I,
)
#: What is said, with all of it, of a patch that a tree has taken, or has not.
_NOTICE = re.compile(
    r"\s*(?:\[tip: |patch \".*\" has been added to|failed: patch \"|\+ \S+\.patch added to )", re.I
)
_MOST_PATCHES = 1000
#: Older ones are not looked at.
_MOST_VERSIONS = 100


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: its subject without tags, its number in the series or 0, and its text.

    ``id`` and ``answers`` are those of its mail, as :class:`Letter` has them.
    """

    subject: str
    number: int
    total: int
    version: int
    text: str
    origin: str
    id: str = ""
    answers: frozenset[str] = frozenset()

    @property
    def file_name(self) -> str:
        """As git format-patch would call it, without the number."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.subject).strip("-")
        return f"{words[:52] or 'patch'}.patch"


def read_series(path: Path, announce: Callable[[str], None] = lambda line: None) -> list[Patch]:
    """The patches of a file or folder, in the order in which they are to be applied.

    Of several versions of a series the newest is taken; where that is no more than patches in
    answer to those of the version before, it is the version before with these. ``announce`` is
    told of that, of mails that look like patches and have none, and of the commit that the series
    is made for, if it is said. Raises :class:`LabUsageError` for a file that cannot be read, for
    one without a patch, and for patches that are missing or there twice.
    """
    is_listed = (path / LIST).is_file()
    found: list[Patch] = []
    bases: list[tuple[int, str]] = []
    others: dict[tuple[int, int], str] = {}
    covered: set[int] = set()
    twice = set()
    for letter in letters(path):
        if letter.id and not is_listed:  # a list sends it, and so does its author
            if (letter.id, letter.diff) in twice:
                continue
            twice.add((letter.id, letter.diff))
        bases += [(_version(letter.subject), letter.base)] if letter.base else []
        patch = _patch(letter)
        if patch is not None and patch.text:
            found.append(patch)
        elif is_listed:
            cause = f"{letter.origin} is in its list and has no patch"
            raise LabUsageError(f"series {path}", cause)
        elif patch is not None:
            others[patch.version, patch.number] = patch.origin
        elif _is_cover(letter.subject):
            covered.add(_version(letter.subject))
        elif _seems_a_patch(letter):
            named = f": {letter.subject}" if letter.subject else ""
            announce(f"{letter.origin}: there is no diff in it, left out{named}")
    if not found:
        raise LabUsageError(
            f"series {path}",
            "there is no patch in it",
            "want what git format-patch or b4 writes",
        )
    if is_listed:  # in the list's order: patches of many series may be in it, and parts of some
        patches = _no_more_than(path, found)
    else:
        patches = _Thread(path, found, others, covered).newest(announce)
    versions = {patch.version for patch in patches}
    told = dict.fromkeys(base for version, base in bases if version in versions)
    if told:
        announce(f"{path}: made for commit {' or '.join(told)}")
    return patches


def _tags(subject: str) -> str:
    found = _TAGS.match(subject)
    return found[0] if found else ""


def _version(subject: str) -> int:
    found = _VERSION.search(_tags(subject))
    return int(found[1]) if found else 1


def _is_cover(subject: str) -> bool:
    number = _NUMBER.search(_tags(subject))
    return number is not None and int(number[1]) == 0


def _seems_a_patch(letter: Letter) -> bool:
    """Whether a mail without a number and a diff may be a patch that has lost it, as to HTML."""
    if letter.diff or _REPLY.match(letter.subject) or _NOTICE.match(letter.subject):
        return False
    return "PATCH" in _tags(letter.subject).upper() or letter.origin.endswith((".patch", ".diff"))


def _patch(letter: Letter) -> Patch | None:
    """The patch of a mail, if it is one: in its text, or attached. It may have lost its text."""
    tags = _tags(letter.subject)
    number = _NUMBER.search(tags)
    if _REPLY.match(letter.subject) or _NOTICE.match(letter.subject):
        return None
    if _is_cover(letter.subject):
        return None  # a cover letter may have a diff, too: that against the version before
    if not letter.diff and not number:
        return None
    letter.check()
    return Patch(
        letter.subject.removeprefix(tags) or _subject_of_a_diff(letter.diff),
        int(number[1]) if number else 0,
        int(number[2]) if number else 0,
        _version(letter.subject),
        letter.diff,
        letter.origin,
        letter.id,
        letter.answers,
    )


def _subject_of_a_diff(text: str) -> str:
    names = (name for diff in diffs_in(text) for name in (diff.new, diff.old) if name)
    return next(names, "patch")


def _no_more_than(path: Path, patches: list[Patch]) -> list[Patch]:
    if len(patches) > _MOST_PATCHES:
        raise LabUsageError(f"series {path}", f"{len(patches)} patches, at most {_MOST_PATCHES}")
    return patches


class _Thread:
    """The patches of a file by version. ``empty`` says where mails are that have lost their diff,
    by version and number, and ``covered`` which versions have a cover letter."""

    def __init__(
        self,
        path: Path,
        patches: Iterable[Patch],
        empty: Mapping[tuple[int, int], str],
        covered: Collection[int],
    ) -> None:
        self._path = path
        self._empty = empty
        self._covered = covered
        self._versions: dict[int, list[Patch]] = {}
        for patch in patches:
            self._versions.setdefault(patch.version, []).append(patch)

    def newest(self, announce: Callable[[str], None]) -> list[Patch]:
        versions = sorted(self._versions)[-_MOST_VERSIONS:]
        before: list[Patch] = []
        for version in versions[:-1]:
            try:
                before = self._whole(version, before)
            except LabUsageError:  # it matters only if the next one is less than whole
                before = []
        patches = self._whole(versions[-1], before)
        if len(versions) > 1:
            many = counted(len(patches), "patch", "patches")
            taken = _taken(patches) or f"v{versions[-1]} ({many})"
            announce(f"{self._path}: it has several versions of the series; taking {taken}")
        return patches

    def _whole(self, version: int, before: Sequence[Patch]) -> list[Patch]:
        """The patches of a version in their order. ``before`` has those of the one before it, none
        if that is not whole."""
        patches = self._versions[version]
        _no_more_than(self._path, patches)
        without = [patch for patch in patches if not patch.number]
        if (self._path.is_dir() and without) or len(without) == len(patches):
            return patches
        by_number = _by_number(self._path, patches)
        missing = [each for each in range(1, patches[0].total + 1) if each not in by_number]
        if missing and self._is_in_answer(version, before):
            by_number = {patch.number: patch for patch in before} | by_number
        elif missing:
            raise self._lacks(version, missing, before)
        return [by_number[number] for number in sorted(by_number)]

    def _is_in_answer(self, version: int, before: Sequence[Patch]) -> bool:
        """Whether each patch of a version answers the one that it is to replace.

        A version with a cover letter, or with a mail that lost its diff, is to be one of its own.
        """
        if version in self._covered or any(version == each for each, _ in self._empty):
            return False
        known = {(patch.number, patch.total, patch.id) for patch in before}
        return all(
            any((patch.number, patch.total, each) in known for each in patch.answers)
            for patch in self._versions[version]
        )

    def _lacks(
        self, version: int, missing: Sequence[int], before: Sequence[Patch]
    ) -> LabUsageError:
        total = self._versions[version][0].total
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        which = "patch" if len(missing) == 1 else "patches"
        tag = f" of v{version}" if version > 1 else ""
        cause = f"{which} {shown} of {total}{tag} missing"
        empty = (self._empty.get((version, number), "") for number in missing)
        if where := next(filter(None, empty), ""):
            cause += f": {where} has no diff"
        remedy = ""
        if before:
            older = max(patch.version for patch in before)
            remedy = f"v{older} is whole: 'b4 am -v {older}' makes a file of it alone"
        return LabUsageError(f"series {self._path}", cause, remedy)


def _taken(patches: Sequence[Patch]) -> str:
    """Of which versions patches are, "" if they are of one."""
    first = min(patch.version for patch in patches)
    newer = [patch for patch in patches if patch.version != first]
    named = (f"patch {each.number}/{each.total} of v{each.version}" for each in newer)
    return f"v{first} with {', '.join(named)}" if newer else ""


def _by_number(path: Path, patches: Sequence[Patch]) -> dict[int, Patch]:
    without = [patch for patch in patches if not patch.number]
    if without:
        raise LabUsageError(
            f"series {path}",
            f"{without[0].origin} ({without[0].subject}) has no number, and others have",
            "name one series",
        )
    totals = sorted({patch.total for patch in patches})
    if len(totals) > 1:
        raise LabUsageError(
            f"series {path}",
            f"patches of a series of {totals[0]} and of one of {totals[-1]}",
            "name one series",
        )
    if totals[0] > _MOST_PATCHES:
        raise LabUsageError(
            f"series {path}", f"one of {totals[0]} patches, at most {_MOST_PATCHES}"
        )
    by_number: dict[int, Patch] = {}
    for patch in patches:
        twice = by_number.setdefault(patch.number, patch)
        if twice.text != patch.text:
            raise LabUsageError(
                f"series {path}",
                f"patch {patch.number}/{patch.total} is there twice, with other contents "
                f"({twice.origin} and {patch.origin})",
            )
    return by_number


# ---- git ----

#: A file that moves is no new one: of its lines only those that change are the patch's.
_DIFF_OF = ("diff-tree", "-p", "--binary", "--find-renames", "-l1000", "--no-commit-id")
_SUBJECT_OF = ("log", "-1", "--no-show-signature", "--encoding=UTF-8", "--format=%s")


def read_range(tree: Path, commits: str) -> list[Patch]:
    """The commits of ``A..B`` in a git tree that change files, oldest first, as patches.

    Raises :class:`LabUsageError` for what is no range, has no such commits, or has a merge in it.
    """
    first, dots, last = commits.partition("..")
    what = f"range {commits}"
    if not dots or not first or last.startswith("."):
        raise LabUsageError(what, "it is not A..B")
    require("git")
    last = last or "HEAD"
    ends = [_commit(tree, what, end) for end in (first, last)]
    span = f"{ends[0]}..{ends[1]}"
    apart = f"{first} and {last} have no commit in common; a shallow clone may lack it"
    if _git(tree, what, "merge-base", *ends, silent=apart).strip() != ends[0]:
        raise LabUsageError(what, f"{last} does not come after {first}")
    if merge := _git(tree, what, "rev-list", "--merges", "-n1", span).strip():
        raise LabUsageError(what, f"it is not linear: {merge[:12]} is a merge")
    listed = _git(tree, what, "rev-list", "--reverse", span).split()
    if not listed:
        raise LabUsageError(what, "there is no commit in it")
    if len(listed) > _MOST_PATCHES:
        raise LabUsageError(what, f"{len(listed)} commits, at most {_MOST_PATCHES}")
    # diff-tree does what it is told; what people make it show by their configuration, patch(1)
    # would not take. The commit in which b4 keeps a cover letter changes nothing.
    diffs = {commit: text for commit in listed if (text := _git(tree, what, *_DIFF_OF, commit))}
    if not diffs:
        raise LabUsageError(what, "no commit in it changes a file")
    patches = []
    for number, (commit, text) in enumerate(diffs.items(), 1):
        subject = _git(tree, what, *_SUBJECT_OF, commit)
        patches.append(Patch(subject.strip(), number, len(diffs), 1, text, commit[:12]))
    return patches


def unpack_commit(tree: Path, commits: str, folder: Path) -> None:
    """Make ``folder`` the files at the start of ``A..B``, whatever the tree has now."""
    what = f"range {commits}"
    start = commits.partition("..")[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with subprocess.Popen(
        ["git", "-C", tree, "archive", f"{start}^{{commit}}"],
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent(signal.SIGTERM),
    ) as archive:
        done = subprocess.run(["tar", "-xf", "-", "-C", folder], stdin=archive.stdout)
    if archive.returncode or done.returncode:
        raise LabUsageError(what, f"git archive of {start} failed")
    # Files have the commit's time, in seconds, and a rebase makes many commits in one. What tells
    # a file that changed must differ with the commit, and be the same for the same one.
    commit = _commit(tree, what, start)
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)
            seconds = int(os.lstat(path).st_mtime)
            stamp = seconds * 1_000_000_000 + int(commit[:7], 16)
            os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


def _commit(tree: Path, what: str, name: str) -> str:
    words = ("rev-parse", "--verify", "-q", f"{name}^{{commit}}")
    return _git(tree, what, *words, silent=f"it has no commit {name}").strip()


def _git(tree: Path, what: str, *words: str, silent: str = "") -> str:
    """What git prints. ``silent`` is what went wrong where git says nothing of it."""
    done = subprocess.run(
        ["git", "-C", tree, "-c", "core.quotePath=false", *words],
        capture_output=True,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        cause = said[-1] if said else silent or f"git {words[0]} failed"
        raise LabUsageError(what, f"{tree}: {cause.removeprefix('fatal: ')}")
    return done.stdout.decode("utf-8", "surrogateescape")  # a diff's line ends are its own
