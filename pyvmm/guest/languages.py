"""In what language a text is written. It only chooses the words that refuse it."""

from __future__ import annotations

import re
import shlex

from pyvmm.guest.dialects import dialect, is_gas
from pyvmm.guest.kind import Kind
from pyvmm.guest.preprocessor import lines

# So much of a text is looked at.
_HEAD = 1 << 16

_BUILDS = {
    "C source": "name it .c, and pyvmm compiles it",
    "C++ source": "pyvmm compiles C alone: write the guest in that",
}
_BUILD = "build a flat binary or an ELF file of it"
_LANGUAGES = (
    ("C++ source", re.compile(r"#\s*include\s*<(?:iostream|c?std\w+|string|vector|memory)>"
     r"|using\s+namespace\b|template\s*<|namespace\s+\w+|class\s+\w+\s*[:{]|.*\bstd::")),
    ("C source", re.compile(r"#\s*include\s*[<\"]|#\s*(?:define|pragma|ifn?def)\s+\w+"
     r"|(?:static|extern|typedef|const|void|int|char|unsigned|struct|enum|long|u?int\d+_t)\b"
     r".*[;{(,)]$|int\s+main\s*\(")),
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


def language_of(text: str, name: str, suffix: str) -> Kind:
    """What text it is, of the file called ``name``."""
    text = text[:_HEAD]
    shown = shlex.quote(name)
    first = text.lstrip().split("\n", 1)[0].strip()
    if first.startswith("#!/"):
        return Kind(f"a script ({first[:60]})", "a guest is machine code or assembly (.S)")
    if (record := _INTEL_HEX.match(first)) and sum(bytes.fromhex(record[1])) % 256 == 0:
        return Kind("an Intel HEX file", f"objcopy -I ihex -O binary {shown} GUEST.bin")
    if (record := _S_RECORD.match(first)) and sum(bytes.fromhex(record[1])) % 256 == 255:
        return Kind("a Motorola S-record file", f"objcopy -I srec -O binary {shown} GUEST.bin")
    if _INTEL_HEX.match(first) or _S_RECORD.match(first):
        which = "an Intel HEX" if first.startswith(":") else "a Motorola S-record"
        return Kind(f"{which} file whose first record has a wrong checksum")
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
    if language is None and is_gas(text):
        return Kind("GNU assembly under another name", f"name it .S: cp {shown} GUEST.S")
    other = dialect(text, name)
    if language is None and other is not None:
        return Kind(other.name + " source", other.remedy)
    for each, pattern in _LANGUAGES if language is None else ():
        if any(pattern.match(line.text) for line in lines(text)):
            language = each
            break
    if language in (None, "text"):
        return Kind("text", "assembly must have a name that ends in .S, .s or .asm")
    return Kind(language, _BUILDS.get(language, _BUILD))


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
