"""Patches in mail: mboxes, single mails and folders of them, and files that are diffs alone.

What mail does to a text is undone: line ends, quoted-printable, base64, character sets,
attachments, and lines that were made to flow (RFC 3676).
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import Message
from pathlib import Path

from pyvmm.lab.diffs import diffs_in, text_of
from pyvmm.lab.errors import LabUsageError

# An mbox separates mails by a line like this, with a date, after an empty one. Files that were put
# together may have none there, but have the time as asctime(3) writes it. A pattern that begins
# with letters is found a hundred times as quickly; what is before them is looked at behind them.
_SEPARATOR = re.compile(
    rb"From (?:(?<=\AFrom )|(?<=\n\nFrom )|(?<=\r\n\r\nFrom )|"
    rb"(?<=\nFrom )(?=\S+ [A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\r?\n))"
    rb"(?=[^\r\n]*\b(?:19|20)\d\d\b)\S+ [^\r\n]*\d\d:\d\d[^\r\n]*\r?\n"
)
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.M)
_HEAD_WITH_CR = re.compile(r"^(?:diff --git |--- )[^\n]*\r$", re.M)
_HEADERS = re.compile(rb"\A(?:From |[A-Za-z][A-Za-z0-9-]*:)")
_MOST_BYTES = 256 << 20
_LONGEST_SUBJECT = 1000
_MAILS = (".patch", ".diff", ".mbox", ".mbx", ".eml", ".gz")
#: What a quilt's folder has beside its patches: their names, in their order.
LIST = "series"
_USUAL = ("-p1", "-pab")
_SIGNATURE = "-- "
_PARTS = re.compile(r"([0-9]{1,18})|([^0-9]+)")
_BETWEEN = re.compile(r"^prerequisite-(?:patch-id|message-id|change-id): \S", re.M)
_ID = re.compile(r"<[^<>\s]{1,998}>")
_BASE = re.compile(r"^base-commit: ([0-9a-f]{7,64})\s*$", re.M)


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail or a bare diff: its subject, "" for a diff, and the diffs in it and nothing else.

    ``flaw`` says what the mail did to them that cannot be undone. ``base`` is the commit that
    git format-patch --base says it is made for, "" if none is said; there may be patches between
    that one and the series, which it does not have. ``id`` is the mail's, "" if
    it has none, and ``answers`` has those of the mails above it in its thread.
    """

    subject: str
    diff: str
    origin: str
    flaw: str = ""
    base: str = ""
    id: str = ""
    answers: frozenset[str] = frozenset()

    def check(self) -> None:
        """Raise :class:`LabUsageError` if its diff is not what was sent."""
        if self.flaw:
            raise LabUsageError(
                self.origin,
                f"a mail with format=flowed, which mangles patches: {self.flaw}",
                "get the patch from its author's tree, or as an attachment",
            )


def letters(path: Path) -> Iterator[Letter]:
    """The mails of a file or folder. Raises :class:`LabUsageError` for what cannot be read."""
    for content, origin in _contents(path):
        yield _letter(content, origin)


def patch_texts(path: Path) -> list[str]:
    """The diffs of each mail of a patch's file, which may be a bare diff, and nothing else."""
    found = []
    for letter in letters(path):
        letter.check()
        found.append(letter.diff)
    return found


def _contents(path: Path) -> Iterator[tuple[bytes, str]]:
    try:
        for file in _files_of(path) if path.is_dir() else [path]:
            yield from _mails_of(file)
    except OSError as error:
        cause = error.strerror or str(error)
        raise LabUsageError(str(path), cause, "name a file or folder of patches") from None


def _files_of(folder: Path) -> list[Path]:
    """A folder's mails: a quilt's by its list, a Maildir's, or those with a mail's name."""
    order = folder / LIST
    if order.is_file():
        return list(_listed(folder, order))
    if (folder / "cur").is_dir():
        folders = [folder / "cur", folder / "new"]
        return sorted(file for each in folders if each.is_dir() for file in each.iterdir())
    files = (file for file in folder.iterdir() if file.suffix in _MAILS and file.is_file())
    return _in_natural_order(files)


def _listed(folder: Path, order: Path) -> Iterator[Path]:
    """The files of a quilt's list, which may say how patch(1) is to be called for each."""
    for line in order.read_text("utf-8", "surrogateescape").splitlines():
        name, *options = line.partition("#")[0].split() or [""]
        for option in " ".join(options).replace("-p ", "-p").split():
            if option not in _USUAL:
                cause = f"{name} is listed with {option}"
                raise LabUsageError(str(order), cause, "want patches that apply with -p1")
        if name:
            yield folder / name


def _mails_of(file: Path) -> Iterator[tuple[bytes, str]]:
    """Each mail of a file, and where it is from."""
    if not file.is_file():
        cause = "it is no regular file" if file.exists() else "there is no such file"
        raise LabUsageError(str(file), cause)
    if file.stat().st_size > _MOST_BYTES:
        raise LabUsageError(str(file), f"it has more than {_MOST_BYTES >> 20} MiB")
    content = _read(file)
    starts = list(_SEPARATOR.finditer(content))
    if not starts:
        yield content, str(file)
        return
    begins, ends = [start.end() for start in starts], [start.start() for start in starts]
    if content[: ends[0]].strip():  # a mail without such a line is before them
        begins = [0, *begins]
    else:
        ends = ends[1:]
    for number, (begin, end) in enumerate(zip(begins, [*ends, len(content)], strict=True), 1):
        mail = _QUOTED_FROM.sub(rb"\1", content[begin:end])
        yield mail, str(file) if len(begins) == 1 else f"{file}, mail {number}"


def _in_natural_order(files: Iterable[Path]) -> list[Path]:
    """10.patch after 9.patch."""

    def key(path: Path) -> list[tuple[int, str]]:
        return [(int(digits or 0), other) for digits, other in _PARTS.findall(path.name)]

    return sorted(files, key=lambda path: (path.parent, key(path), path.name))


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(file) as unpacked:  # as archives of lists give a thread
            content = unpacked.read(_MOST_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise LabUsageError(str(file), f"it does not unpack: {error}") from None
    if len(content) > _MOST_BYTES:
        raise LabUsageError(str(file), f"it has more than {_MOST_BYTES >> 20} MiB")
    return content


def _letter(content: bytes, origin: str) -> Letter:
    if not _HEADERS.match(content):
        text = content.decode("utf-8", "surrogateescape")
        # Where even the lines that name files end so, it is nothing that the files have.
        text = text.replace("\r\n", "\n") if _HEAD_WITH_CR.search(text) else text
        return Letter("", text_of(diffs_in(text)), origin)
    try:
        message = message_from_bytes(content)
        texts = [_text_of(part) for part in message.walk()]
        flowed = [_is_flowed(part) for part in message.walk()]
    except (ValueError, IndexError, TypeError, AttributeError, LookupError) as error:
        cause = f"Python's parser of mail fails at its headers: {error}"
        raise LabUsageError(origin, cause) from None
    parts = list(map(diffs_in, texts))
    diffs = "".join(dict.fromkeys(map(text_of, parts)))
    flaws = [diff.flaw for part, is_flowed in zip(parts, flowed, strict=True) if is_flowed
             for diff in part if diff.flaw]  # fmt: skip
    bases = [
        found[1] + " with patches on it that are not in here" * bool(_BETWEEN.search(text))
        for text in texts
        if (found := _BASE.search(text))
    ]
    return Letter(
        _subject(message),
        diffs,
        origin,
        next(iter(flaws), ""),
        next(iter(bases), ""),
        next(iter(_ID.findall(_header(message, "message-id"))), ""),
        frozenset(_ID.findall(_header(message, "in-reply-to") + _header(message, "references"))),
    )


def _header(message: Message, wanted: str) -> str:
    """The first header of a name, as it is in the mail; "" if there is none."""
    return next((str(raw) for name, raw in message.raw_items() if name.lower() == wanted), "")


def _subject(message: Message) -> str:
    raw = _header(message, "subject")[:_LONGEST_SUBJECT]
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
    if not isinstance(payload, bytes):
        return ""
    text = _decoded(payload, part.get_content_charset())
    return unflowed(text, _has(part, "delsp", "yes")) if _is_flowed(part) else text


def _is_flowed(part: Message) -> bool:
    return part.get_content_type() == "text/plain" and _has(part, "format", "flowed")


def _has(part: Message, parameter: str, value: str) -> bool:
    return str(part.get_param(parameter, "")).lower() == value


def unflowed(text: str, deletes_blanks: bool = False) -> str:
    """The lines that a text had before its mail made them flow, as git understands RFC 3676.

    ``deletes_blanks`` says that the blank before a line's soft end is of the mail, too.
    """
    lines: list[str] = []
    begun = ""
    for line in text.split("\n"):
        if line == _SIGNATURE:
            lines += [*([begun] if begun else []), line]
            begun = ""
            continue
        rest = line.removeprefix(" ")
        if rest.endswith(" "):
            begun += rest[:-1] if deletes_blanks else rest
        else:
            lines.append(begun + rest)
            begun = ""
    return "\n".join([*lines, begun] if begun else lines)


def _decoded(content: bytes, charset: str | None = None) -> str:
    """Bytes as text that gives the same bytes again, with the line ends that a patch has.

    Mail may have any character set; what the kernel's files have is UTF-8 and older bytes.
    """
    if charset and charset.lower() not in ("us-ascii", "utf-8", "utf8", "unknown-8bit"):
        with suppress(LookupError, ValueError):  # a wrong label: as it is
            content = content.decode(charset).encode()
    text = content.decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n")
