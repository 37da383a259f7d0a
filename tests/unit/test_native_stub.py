"""The typed stub of the compiled module says what was compiled."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyvmm.native import ffi, lib

CSRC = Path(__file__).resolve().parents[2] / "csrc"

pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="csrc/ is not here")


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CSRC))
    spec = importlib.util.spec_from_file_location("make_stub", CSRC / "make_stub.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "build_native")
    return module


def members(stub: str, class_name: str) -> list[str]:
    """What a class of the stub declares."""
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            functions = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
            values = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            return functions + [ast.unparse(each.target) for each in values]
    raise LookupError(class_name)


def kernel_names(maker: ModuleType) -> list[str]:
    names = members(maker.STUB.read_text(), "_Lib")
    return [name for name in names if maker.FAMILY.fullmatch(name)]


def test_it_names_only_what_every_host_has(maker: ModuleType) -> None:
    names = kernel_names(maker)
    assert len(names) > 100
    assert set(names) <= set(dir(lib))


def test_all_that_is_declared_is_in_it_as_it_was_compiled(maker: ModuleType) -> None:
    """Regenerated with the kernel's constants that it has, it is the same text."""
    assert maker.STUB.read_text() == maker.stub(kernel_names(maker))


def test_what_it_says_of_ffi_is_there(maker: ModuleType) -> None:
    for name in members(maker.STUB.read_text(), "_Ffi"):
        assert hasattr(ffi, name), name


@pytest.mark.parametrize("header", sorted(p.relative_to(CSRC) for p in CSRC.rglob("decl/**/*.h")))
def test_every_file_of_declarations_is_read(maker: ModuleType, header: Path) -> None:
    assert str(header.relative_to("decl")) in maker.DECLARATIONS
