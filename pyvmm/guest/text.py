"""Whether bytes are text: printable characters and line ends alone.

Machine code of such bytes cannot even write to a port, unless it changes itself.
"""

from __future__ import annotations

import re

_ASCII = re.compile(rb"[\t\n\v\f\r\x1a\x20-\x7e]*")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f\x7f]")
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# A few bytes of code may be right UTF-8 by chance, so many hardly.
_SURELY_UTF8 = 64
#: Nobody writes so much source, and looking at each of its lines takes long.
MAX_SOURCE = 16 << 20


def text_of(data: bytes) -> str | None:
    """The text that ``data`` is, without its byte order mark; None if it may be code."""
    if data.startswith(UTF16_MARKS):
        text = data.decode("utf-16", errors="replace")
        is_latin = 2 * sum(char.isascii() for char in text) >= len(text)
        return text if is_latin and not _CONTROL.search(text) else None
    if _ASCII.fullmatch(data):
        return data.decode("ascii")
    if len(data) < _SURELY_UTF8 and not data.startswith(UTF8_MARK):
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text
