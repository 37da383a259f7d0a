"""Changed lines: which of them are code, and why some of those have no counter.

gcov has no counter for a line that the compiler made nothing of, or whose code it counts elsewhere:
where a function that is inlined or a macro is written. Nothing of that may look as if it had not
been changed, so a line is taken for code by its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyvmm.lab.coverage import FOLDERS, Lines

#: How often a statement was executed that has no counter of its own: a ``return 0;`` is a jump to
#: where another line returns, and a call of an inlined function is what that one consists of.
NO_CODE = -1
#: One of which gcov knows nothing, nor of what is around it: another configuration has it, nobody
#: calls its function, all of that is inlined, or it is noinstr.
NOT_SEEN = -2
#: One outside of what is counted: the kernel has more than KVM, and assembly has no counters.
NOT_COUNTED = -3
WHY_NOT_COUNTED = {
    NO_CODE: "no code of its own",
    NOT_SEEN: "unknown to gcov",
    NOT_COUNTED: "not counted",
}

_LANGUAGES = (".c", ".h", ".S")
#: Folders whose C is no part of a kernel.
_OTHERS = ("tools/", "scripts/", "samples/", "usr/", "Documentation/")
_COMMENT = re.compile(r"/\*.*?(?:\*/|$)|//.*")
_MACRO = re.compile(r"#\s*define\s+\w+\([^)]*\)\s+[^\s\\]")
_JUMP = re.compile(r"(?:return|goto|break|continue)\b.*;$")
_HEAD = re.compile(r"(?:}\s*)?(?:else\s+)?(?:if|for|while|switch|\w*for_each\w*)\s*\(")
_PLACE = r"[\w.>\[\]*&()-]+"
_ACTS = re.compile(
    rf"(?:\(void\)\s*)?(?!DECLARE_|DEFINE_){_PLACE}(?<=\w|\)|\])\(|"  # calls
    rf"(?:{_PLACE}\s+\**)*{_PLACE}\s*(?:[-+*/%&|^]|<<|>>)?=(?!=)|"  # sets, be it declared here
    rf"(?:\+\+|--){_PLACE};|{_PLACE}(?:\+\+|--);"
)
#: How lines begin and end that are not the first ones of their statement.
_GOES_ON = re.compile(r"(?:[&|?:+*/%<>=.\"]|-(?!-))|.*(?:[&|,?:+\-*/%<>=(;]|\w\))$")
_CONDITION = re.compile(r"(?:&&|\|\|)|.*(?:&&|\|\|)$")
_LABEL = re.compile(r"(?:case\b.*|default|\w+)\s*:$")
_NO_EXPRESSION = re.compile(r"[{}();,\s]*$|}?\s*else\s*{?$|do\s*{$|}\s*while\b|fallthrough;$")
#: Two names one after the other are a type and what has it.
_DECLARES = re.compile(
    r"DECLARE_|DEFINE_|"
    r"(?:\w+\s+)*(?!return\b|sizeof\b)\w+\s+\**\w+(?:\[[^\]]*\])*\s*(?:[,);:]|$)"
)
#: So near to code that is compiled a line is of the same function.
_NEAR = (-2, -1, 1, 2)


@dataclass(frozen=True, slots=True)
class CoveredLine:
    """A line of a patch that is code, and by which cases it was executed.

    ``count`` says how often, or why that is not known: NO_CODE, NOT_SEEN, NOT_COUNTED.
    """

    file: str
    number: int
    text: str
    count: int
    branches: tuple[int, ...] = ()
    cases: tuple[str, ...] = ()


def without_counter(
    file: str, number: int, lines: Mapping[int, str], parts: Sequence[Lines]
) -> CoveredLine | None:
    """What is known of a changed line that gcov does not count; None for one that is no code.

    ``lines`` has the file's changed lines, and ``parts`` what each object has of the file.
    """
    text = lines[number]
    is_of_a_macro = any(each.rstrip().endswith("\\") for each in (text, lines.get(number - 1, "")))
    if not file.endswith(_LANGUAGES) or file.startswith(_OTHERS):
        return None
    if not _is_code(file, text) and not _stands_alone(file, number, lines, parts):
        return None
    if parts and (is_of_a_macro or any(_is_near(number, part) for part in parts)):
        return CoveredLine(file, number, text, NO_CODE)
    is_of_kvm = file.startswith(FOLDERS) and not file.endswith(".S")
    return CoveredLine(file, number, text, NOT_SEEN if is_of_kvm else NOT_COUNTED)


def _is_code(file: str, text: str) -> bool:
    if _MACRO.match(text):
        return True
    if file.endswith(".S"):
        return text[:1].isspace() and not text.lstrip().startswith(("/*", "*", "#", "//"))
    return text[:1].isspace() and is_statement(text)


def _stands_alone(file: str, number: int, lines: Mapping[int, str], parts: Sequence[Lines]) -> bool:
    """Whether a statement changed in this line, which is not its first, and not in the one before.

    Where that one changed, too, what is said of it is said of the statement.
    """
    before = lines.get(number - 1, "")
    if file.endswith(".S") or is_statement(before) or goes_on(before):
        return False
    inside = any(number in range(first, last) for part in parts
                 for first, last in part.functions.values())  # fmt: skip
    return goes_on(lines[number]) and (
        inside or _CONDITION.match(_code_of(lines[number])) is not None
    )


def goes_on(text: str) -> bool:
    """Whether a line is of a statement of C that does something, and not its first line."""
    code = _code_of(text)
    if not text[:1].isspace() or _NO_EXPRESSION.match(code) or _LABEL.match(code):
        return False
    if code.startswith("#") or _DECLARES.match(code):
        return False
    return code.count("(") < code.count(")") or _GOES_ON.match(code) is not None


def _code_of(text: str) -> str:
    code = _COMMENT.sub("", text).strip().removesuffix("\\").rstrip()
    return "" if code.startswith(("* ", "*/")) or code == "*" else code


def is_statement(text: str) -> bool:
    """Whether a line is a statement of C that does something, or the first line of one."""
    code = _code_of(text)
    if code.startswith("#"):
        return False
    if _JUMP.match(code):
        return True
    opened = code.count("(") - code.count(")")
    if opened < 0:  # the end of a longer one
        return False
    if code.startswith("return "):
        return opened > 0 or _GOES_ON.match(code) is not None
    if _HEAD.match(code):
        return not code.startswith("}") or "if" in code
    return (opened > 0 or code.endswith((";", "=", "?"))) and _ACTS.match(code) is not None


def _is_near(number: int, part: Lines) -> bool:
    return any(number + by in part.counts for by in _NEAR) or any(
        first <= number <= last for first, last in part.functions.values()
    )
