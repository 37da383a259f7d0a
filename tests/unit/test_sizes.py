"""No file and no function is too long to be understood at once."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 60
# What the kernel's headers say, an assertion a line.
TABLES = {"csrc/kvm_layout.h"}
SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder, endings in (("pyvmm", (".py",)), ("csrc", (".c", ".h", ".py")))
    for path in (ROOT / folder).rglob("*")
    if path.suffix in endings
)


def test_files() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in SOURCES}
    assert lengths.keys() >= TABLES
    assert {name for name, lines in lengths.items() if lines > MOST_LINES} <= TABLES


def test_functions() -> None:
    lengths = {
        f"{name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name in SOURCES
        if name.endswith(".py")
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert not {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION}
