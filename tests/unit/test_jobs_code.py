"""What says which pyvmm a result came from."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from pyvmm.guest.shipped import guests_dir
from pyvmm.validate.jobs.code import code_of, own_code

_ALLOCATED = 2
_CODE, _NOTE, _NOTHING = 1, 7, 8


def library(*sections: tuple[int, int, bytes]) -> bytes:
    """An ELF file with these sections: type, flags, contents."""
    contents, headers = b"", b""
    for kind, flags, content in sections:
        headers += struct.pack("<IIQQQQ24x", 0, kind, flags, 0, 64 + len(contents), len(content))
        contents += content
    start = struct.pack("<40xQ10xHHxx", 64 + len(contents), 64, len(sections))
    return start + contents + headers


LIBRARY = library(
    (_NOTE, _ALLOCATED, b"a build ID"),
    (_CODE, _ALLOCATED, b"code"),
    (_CODE, 0, b"/where/it/was/built"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout."""
    top = tmp_path / "checkout"
    for name in ("pyvmm/a.py", "pyvmm/lab/init", "pyvmm/lab/patches/b.patch", "guests/a.S"):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (top / "pyvmm/_native.abi3.so").write_bytes(LIBRARY)
    (top / "guests/include").mkdir()
    (top / "guests/include/pyvmm.inc").touch()
    return top


def code(top: Path) -> str:
    return code_of(top / "pyvmm", top / "guests")


@pytest.mark.parametrize(
    "name",
    [
        "pyvmm/a.py",
        "pyvmm/lab/init",
        "pyvmm/lab/patches/b.patch",
        "guests/a.S",
        "guests/include/pyvmm.inc",
    ],
)
def test_whatever_is_shipped_counts(name: str, tree: Path) -> None:
    before = code(tree)
    (tree / name).write_text("other")
    changed = code(tree)
    (tree / name).rename(tree / f"{name}.other.py")
    assert len({before, changed, code(tree)}) == 3


def test_what_is_loaded_of_the_compiled_module_counts(tree: Path) -> None:
    def with_library(content: bytes) -> str:
        (tree / "pyvmm/_native.abi3.so").write_bytes(content)
        return code(tree)

    before = code(tree)
    elsewhere = library(
        (_NOTE, _ALLOCATED, b"another"), (_CODE, _ALLOCATED, b"code"), (_CODE, 0, b"/elsewhere")
    )
    assert with_library(elsewhere) == before
    assert with_library(LIBRARY.replace(b"code", b"edoc")) != before
    assert len({with_library(each) for each in (b"", b"\x7fELF", LIBRARY[:-1])}) == 3


def test_what_builds_and_editors_leave_does_not_count(tree: Path) -> None:
    before = code(tree)
    (tree / "guests/built").mkdir()
    (tree / "pyvmm/__pycache__").mkdir()
    for name in (
        "pyvmm/_native.c",
        "pyvmm/.a.py.swp",
        "pyvmm/a.py~",
        "pyvmm/a.py.orig",
        "pyvmm/__pycache__/a.cpython-311.pyc",
        "guests/built/a.elf",
    ):
        (tree / name).touch()
    assert code(tree) == before


def test_a_checkout_and_an_installed_package_are_the_same(tree: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(tree / "pyvmm", installed / "pyvmm")
    shutil.copytree(tree / "guests", installed / "pyvmm/guests")
    assert code_of(installed / "pyvmm", installed / "pyvmm/guests") == code(tree)


def test_it_is_this_packages_own() -> None:
    package = Path(__file__).resolve().parents[2] / "pyvmm"
    assert own_code() == code_of(package, guests_dir())
    assert len(own_code()) == 64
