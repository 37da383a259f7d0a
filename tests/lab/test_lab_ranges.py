"""Ranges of a git tree as a series of patches."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from pyvmm.cli import lab_series
from pyvmm.cli.main import main
from pyvmm.lab.diffs import added_lines
from pyvmm.lab.errors import LabUsageError
from pyvmm.lab.series import read_range, unpack_commit
from pyvmm.lab.sources import list_files

pytestmark = pytest.mark.boots  # boots nothing, but git is what the lab lane has


def git(folder: Path, *words: str, env: Mapping[str, str] = {}) -> None:
    names = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *names, *words]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **env})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four commits a, b, c and, merged into the last, side."""
    folder = tmp_path / "linux"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for name in "abc":
        (folder / "file.c").write_text(f"int {name};\n")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", f"KVM: make it {name}")
        git(folder, "tag", name)
    git(folder, "checkout", "-qb", "side", "a")
    (folder / "other.c").write_text("int other;\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "KVM: beside")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "side", "-m", "merged")
    return folder


def test_a_range_of_a_tree(tree: Path) -> None:
    patches = read_range(tree, "a..c")
    assert [patch.subject for patch in patches] == ["KVM: make it b", "KVM: make it c"]
    assert "-int a;\n+int b;" in patches[0].text


def test_commits_are_patches_whatever_git_is_told_to_show(tree: Path) -> None:
    """diff.noprefix is a common wish; the commit of b4's cover letter changes nothing."""
    git(tree, "config", "diff.noprefix", "true")
    git(tree, "checkout", "-q", "c")
    git(tree, "commit", "-qm", "the cover letter", "--allow-empty")
    git(tree, "tag", "cover")
    (tree / "file.c").write_text("int d;\n")
    git(tree, "commit", "-qam", "KVM: make it d\n\nAs in\n\n  --- a/x\n  +++ b/x\n  @@ -1 +1 @@")
    git(tree, "tag", "d")
    patches = read_range(tree, "b..d")
    assert [(patch.subject, patch.number, patch.total) for patch in patches] == [
        ("KVM: make it c", 1, 2),
        ("KVM: make it d", 2, 2),
    ]
    assert patches[1].text.startswith("diff --git a/file.c b/file.c\n")
    assert added_lines([patch.text for patch in patches]) == {"file.c": {1: "int d;"}}
    with pytest.raises(LabUsageError, match="no commit in it changes a file"):
        read_range(tree, "c..cover")


def test_subjects_are_read_as_utf8(tree: Path) -> None:
    """Whatever git's output is converted to on this machine."""
    git(tree, "config", "i18n.logOutputEncoding", "latin1")
    git(tree, "checkout", "-q", "c")
    (tree / "file.c").write_text("int d;\n")
    git(tree, "commit", "-qam", "KVM: grüßen")
    assert [patch.subject for patch in read_range(tree, "c..")] == ["KVM: grüßen"]


def test_ends_with_no_commit_in_common(tree: Path) -> None:
    git(tree, "checkout", "-q", "--orphan", "another")
    git(tree, "commit", "-qm", "another root")
    with pytest.raises(LabUsageError, match="a and HEAD have no commit in common; a shallow clone"):
        read_range(tree, "a..")


def test_a_file_that_moves_is_not_all_changed(tree: Path) -> None:
    """As in the mails of git format-patch; whatever the user's configuration says."""
    git(tree, "config", "diff.renames", "false")
    git(tree, "config", "diff.renameLimit", "1")
    lines = [f"int line{number};" for number in range(30)]
    for name in ("one.c", "two.c"):
        (tree / name).write_text("\n".join([f"/* {name} */", *lines, ""]))
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "KVM: add them")
    (tree / "virt").mkdir()
    for name in ("one.c", "two.c"):
        git(tree, "mv", name, f"virt/{name}")
        (tree / "virt" / name).write_text("\n".join([f"/* {name} */", *lines, "int last;", ""]))
    git(tree, "commit", "-qam", "KVM: move them")
    (patch,) = read_range(tree, "main~1..main")
    added = added_lines([patch.text])
    assert added == {"virt/one.c": {32: "int last;"}, "virt/two.c": {32: "int last;"}}


def test_line_ends_are_those_of_the_files(tree: Path) -> None:
    (tree / "file.c").write_bytes(b"int e;\r\n")
    git(tree, "commit", "-qam", "KVM: as elsewhere")
    (patch,) = read_range(tree, "main~1..main")
    assert "\n+int e;\r\n" in patch.text


def test_starts_of_one_second_are_told_apart(tree: Path, tmp_path: Path) -> None:
    """A rebase makes commits of the same second, and their files may have the same size."""
    env = {"GIT_COMMITTER_DATE": "2025-11-01 10:00:00 +0000"}
    for name in "xy":
        (tree / "file.c").write_text(f"int {name};\n")
        git(tree, "commit", "-qam", name, env=env)
        git(tree, "tag", name)
    seen = []
    for start in ("x", "y", "x"):
        unpack_commit(tree, f"{start}..main", tmp_path / "src")
        seen.append(list(list_files(tmp_path / "src")))
        assert (tmp_path / "src/file.c").read_text() == f"int {start};\n"
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize(
    ("commits", "cause"),
    [
        ("a", "it is not A..B"),
        ("a...c", "it is not A..B"),
        ("a..nothing", "it has no commit nothing"),
        ("nothing..a", "it has no commit nothing"),
        ("c..a", "a does not come after c"),
        ("a..a", "there is no commit in it"),
        ("a..main", "it is not linear"),
    ],
)
def test_what_is_no_range(tree: Path, commits: str, cause: str) -> None:
    with pytest.raises(LabUsageError, match=cause):
        read_range(tree, commits)


@pytest.mark.parametrize("bare", [False, True])
def test_nothing_has_to_be_checked_out(
    tree: Path, bare: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tree only the commits matter: the files that it has are those of another branch."""
    git(tree, "checkout", "-q", "c")
    (tree / "Kbuild").touch()
    (tree / "arch/x86/kvm").mkdir(parents=True)
    (tree / "arch/x86/kvm/x.c").write_text("int x;\n")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "KVM: a kernel")
    git(tree, "tag", "kernel")
    (tree / "arch/x86/kvm/x.c").write_text("int y;\n")
    git(tree, "commit", "-qam", "KVM: make it y")
    git(tree, "tag", "y")
    git(tree, "checkout", "-q", "c")
    if bare:
        git(tree, "clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    built: list[str] = []

    def build(options: object, source: Path, *_: object) -> NoReturn:
        built.append((source / "arch/x86/kvm/x.c").read_text())
        raise LabUsageError("the build", "it is not tried")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lab_series, "_check_programs", lambda options: None)
    monkeypatch.setattr(lab_series, "_built", build)
    check = ["lab", "check", "--source", str(tmp_path / "bare" if bare else tree), "--range"]
    assert main([*check, "kernel..y"]) == 2 and built == ["int x;\n"]
    assert main([*check, "b..c"]) == 2 and len(built) == 1, "its start is no kernel source"
