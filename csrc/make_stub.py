"""Writes pyvmm/_native.pyi, the types of the compiled module.

What csrc/decl/ declares is taken from the module as it was compiled. Of the kernel's constants
the stub has those that this tree's Python uses: a host's headers may have fewer than another's,
and a test shows that every host has these.
"""

from __future__ import annotations

import keyword
import re
from typing import Any

from build_native import DECLARATIONS, FAMILY, HERE

from pyvmm._native import ffi, lib

STUB = HERE.parent / "pyvmm" / "_native.pyi"

HEAD = """# Made by csrc/make_stub.py.
from typing import Any

class _Ffi:
    NULL: Any
    CData: Any
    error: type[Exception]
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str, value: Any) -> Any: ...
    def gc(self, cdata: Any, destructor: Any, size: int = ...) -> Any: ...
    def sizeof(self, what: Any) -> int: ...
    def typeof(self, what: Any) -> Any: ...
    def getctype(self, cdecl: Any, replace_with: str = ...) -> str: ...
    def offsetof(self, cdecl: Any, *fields: str) -> int: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def from_buffer(
        self, cdecl: Any, python_buffer: Any = ..., require_writable: bool = ...
    ) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def memmove(self, target: Any, source: Any, size: int) -> None: ...
    def addressof(self, cdata: Any, *fields: Any) -> Any: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    @property
    def errno(self) -> int: ...

class _Lib:
"""

TAIL = """
ffi: _Ffi
lib: _Lib
"""


def type_name(ctype: Any) -> str:
    """What Python gives for, or takes as, a C type."""
    if ctype.kind == "void":
        return "None"
    if ctype.kind == "enum":
        return "int"
    if ctype.kind == "primitive":
        return {"_Bool": "bool", "double": "float"}.get(ctype.cname, "int")
    return "Any"


def argument_names(function: str) -> list[str]:
    """The names that a function's declaration gives its arguments; cffi does not keep them."""
    text = "".join((HERE / "decl" / header).read_text() for header in DECLARATIONS)
    found = re.search(rf"\b{function}\(([^)]*)\);", text)
    assert found, f"{function} is not declared in csrc/decl/"
    names = [part.split("*")[-1].split()[-1] for part in found[1].split(",")]
    return [f"{name}_" if keyword.iskeyword(name) else name for name in names]


def function_line(name: str, function: Any) -> str:
    """Without line breaks where it fits; cffi takes no arguments by name."""
    result = type_name(function.result)
    pairs = zip(argument_names(name), function.args, strict=False)
    arguments = ["self", *(f"{argument}: {type_name(ctype)}" for argument, ctype in pairs), "/"]
    if len(arguments) == 2:
        arguments = ["self"]
    line = f"    def {name}({', '.join(arguments)}) -> {result}: ...\n"
    if len(line) <= 101:
        return line
    inner = f"        {', '.join(arguments)}\n"
    if len(inner) > 101:
        inner = "".join(f"        {argument},\n" for argument in arguments[:-1]) + "        /,\n"
    return f"    def {name}(\n{inner}    ) -> {result}: ...\n"


def member(name: str) -> str:
    """One line of the class: a constant or a function."""
    value = getattr(lib, name)
    if isinstance(value, int):
        return f"    {name}: int\n"
    return function_line(name, ffi.typeof(value))


def declared() -> list[str]:
    """What csrc/decl/ declares; all other names are the kernel's."""
    return [name for name in dir(lib) if not FAMILY.fullmatch(name)]


def used() -> list[str]:
    """The kernel's constants that Python code of this tree names."""
    folders = (HERE.parent / name for name in ("pyvmm", "tests", "examples", "benchmarks"))
    text = "".join(path.read_text() for each in folders for path in each.rglob("*.py"))
    names = set(re.findall(r"\blib\.([A-Z][A-Z0-9_]*[A-Z0-9])\b(?!\*|_)", text))
    return sorted(name for name in names if FAMILY.fullmatch(name))


def stub(kernels: list[str]) -> str:
    """The file's text, with these names of the kernel."""
    return HEAD + "".join(member(name) for name in sorted([*declared(), *kernels])) + TAIL


if __name__ == "__main__":
    STUB.write_text(stub(used()))
