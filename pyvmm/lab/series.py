"""A series of patches: read from mail as it comes, or from a range of a git tree.

Mail is what git format-patch, b4 and the archives of mailing lists write: mboxes, single
mails, folders of them. Cover letters and replies are no patches and are left out.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import Message
from pathlib import Path

from pyvmm.lab.errors import LabUsageError
from pyvmm.lab.processes import die_with_parent
from pyvmm.lab.programs import require

#: Where a diff begins, in a mail or in an attachment; quilt has other names than a/ and b/.
_DIFF = re.compile(r"^(?:diff --git a/\S|--- [^\s/]*/\S[^\n]*\n\+\+\+ [^\s/]*/\S)", re.M)
_NUMBER = re.compile(r"\[[^\]]*?\b(\d{1,9})/(\d{1,9})\b[^\]]*\]")
_VERSION = re.compile(r"\[[^\]]*?(?:\b|PATCH|RFC)v(\d{1,9})\b[^\]]*\]", re.I)
_TAGS = re.compile(r"^\s*(?:\[[^\]]*\]\s*)+")
_REPLY = re.compile(r"^\s*(?:re|aw|fwd?):", re.I)
# An mbox separates mails by a line like this after an empty one. A pattern that begins with
# letters is found a hundred times as quickly, so what is before them is looked at behind them.
_SEPARATOR = re.compile(
    rb"From (?:(?<=\AFrom )|(?<=\n\nFrom )|(?<=\r\n\r\nFrom ))"
    rb"\S+ [^\r\n]*\d\d:\d\d[^\r\n]*\r?\n"
)
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.M)
_MOST_BYTES = 256 << 20
_MOST_PATCHES = 1000
_LONGEST_SUBJECT = 1000
_MAILS = (".patch", ".diff", ".mbox", ".mbx", ".eml", ".gz")
#: What a quilt's folder has beside its patches: their names, in their order.
_LIST = "series"
_HEADERS = re.compile(rb"\A(?:From |[A-Za-z][A-Za-z0-9-]*:)")


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: its subject without tags, its number in the series or 0, and its text."""

    subject: str
    number: int
    total: int
    version: int
    text: str
    origin: str

    @property
    def file_name(self) -> str:
        """As git format-patch would call it, without the number."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.subject).strip("-")
        return f"{words[:52] or 'patch'}.patch"


def read_series(path: Path, announce: Callable[[str], None] = lambda line: None) -> list[Patch]:
    """The patches of a file or folder, in the order in which they are to be applied.

    Of several versions of a series the newest is taken, and ``announce`` is told. Raises
    :class:`LabUsageError` for a file that cannot be read, for one without a patch, and for
    patches that are missing or there twice.
    """
    is_listed = (path / _LIST).is_file()
    found: list[Patch] = []
    for mail in _mails(path):
        patches = list(_patches(mail))
        if is_listed and not patches:
            raise LabUsageError(f"series {path}", f"{mail.origin} is in its list and has no patch")
        found += patches
    if not found:
        raise LabUsageError(
            f"series {path}",
            "there is no patch in it",
            "want what git format-patch or b4 writes",
        )
    if is_listed:  # in the list's order: patches of many series may be in it, and parts of some
        return _no_more_than(path, found)
    newest = max(patch.version for patch in found)
    if any(patch.version != newest for patch in found):
        announce(f"{path}: it has several versions of the series; taking v{newest}")
    return _in_order(path, [patch for patch in found if patch.version == newest])


# ---- mail ----


@dataclass(frozen=True, slots=True)
class _Mail:
    content: bytes
    origin: str


def _mails(path: Path) -> Iterator[_Mail]:
    try:
        if path.is_dir():
            for file in _files_of(path):
                yield from _mails_of(file)
        else:
            yield from _mails_of(path)
    except OSError as error:
        cause = error.strerror or str(error)
        raise LabUsageError(f"series {path}", cause, "name a file or folder of patches") from None


def _files_of(folder: Path) -> list[Path]:
    """A folder's mails: a quilt's by its list, a Maildir's, or those with a mail's name."""
    order = folder / _LIST
    if order.is_file():
        text = order.read_text("utf-8", "surrogateescape")
        lines = (line.partition("#")[0].split() for line in text.splitlines())
        return [folder / words[0] for words in lines if words]
    if (folder / "cur").is_dir():
        folders = [folder / "cur", folder / "new"]
        return sorted(file for each in folders if each.is_dir() for file in each.iterdir())
    return sorted(file for file in folder.iterdir() if file.suffix in _MAILS and file.is_file())


def _mails_of(file: Path) -> Iterator[_Mail]:
    if not file.is_file():
        cause = "it is no regular file" if file.exists() else "there is no such file"
        raise LabUsageError(f"series {file}", cause)
    if file.stat().st_size > _MOST_BYTES:
        raise LabUsageError(f"series {file}", f"it has more than {_MOST_BYTES >> 20} MiB")
    content = _read(file)
    starts = list(_SEPARATOR.finditer(content))
    if not starts:
        yield _Mail(content, str(file))
        return
    ends = [*(start.start() for start in starts[1:]), len(content)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        mail = _QUOTED_FROM.sub(rb"\1", content[start.end() : end])
        origin = str(file) if len(starts) == 1 else f"{file}, mail {number}"
        yield _Mail(mail, origin)


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(file) as unpacked:  # as archives of lists give a thread
            content = unpacked.read(_MOST_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise LabUsageError(f"series {file}", f"it does not unpack: {error}") from None
    if len(content) > _MOST_BYTES:
        raise LabUsageError(f"series {file}", f"it has more than {_MOST_BYTES >> 20} MiB")
    return content


def _patches(mail: _Mail) -> Iterator[Patch]:
    """The patch of a mail, if it has one: in its text, or attached."""
    if not _HEADERS.match(mail.content):
        text = _decoded(mail.content)  # a bare diff
        if diff := _diff_in(text):
            yield Patch(_subject_of_a_diff(diff), 0, 0, 1, diff, mail.origin)
        return
    try:
        message = message_from_bytes(mail.content)
        found = [_diff_in(_text_of(part)) for part in message.walk()]
    except (ValueError, IndexError, TypeError, AttributeError, LookupError) as error:
        cause = f"Python's parser of mail fails at its headers: {error}"
        raise LabUsageError(f"series {mail.origin}", cause) from None
    subject = _subject(message)
    number = _NUMBER.search(subject)
    if _REPLY.match(subject) or (number and int(number[1]) == 0):
        return  # a cover letter may have a diff, too: that against the version before
    texts = list(dict.fromkeys(filter(None, found)))
    if not texts:
        return
    version = _VERSION.search(subject)
    yield Patch(
        _TAGS.sub("", subject) or _subject_of_a_diff(texts[0]),
        int(number[1]) if number else 0,
        int(number[2]) if number else 0,
        int(version[1]) if version else 1,
        "\n".join(texts),
        mail.origin,
    )


def _diff_in(text: str) -> str:
    """The text from where a diff begins, "" if there is none.

    What is before it may have an indented diff, such as that against the version before. For
    people that is text, but patch(1) would apply it.
    """
    start = _DIFF.search(text)
    return text[start.start() :] if start else ""


def _subject(message: Message) -> str:
    found = (str(value) for name, value in message.raw_items() if name.lower() == "subject")
    raw = next(found, "")[:_LONGEST_SUBJECT]
    try:
        subject = str(policy.default.header_fetch_parse("Subject", raw))
    except (ValueError, IndexError, TypeError, AttributeError):
        subject = ""  # a header that Python's parser cannot take
    return " ".join(subject.split())


def _text_of(part: Message) -> str:
    if part.is_multipart():
        return ""
    if part.get_content_type() == "text/html":
        return ""
    payload = part.get_payload(decode=True)  # quoted-printable and base64 undone
    return _decoded(payload, part.get_content_charset()) if isinstance(payload, bytes) else ""


def _decoded(content: bytes, charset: str | None = None) -> str:
    """Bytes as text that gives the same bytes again, with the line ends that a patch has.

    Mail may have any character set; what the kernel's files have is UTF-8 and older bytes.
    """
    if charset and charset.lower() not in ("us-ascii", "utf-8", "utf8", "unknown-8bit"):
        with suppress(LookupError, ValueError):  # a wrong label: as it is
            content = content.decode(charset).encode()
    text = content.decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n")


def _subject_of_a_diff(text: str) -> str:
    for line in text.splitlines():
        if line.startswith(("+++ ", "diff --git ")):
            return line.split("\t")[0].split()[-1].partition("/")[2]
    return "patch"


def _no_more_than(path: Path, patches: list[Patch]) -> list[Patch]:
    if len(patches) > _MOST_PATCHES:
        raise LabUsageError(f"series {path}", f"{len(patches)} patches, at most {_MOST_PATCHES}")
    return patches


def _in_order(path: Path, patches: list[Patch]) -> list[Patch]:
    _no_more_than(path, patches)
    without = [patch for patch in patches if not patch.number]
    if (path.is_dir() and without) or len(without) == len(patches):
        return patches
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
    missing = [number for number in range(1, totals[0] + 1) if number not in by_number]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        which = "patch" if len(missing) == 1 else "patches"
        version = f" of v{patches[0].version}" if patches[0].version > 1 else ""
        raise LabUsageError(f"series {path}", f"{which} {shown} of {totals[0]}{version} missing")
    return [by_number[number] for number in sorted(by_number)]


# ---- what patches touch ----

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def added_lines(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """The lines that patches, one after the other, add or change: by file, number and text.

    The numbers are those of the files once all are applied.
    """
    added: dict[str, dict[int, str]] = {}
    for text in texts:
        edits = _edits(text)
        before = {edit.was: added.pop(edit.was, {}) for edit in edits.values()}
        for name, edit in edits.items():
            added[name] = {} if edit.is_removal else edit.apply(before[edit.was])
    return {name: lines for name, lines in added.items() if lines}


class _Edit:
    """What one patch does to one file: lines that go, and lines that come before old ones.

    ``was`` is what the file was called before.
    """

    def __init__(self, was: str) -> None:
        self.was = was
        self.is_removal = False
        self.removed: list[int] = []
        self.inserted: list[tuple[int, int, str]] = []  # before which old line, number, text

    def apply(self, lines: dict[int, str]) -> dict[int, str]:
        """These lines with their new numbers, without those that go, and those that come."""
        result = {}
        for number, text in lines.items():
            if number not in self.removed:
                gone = sum(old < number for old in self.removed)
                come = sum(before <= number for before, _, _ in self.inserted)
                result[number - gone + come] = text
        result.update({number: text for _, number, text in self.inserted})
        return dict(sorted(result.items()))


def _edits(text: str) -> dict[str, _Edit]:
    edits: dict[str, _Edit] = {}
    edit, old, new, old_end, new_end = _Edit(""), 0, 0, 0, 0
    was = ""
    for line in text.split("\n"):
        if old < old_end or new < new_end:
            kind = line[:1]
            if kind == "+":
                edit.inserted.append((old, new, line[1:]))
                new += 1
            elif kind == "-":
                edit.removed.append(old)
                old += 1
            elif kind != "\\":
                old, new = old + 1, new + 1
        elif line.startswith(("--- ", "rename from ")):
            was = _name_in(line)
        elif line.startswith("rename to "):
            edit = edits.setdefault(_name_in(line), _Edit(was))
        elif line.startswith("+++ "):
            is_removal = line.startswith("+++ /dev/null")
            name = was if is_removal else _name_in(line)
            edit = edits.setdefault(name, _Edit(name))
            edit.is_removal = is_removal
        elif hunk := _HUNK.match(line):
            old, new = int(hunk[1]), int(hunk[3])
            old_end, new_end = old + int(hunk[2] or 1), new + int(hunk[4] or 1)
            if old_end == old:  # nothing old: it comes behind that line
                old, old_end = old + 1, old_end + 1
    return edits


def _name_in(line: str) -> str:
    """The file that a line of a diff names, without the a/ or b/ that ---, and +++ have."""
    if line.startswith("rename "):
        return line.split(" ", 2)[2]
    return line[4:].split("\t")[0].partition("/")[2]


# ---- git ----

_DIFF_OF = ("diff-tree", "-p", "--binary", "--no-renames", "--no-commit-id")


def read_range(tree: Path, commits: str) -> list[Patch]:
    """The commits of ``A..B`` in a git tree that change files, oldest first, as patches.

    Raises :class:`LabUsageError` for what is no range, has no such commits, or has a merge in it.
    """
    first, dots, last = commits.partition("..")
    what = f"range {commits}"
    if not dots or not first or last.startswith("."):
        raise LabUsageError(what, "it is not A..B")
    require("git")
    ends = [_git(tree, what, "rev-parse", "--verify", "-q", f"{end}^{{commit}}").strip()
            for end in (first, last or "HEAD")]  # fmt: skip
    span = f"{ends[0]}..{ends[1]}"
    if _git(tree, what, "merge-base", *ends).strip() != ends[0]:
        raise LabUsageError(what, f"{last or 'HEAD'} does not come after {first}")
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
        subject = _git(tree, what, "log", "-1", "--no-show-signature", "--format=%s", commit)
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
    commit = _git(tree, what, "rev-parse", f"{start}^{{commit}}")
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)
            seconds = int(os.lstat(path).st_mtime)
            stamp = seconds * 1_000_000_000 + int(commit[:7], 16)
            os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


def _git(tree: Path, what: str, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", tree, "-c", "core.quotePath=false", *words],
        capture_output=True,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        cause = said[-1] if said else f"git {words[0]} finds no such commit"
        raise LabUsageError(what, f"{tree}: {cause.removeprefix('fatal: ')}")
    return done.stdout.decode("utf-8", "surrogateescape")  # a diff's line ends are its own
