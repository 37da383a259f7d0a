"""Text for people; what guests and files have is made safe to show, for it may be anything."""

from __future__ import annotations

_MOST_SHOWN = 64 << 10
_MOST_LINES = 1000
_MOST_UNPRINTABLE = 1000


def printable(text: str, keep: str = "") -> str:
    """``text`` with every character that a terminal might act on written as an escape.

    Control characters, what reverses the direction of text and bytes that are no UTF-8
    become ``\\x1b`` or ``\\u202e``; the characters in ``keep`` stay.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def counted(number: int, word: str, words: str = "") -> str:
    """``1 case``, or ``2 cases``; ``words`` is for several, unless that is ``word`` with an s."""
    return f"{number} {word if number == 1 else words or f'{word}s'}"


def shown(text: str) -> str:
    """The beginning of a guest's text that people are shown: the rest would flood a terminal.

    At most 64 KiB, 1,000 lines, and 1,000 characters that are not printable.
    """
    lines = unprintable = 0
    for at, char in enumerate(text[:_MOST_SHOWN]):
        if char == "\n":
            lines += 1
        elif char != "\t" and not char.isprintable():
            unprintable += 1
        if lines > _MOST_LINES or unprintable > _MOST_UNPRINTABLE:
            return text[:at]
    return text[:_MOST_SHOWN]


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is no UTF-8, as "surrogateescape" has it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
