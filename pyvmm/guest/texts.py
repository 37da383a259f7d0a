"""Text that is no machine code, and in what language it is written.

Text is told by its bytes: printable characters and line ends alone. Code of such bytes cannot
even write to a port, unless it changes itself. Which language it is only chooses the words.
"""

from __future__ import annotations

import re
import shlex

from pyvmm.guest.dialects import dialect, is_gas, lines
from pyvmm.guest.kind import Kind

# So much of a text is looked at to name its language.
_HEAD = 1 << 16
_ASCII = re.compile(rb"[\t\n\v\f\r\x1a\x20-\x7e]*")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f\x7f]")
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# A few bytes of code may be right UTF-8 by chance, so many hardly.
_SURELY_UTF8 = 64

_NO_C = "pyvmm builds no C guests so far: write assembly (.S), or compile and link an ELF file"
_BUILD = "build a flat binary or an ELF file of it"
_LANGUAGES = (
    ("C++ source", re.compile(r"#\s*include\s*<(?:iostream|c?std\w+|string|vector|memory)>"
     r"|using\s+namespace\b|template\s*<|namespace\s+\w+|class\s+\w+\s*[:{]|.*\bstd::")),
    ("C source", re.compile(r"#\s*include\s*[<\"]|#\s*(?:define|pragma|ifn?def)\s+\w+"
     r"|(?:static|extern|typedef|const|void|int|char|unsigned|struct|enum|long|u?int\d+_t)\b"
     r".*[;{(,)]$")),
    ("Rust source", re.compile(r"(?:pub\s+)?(?:unsafe\s+)?fn\s+\w+\s*[(<]|use\s+\w+::|#!\[\w+")),
    ("Python source", re.compile(r"import\s+\w+$|from\s+[\w.]+\s+import\b|def\s+\w+\(.*:$")),
)  # fmt: skip
_BY_SUFFIX = {
    ".c": "C source",
    ".h": "C source",
    ".cc": "C++ source",
    ".cpp": "C++ source",
    ".cxx": "C++ source",
    ".hpp": "C++ source",
    ".rs": "Rust source",
    ".py": "Python source",
    ".md": "text",
    ".rst": "text",
}
_HEADS = (
    ("<!doctype html", "an HTML page", "download the file itself"),
    ("<html", "an HTML page", "download the file itself"),
    ("<?xml", "an XML file", ""),
    ("<svg", "an SVG picture", ""),
    ("# disk descriptorfile", "a VMDK disk image's descriptor", ""),
    ("version https://git-lfs.github.com/", "a pointer of Git LFS", "git lfs pull"),
    ("-----begin ", "a PEM file", ""),
)
_INTEL_HEX = re.compile(r":((?:[0-9A-F]{2}){5,})$", re.IGNORECASE)
_S_RECORD = re.compile(r"S[0-9]((?:[0-9A-F]{2}){4,})$", re.IGNORECASE)
_HEX_DUMP = re.compile(r"[0-9a-f]{6,8}:?\s+(?:[0-9a-f]{2,8}\s+)+", re.IGNORECASE)


def decoded(data: bytes) -> str | None:
    """``data`` as text without its byte order mark; None if it is none."""
    if data.startswith(UTF16_MARKS):
        text = data.decode("utf-16", errors="replace")
        return None if _CONTROL.search(text) or "\ufffd" in text else text
    if _ASCII.fullmatch(data):
        return data.decode("ascii")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def text_kind(data: bytes, name: str, suffix: str) -> Kind | None:
    """What text ``data`` is, of a file called ``name``; None for what may be code."""
    head = data[:_HEAD]
    text = decoded(head) if len(data) <= _HEAD else decoded(_whole_characters(head))
    is_certain = head.startswith((UTF8_MARK, *UTF16_MARKS)) or len(data) >= _SURELY_UTF8
    if text is None or not (text.isascii() or is_certain):
        return None
    if len(data) > _HEAD and decoded(data) is None:
        return None
    return _language(text, name, suffix)


def _whole_characters(head: bytes) -> bytes:
    """Without the character that the end of ``head`` may have cut."""
    return head[:-1] if head.startswith(UTF16_MARKS) and len(head) % 2 else head.rsplit(b"\n", 1)[0]


def _language(text: str, name: str, suffix: str) -> Kind:
    shown = shlex.quote(name)
    first = text.lstrip().split("\n", 1)[0].strip()
    if first.startswith("#!/"):
        return Kind(f"a script ({first[:60]})", "a guest is machine code or assembly (.S)")
    if (record := _INTEL_HEX.match(first)) and sum(bytes.fromhex(record[1])) % 256 == 0:
        return Kind("an Intel HEX file", f"objcopy -I ihex -O binary {shown} GUEST.bin")
    if (record := _S_RECORD.match(first)) and sum(bytes.fromhex(record[1])) % 256 == 255:
        return Kind("a Motorola S-record file", f"objcopy -I srec -O binary {shown} GUEST.bin")
    for start, kind, remedy in _HEADS:
        if first.lower().startswith(start):
            return Kind(kind, remedy)
    if _is_hex_digits(text) or _HEX_DUMP.match(first):
        return Kind("a hex dump", "make it binary (xxd -r, or xxd -r -p for digits alone)")
    if _is_json(text):
        return Kind("a JSON file")
    return _source(text, shown, name, suffix)


def _source(text: str, shown: str, name: str, suffix: str) -> Kind:
    language = _BY_SUFFIX.get(suffix)
    if language is None and suffix != ".nasm" and is_gas(text):
        return Kind("GNU assembly under another name", f"name it .S: cp {shown} GUEST.S")
    other = dialect(text, name)
    if language is None and (other is not None or suffix == ".nasm"):
        command = f"make a flat binary (nasm -f bin {shown} -o GUEST.bin) and run that"
        return Kind(*(other.name + " source", other.remedy) if other else ("NASM source", command))
    for each, pattern in _LANGUAGES if language is None else ():
        if any(pattern.match(line.text) for line in lines(text)):
            language = each
            break
    if language in (None, "text"):
        return Kind("text", "assembly must have a name that ends in .S, .s or .asm")
    return Kind(language, _NO_C if language.startswith("C") else _BUILD)


def _is_hex_digits(text: str) -> bool:
    return len(text) >= 4 and set(text) <= set("0123456789abcdefABCDEFxX, \t\r\n")


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    import json

    try:
        json.loads(text)
    except ValueError:
        return False
    except RecursionError:
        pass
    return True
