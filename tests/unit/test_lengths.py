"""Files and functions that can be read in one go: how long they may be, tables apart."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 60
# The layouts are a list of assertions, the declarations one of names.
LISTS = ("csrc/kvm_layout.h", "csrc/decl/", "pyvmm/_native.pyi")
PYTHON = sorted(
    path
    for folder in ("pyvmm", "csrc", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
C = sorted(path for path in (ROOT / "csrc").rglob("*.[ch]"))

pytestmark = pytest.mark.skipif(not C, reason="the sources are not here")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_too_long() -> None:
    lengths = {
        name_of(path): len(path.read_text().splitlines())
        for path in [*PYTHON, *C]
        if not name_of(path).startswith(LISTS)
    }
    assert not {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FILE}


def functions_of_python(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def functions_of_c(path: Path) -> Iterator[tuple[str, int]]:
    """By the brace in the first column that begins a body and the one that ends it."""
    lines = path.read_text().splitlines()
    begin = None
    for number, line in enumerate(lines):
        if line == "{":
            begin = number
        elif line == "}" and begin is not None:
            head = begin - 1
            while head > 0 and re.match(r"\s", lines[head]):
                head -= 1
            yield lines[head].partition("(")[0], number - head + 1
            begin = None


def test_no_function_is_too_long() -> None:
    found = [
        (f"{name_of(path)}: {name}", length)
        for paths, functions in ((PYTHON, functions_of_python), (C, functions_of_c))
        for path in paths
        for name, length in functions(path)
    ]
    assert len([name for name, _ in found if name.startswith("csrc/")]) > 100
    assert not [each for each in found if each[1] > MOST_LINES_OF_A_FUNCTION]
