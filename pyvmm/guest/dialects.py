"""Which assembler a source is written for, where that is not GNU as in AT&T's syntax."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from pyvmm.guest.preprocessor import Line, lines

_OF_GAS = re.compile(
    r"(?:[\w.$]+:\s*)?\.(?:code16|code32|code64|code16gcc|intel_syntax|globl|global|text|section|"
    r"include|macro|set|equ|org|asciz?|string|byte|word|long|align)\b(?!\s*[=:(])"
)
_OF_NASM = re.compile(
    r"\[\s*(?:bits|org|section|segment|global|extern|cpu)\s[^\]]*\]"
    r"|bits\s+(?:16|32|64)\b|use(?:16|32|64)\s*(?:;|$)"
    r"|%(?:define|xdefine|idefine|assign|i?macro|include|ifn?def|ifn?|elif|else|endif|endmacro"
    r"|rep|endrep|undef|error|warning|use|pragma)\b"
    r"|(?:section|segment)\s+\.\w+"
    r"|(?:global|extern)\s+[\w.$@?]+\s*(?:;|$)"
    r"|(?:[\w.$@?]+:?\s+)?(?:res[bwdq]|incbin)\s+\S",
    re.IGNORECASE,
)
_OF_FASM = re.compile(
    r"format\s+(?:binary|elf|elf64|pe|mz|coff)\b|include\s+'[^']*'",
    re.IGNORECASE,
)
_OF_MASM = re.compile(
    r"\.model\s+\w+|\.(?:code|stack)\b\s*(?:\w+h?\s*)?(?:;|$)|\w+\s+(?:proc|endp|ends)\s*(?:;|$)"
    r"|assume\s+\w+:|\w+\s+segment\b",
    re.IGNORECASE,
)
_OF_SEVERAL = re.compile(  # NASM, fasm and MASM
    r"org\s+[0-9$][\w+*-]*\s*(?:;|$)"
    r"|(?:[\w.$@?]+:?\s+)?times\s+\S"
    r"|(?:[\w.$@?]+:?\s+)?d[bwdqt]\s+[-\w'\"`$?(]"
    r"|[\w.$@?]+:?\s+equ\s+\S",
    re.IGNORECASE,
)
_REGISTER = r"(?:e?[abcd]x|[abcd][lh]|e?[sd]i|e?[sb]p|[cdefgs]s)"
_OF_INTEL = re.compile(
    r"(?:[\w.$]+:\s*)?(?:mov[sz]?x?|add|adc|sub|sbb|xor|and|or|cmp|test|push|pop|inc|dec|in|lea|"
    rf"xchg|i?mul|i?div|neg|not|sh[lr]|ro[lr])\s+(?:{_REGISTER}|(?:byte|word|dword)\b.*)\s*(?:[,;#]|$)"
    rf"|out\s+\w+\s*,\s*{_REGISTER}\s*(?:[;#]|$)|int\s+(?:0x)?[0-9a-f]+h?\s*(?:[;#]|$)",
    re.IGNORECASE,
)
_IS_REGISTER = re.compile(_REGISTER, re.IGNORECASE)
_INTEL_SYNTAX = re.compile(r"\.intel_syntax\b(\s+noprefix)?")


class Dialect(NamedTuple):
    """An assembler's name, the line that shows it, and how to use that assembler."""

    name: str
    line: Line
    remedy: str


def is_gas(text: str) -> bool:
    return any(_OF_GAS.match(line.text) for line in lines(text))


def dialect(text: str, name: str) -> Dialect | None:
    """The assembler that the file called ``name`` is for; None if GNU as, or unknown."""
    if is_gas(text):
        return None
    nasm = (
        f"install nasm (apt install nasm) and name it .nasm, or make a flat binary "
        f"(nasm -f bin {shlex.quote(name)} -o GUEST.bin) and run that"
    )
    fasm = f"make a flat binary (fasm {shlex.quote(name)} GUEST.bin) and run that"
    own = "make a flat binary with that assembler and run that"
    for pattern, which, remedy in (
        (_OF_FASM, "fasm", fasm),
        (_OF_NASM, "NASM", nasm),
        (_OF_MASM, "MASM or TASM", own),
        (_OF_SEVERAL, "NASM", nasm),
    ):
        for line in lines(text):
            if pattern.match(line.text):
                return Dialect(which, line, remedy)
    return None


def intel_remedy(text: str, number: int) -> str:
    """What to do if line ``number``, which as rejects, is in Intel's syntax; else ""."""
    rejected = [line for line in lines(text) if line.number == number]
    if not any(_OF_INTEL.match(line.text) for line in rejected):
        return ""
    told = _INTEL_SYNTAX.search(text)
    if told is None:
        return "for Intel's syntax put .intel_syntax noprefix before it"
    return "" if told[1] else "registers without % need .intel_syntax noprefix"


def is_register(symbol: str) -> bool:
    return _IS_REGISTER.fullmatch(symbol) is not None
