"""The examples do what their heads say that they print."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
_TIMEOUT_S = 60


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


def promised(script: Path) -> tuple[bool, str]:
    """Whether the head says all that is printed, and the text."""
    head = ast.get_docstring(ast.parse(script.read_text())) or ""
    introduction, _, text = head.partition("\nPrints")
    assert introduction and text, f"{script.name} does not say what it prints"
    whole = text.startswith(":\n")
    return whole, textwrap.dedent(text.partition("\n" if whole else "always\n")[2]) + "\n"


def test_there_are_at_least_ten() -> None:
    assert len(SCRIPTS) >= 10


@pytest.mark.parametrize(
    "script",
    [each for each in SCRIPTS if not each.name.startswith("test_")],
    ids=lambda each: each.name,
)
def test_example(script: Path) -> None:
    result = run(script)
    assert (result.returncode, result.stderr) == (0, "")
    whole, text = promised(script)
    assert result.stdout == text if whole else result.stdout.startswith(text)


def test_the_pytest_file() -> None:
    result = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLES, EXAMPLES)
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout or "2 passed, 1 skipped" in result.stdout
