"""Text from guests and files, made safe to show: both may hold anything."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """``text`` with every character that a terminal might act on written as an escape.

    Control characters, what reverses the direction of text and bytes that are no UTF-8
    become ``\\x1b`` or ``\\u202e``; the characters in ``keep`` stay.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
