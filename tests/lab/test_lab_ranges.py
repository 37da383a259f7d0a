"""Ranges of a git tree as a series of patches."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm.lab.errors import LabUsageError
from pyvmm.lab.series import read_range

pytestmark = pytest.mark.boots  # boots nothing, but git is what the lab lane has


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four commits a, b, c and, merged into the last, side."""
    folder = tmp_path / "linux"
    folder.mkdir()

    def git(*words: str) -> None:
        names = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", folder, *names, *words], check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    for name in "abc":
        (folder / "file.c").write_text(f"int {name};\n")
        git("add", ".")
        git("commit", "-qm", f"KVM: make it {name}")
        git("tag", name)
    git("checkout", "-qb", "side", "a")
    (folder / "other.c").write_text("int other;\n")
    git("add", ".")
    git("commit", "-qm", "KVM: beside")
    git("checkout", "-q", "main")
    git("merge", "-q", "side", "-m", "merged")
    return folder


def test_a_range_of_a_tree(tree: Path) -> None:
    patches = read_range(tree, "a..c")
    assert [patch.subject for patch in patches] == ["KVM: make it b", "KVM: make it c"]
    assert "-int a;\n+int b;" in patches[0].text


@pytest.mark.parametrize(
    ("commits", "cause"),
    [
        ("a", "it is not A..B"),
        ("a...c", "it is not A..B"),
        ("a..nothing", "finds no such commit"),
        ("c..a", "a does not come after c"),
        ("a..a", "there is no commit in it"),
        ("a..main", "it is not linear"),
    ],
)
def test_what_is_no_range(tree: Path, commits: str, cause: str) -> None:
    with pytest.raises(LabUsageError, match=cause):
        read_range(tree, commits)
