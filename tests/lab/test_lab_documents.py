"""The programs in the documents that boot a lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks, documents

pytestmark = pytest.mark.boots

PROGRAMS = [
    pytest.param(block, id=f"{document.name}:{block.line}")
    for document in documents()
    for block in blocks(document)
    if block.language == "python" and block.needs_a_lab
]


@pytest.mark.parametrize("block", PROGRAMS)
def test_program(block: Block, tmp_path: Path) -> None:
    (tmp_path / "guests").symlink_to(ROOT / "guests")
    subprocess.run(
        [sys.executable, "-c", block.text], cwd=tmp_path, timeout=300, check=True, text=True
    )
