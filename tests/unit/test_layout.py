"""Every structure that Python knows has its layout asserted, and the assertions work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pyvmm.native import ffi

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LAYOUT = CSRC / "kvm_layout.h"

pytestmark = pytest.mark.skipif(not LAYOUT.exists(), reason="csrc/ is not here")


def declared() -> list[str]:
    """The C types that decl/kvm.h declares."""
    text = (CSRC / "decl" / "kvm.h").read_text()
    structs = re.findall(r"^(struct \w+) \{", text, re.MULTILINE)
    named = re.findall(r"^typedef (?:struct|union) \{[^}]*\}\s*(\w+);", text, re.MULTILINE)
    return structs + named


def asserted() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    text = LAYOUT.read_text()
    sizes = re.findall(r"^SIZE\(([^,]+), (\d+)\);", text, re.MULTILINE)
    offsets = re.findall(r"^OFFSET\(([^,]+), (\w+), (\d+)\);", text, re.MULTILINE)
    return (
        {type: int(size) for type, size in sizes},
        {(type, member): int(offset) for type, member, offset in offsets},
    )


def test_there_are_many() -> None:
    assert len(declared()) > 90


@pytest.mark.parametrize("type", declared() if LAYOUT.exists() else [])
def test_size_and_every_offset_are_asserted(type: str) -> None:
    sizes, offsets = asserted()
    assert sizes[type] == ffi.sizeof(type)
    members = {name: field.offset for name, field in ffi.typeof(type).fields}
    there = {member: at for (name, member), at in offsets.items() if name == type}
    assert members.items() <= there.items()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("line", ["SIZE(struct kvm_regs, 144)", "OFFSET(struct kvm_run, io, 32)"])
def test_a_wrong_number_stops_the_build(line: str, tmp_path: Path) -> None:
    text = LAYOUT.read_text()
    assert line in text

    def compile_with(line_there: str) -> str:
        header = tmp_path / "layout.h"
        header.write_text(text.replace(line, line_there))
        return subprocess.run(
            ["cc", "-fsyntax-only", f"-I{CSRC}", "-x", "c", str(header)],
            capture_output=True,
            text=True,
            check=False,
        ).stderr

    assert "static assertion failed" not in compile_with(line)
    assert "static assertion failed" in compile_with(re.sub(r"\d+\)$", "7)", line))
