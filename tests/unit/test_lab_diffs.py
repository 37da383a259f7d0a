"""What of a text is a diff, as `git apply` reads it, and which lines diffs add."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.lab.diffs import added_lines, diffs_in, text_of
from pyvmm.lab.mail import patch_texts
from pyvmm.lab.patching import placed

NAME = "virt/kvm/kvm_main.c"
CHANGE = (
    f"diff --git a/{NAME} b/{NAME}\nindex 742bd57..43489eb 100644\n--- a/{NAME}\n+++ b/{NAME}\n"
    "@@ -1,3 +1,4 @@ struct kvm\n int a;\n+-- line\n \n-- old\n+++ new\n"
)
OLDER = CHANGE.replace("+-- line", "+first try")


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("title", ["Interdiff against v1:", "Range-diff against v1:", "Notes:"])
@pytest.mark.parametrize("behind", [False, True])
def test_what_git_am_ignores_is_no_part_of_a_patch(
    tmp_path: Path, title: str, behind: bool
) -> None:
    """git format-patch puts these before the diff; people and mail programs put more behind it."""
    aside = f"{title}\n{indented(OLDER)}\n"
    letter = "From: a@example.org\nSubject: [PATCH v2] KVM: x\n\nWhy.\n---\n"
    letter += f"{CHANGE}-- \n2.39.5\n\n{aside}" if behind else f"{aside}{CHANGE}-- \n2.39.5\n"
    path = tmp_path / "0001-x.patch"
    path.write_text(letter)
    assert patch_texts(path) == [CHANGE]


def test_hunks_have_the_lines_at_which_they_were_applied() -> None:
    """patch(1) tells only of those that fit elsewhere."""
    text = (
        "diff --git a/one.c b/two.c\nsimilarity index 100%\nrename from one.c\nrename to two.c\n"
        "--- a/x.c\n+++ b/x.c\n@@ -1 +1,2 @@\n a\n+b\n@@ -10,2 +11,3 @@ f()\n c\n+d\n e\n"
        "--- a/y.c\n+++ b/y.c\n@@ -5,0 +6 @@\n+g\n"
    )
    said = (
        "patching file x.c\nHunk #2 succeeded at 31 (offset 20 lines).\n"
        "patching file y.c\nHunk #1 succeeded at 5 (offset -1 lines).\n"
    )
    found = placed(diffs_in(text), said.splitlines())
    assert added_lines([text_of(found)]) == {"x.c": {2: "b", 32: "d"}, "y.c": {5: "g"}}
    assert "@@ -30,2 +31,3 @@ f()\n c\n" in text_of(found)
    assert placed(diffs_in(text), []) == diffs_in(text)


def test_lines_that_look_like_a_diff() -> None:
    prose = (
        "--- a/x.c is what it was\n+++ b/x.c is what it is\nand no more\ndiff --git a/x b/x\n"
        "--- \n@@ -1 +1 @@\n"
    )
    assert diffs_in(prose) == []
    assert text_of(diffs_in(prose + CHANGE + prose)) == CHANGE


def test_a_patch_of_several_files() -> None:
    text = (
        "--- linux.orig/x.c\t2025-01-01\n+++ linux/x.c\t2025-01-02\n@@ -1 +1 @@\n-a\n+b\n"
        "\\ No newline at end of file\n"
        "--- a/y.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
        "diff --git a/one.c b/two.c\nsimilarity index 100%\nrename from one.c\nrename to two.c\n"
        "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n"
        "diff --git a/empty b/empty\nnew file mode 100644\nindex 0000000..e69de29\n"
        "diff --git a/gone b/gone\ndeleted file mode 100644\nindex e69de29..0000000\n"
    )
    found = diffs_in(text)
    assert [(diff.old, diff.new, diff.flaw) for diff in found] == [
        ("x.c", "x.c", ""),
        ("y.c", "", ""),
        ("one.c", "two.c", ""),
        ("run.sh", "run.sh", ""),
        ("", "empty", ""),
        ("gone", "", ""),
    ]
    assert text_of(found) == text


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (CHANGE.replace("+-- line", "wrapped"), "'wrapped' is no line of the hunk @@ -1,3 +1,4 @@"),
        (CHANGE.replace("+++ new\n", "") + "-- \n2.39\n", "'-- ' is no line of the hunk"),
        (CHANGE.replace("+++ new\n", ""), "the hunk @@ -1,3 +1,4 @@ is cut off"),
        (CHANGE + "@@ x\n", "@@ x begins no hunk"),
        (CHANGE.partition("@@")[0], "it has no hunk"),
        (f"diff --git a/{NAME} b/{NAME}\nnew file mode 120000\n", "it is a symbolic link"),
        (f"diff --git a/{NAME} b/{NAME}\nindex 1..2 100644\nGIT binary patch\n", "binary diffs"),
    ],
)
def test_what_cannot_be_applied_is_told(text: str, flaw: str) -> None:
    (found,) = diffs_in(text)
    assert found.flaw.startswith(f"{NAME}: ") and flaw in found.flaw
    # It is told again of what was taken from it.
    assert [diff.flaw[:40] for diff in diffs_in(text_of([found]))] == [found.flaw[:40]]


def test_what_cannot_be_applied_is_told_with_its_name_without_prefixes_too() -> None:
    """As with diff.noprefix: nothing tells where one name ends and the other begins."""
    (found,) = diffs_in("diff --git a b.c a b.c\nnew file mode 100644\nGIT binary patch\n")
    assert found.flaw == "a b.c a b.c: git binary diffs are not supported"


@given(st.text(alphabet="+- @\\1,\n\tdiff-gt/ab", max_size=200), st.integers(0, len(CHANGE)))
def test_any_text(noise: str, at: int) -> None:
    """What is taken of a text is a diff as it stands; taken again it is the same."""
    for text in (noise, CHANGE[:at] + noise + CHANGE[at:]):
        found = diffs_in(text)
        taken = text_of(diff for diff in found if not diff.flaw)
        assert text_of(diffs_in(taken)) == taken
        added_lines([text, text])


def test_added_lines_are_those_of_the_patched_file() -> None:
    text = (
        "--- a/x.c\n+++ b/x.c\n@@ -1,2 +1,3 @@\n a\n+b\n c\n@@ -10,2 +11,2 @@\n-d\n+e\n f\n"
        "--- /dev/null\n+++ b/new.c\n@@ -0,0 +1,2 @@\n+one\n+two\n\\ No newline at end of file\n"
        "-- \n2.39\n"
    )
    found = {name: list(lines.items()) for name, lines in added_lines([text]).items()}
    assert found == {"x.c": [(2, "b"), (11, "e")], "new.c": [(1, "one"), (2, "two")]}


def test_added_lines_go_with_their_file() -> None:
    made = "--- /dev/null\n+++ b/x.c\n@@ -0,0 +1,2 @@\n+one\n+two\n"
    moved = "diff --git a/x.c b/y/x.c\nsimilarity index 50%\nrename from x.c\nrename to y/x.c\n"
    changed = "--- a/x.c\n+++ b/y/x.c\n@@ -1,2 +1,3 @@\n+zero\n one\n two\n"
    removed = "--- a/y/x.c\n+++ /dev/null\n@@ -1,3 +0,0 @@\n-zero\n-one\n-two\n"
    again = "--- a/y/x.c\n+++ b/y/x.c\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    assert added_lines([made, moved]) == {"y/x.c": {1: "one", 2: "two"}}
    assert added_lines([made, moved, again]) == {"y/x.c": {1: "one", 2: "three"}}
    assert added_lines([made, moved + changed]) == {"y/x.c": {1: "zero", 2: "one", 3: "two"}}
    assert added_lines([made, moved + changed, removed]) == {}


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=12).map(tuple), min_size=2, max_size=4))
def test_added_lines_of_several_patches_are_those_of_the_last_file(
    versions: list[tuple[str, ...]],
) -> None:
    """Lines carry the version that they come from, so that each can be told."""
    files: list[list[str]] = [[f"{line} 0" for line in versions[0]]]
    patches = []
    for number, letters in enumerate(versions[1:], 1):
        before = files[-1]
        after = []
        matcher = difflib.SequenceMatcher(a=[line[0] for line in before], b=list(letters))
        for kind, i, j, k, m in matcher.get_opcodes():
            kept = before[i:j] if kind == "equal" else [f"{each} {number}" for each in letters[k:m]]
            after += kept
        diff_lines = difflib.unified_diff(before, after, "a/x.c", "b/x.c", n=1, lineterm="")
        patches.append("\n".join(diff_lines) + "\n")
        files.append(after)
    expected = {at: line for at, line in enumerate(files[-1], 1) if not line.endswith(" 0")}
    assert added_lines(patches).get("x.c", {}) == expected
