"""What the documents show is true: their programs run, and their commands print what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, alike, blocks, documents

_TIMEOUT_S = 120
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    return subprocess.run(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"},
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader is who follows a document: the guests and tests are at hand."""
    for name in ("guests", "tests", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("document", documents(), ids=lambda each: each.name)
def test_document(document: Path, folder: Path) -> None:
    for block in blocks(document):
        where = f"{document.name}:{block.line}"
        if block.needs_a_lab:
            continue
        if block.caption:
            (folder / block.caption).write_text(block.text)
        elif block.language == "python":
            result = run([sys.executable, "-W", "error", "-c", block.text], folder)
            assert result.returncode == 0, f"{where}: {result.stdout}"
        elif block.language == "c" and "main(" in block.text:  # a whole guest
            (folder / "mine.c").write_text(block.text)
            result = run(["pyvmm", "run", "mine.c"], folder)
            assert result.returncode == 0, f"{where}: {result.stdout}"
        elif block.language == "console":
            for command, promised in block.commands():
                result = run(["sh", "-c", command], folder)
                if not command.endswith("echo $?"):
                    assert result.returncode == 0, f"{where}: {command}: {result.stdout}"
                printed = alike(result.stdout)
                for line in promised:
                    assert alike(line) in printed, f"{where}: {line!r} is not in: {result.stdout}"


@pytest.mark.parametrize("document", documents(), ids=lambda each: each.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in _LINK.findall(document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
