"""Kernel sources in the cache: patched and put back, with as few files touched as can be."""

from __future__ import annotations

import os
import quopri
import subprocess
from pathlib import Path

import pytest

from pyvmm.lab.cache import locked
from pyvmm.lab.diffs import diffs_in
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.kernels import check_name
from pyvmm.lab.patching import CannotApply, apply_diffs
from pyvmm.lab.sources import Tree, default_tarball, list_files, open_source, patched_files

pytestmark = pytest.mark.boots  # boots nothing, but patch(1) is what the lab lane has

_FILES = {
    "Kbuild": "# top\n",
    "arch/x86/kvm/svm.c": "one\ntwo\nthree\n",
    "virt/kvm/kvm_main.c": "alpha\nbeta\ngamma\n",
    "scripts/run.sh": "#!/bin/sh\n",
}


def _patch(name: str, before: str, after: str) -> str:
    return f"--- a/{name}\n+++ b/{name}\n@@ -1,3 +1,3 @@\n one\n-{before}\n+{after}\n three\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyvmm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "linux"
    for name, content in _FILES.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content)
    (top / "scripts/run.sh").chmod(0o755)
    (top / "link").symlink_to("Kbuild")
    return top


@pytest.fixture
def tarball(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "linux-source-9.9.tar.xz"
    subprocess.run(["tar", "-cJf", path, "-C", tmp_path, "linux"], check=True)
    return path


def _tree(path: Path) -> Tree:
    tree = Tree(open_source(path))
    tree.folder.mkdir(parents=True, exist_ok=True)
    _update(tree)
    return tree


def _update(tree: Tree) -> None:
    with locked(tree.folder, lambda line: None) as lock:
        tree.bring_up_to_date(lambda line: None, lock)


def _contents(top: Path) -> dict[str, str]:
    return {name: (top / name).read_text() for name, _, _ in list_files(top)}


def _stamps(top: Path) -> dict[str, int]:
    return {name: stamp for name, _, stamp in list_files(top)}


def _write_patch(tmp_path: Path, text: str, name: str = "x.patch") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["folder", "tarball"])
def test_a_tree_has_what_the_source_has(kind: str, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(kind)
    tree = _tree(source)
    assert _contents(tree.files) == {**_FILES, "link": "# top\n"}
    assert os.readlink(tree.files / "link") == "Kbuild"
    assert os.access(tree.files / "scripts/run.sh", os.X_OK)


def test_a_patch_touches_its_files_alone_and_is_undone(tarball: Path, tmp_path: Path) -> None:
    tree = _tree(tarball)
    before = _stamps(tree.files)
    text = _patch("arch/x86/kvm/svm.c", "two", "2")
    tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\n2\nthree\n"
    patched = _stamps(tree.files)
    assert {name for name in before if before[name] != patched[name]} == {"arch/x86/kvm/svm.c"}
    tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    assert _stamps(tree.files) == patched, "the same patch again must not rebuild anything"
    tree.patch([], tmp_path / "log")
    assert _contents(tree.files) == {**_FILES, "link": "# top\n"}
    # Newer than the objects of the patched build, or make would keep those.
    assert _stamps(tree.files)["arch/x86/kvm/svm.c"] > patched["arch/x86/kvm/svm.c"]


def test_patches_that_build_on_each_other(tarball: Path, tmp_path: Path) -> None:
    tree = _tree(tarball)
    first = _write_patch(tmp_path, _patch("arch/x86/kvm/svm.c", "two", "2"), "1.patch")
    second = _write_patch(tmp_path, _patch("arch/x86/kvm/svm.c", "2", "zwei"), "2.patch")
    tree.patch([first, second], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\nzwei\nthree\n"


def test_patches_that_fit_elsewhere(tarball: Path, tmp_path: Path) -> None:
    """They are told with the lines that they really have; nothing is changed by asking."""
    tree = _tree(tarball)
    before = _stamps(tree.files)
    first = _patch("arch/x86/kvm/svm.c", "two", "2").replace("@@ -1,3 +1,3 @@", "@@ -41,3 +41,3 @@")
    second = _patch("virt/kvm/kvm_main.c", "beta", "2")
    second = second.replace(" one", " alpha").replace(" three", " gamma")
    paths = [_write_patch(tmp_path, text, text[6:9]) for text in (first, second)]
    placed = tree.placed(paths, tmp_path / "log")
    assert placed == [first.replace("41", "1"), second]
    assert _stamps(tree.files) == before
    assert tree.patch(paths, tmp_path / "log") == placed
    assert tree.placed(paths, tmp_path / "log") == placed


def test_files_that_a_patch_makes_and_removes(tarball: Path, tmp_path: Path) -> None:
    tree = _tree(tarball)
    text = (
        "--- /dev/null\n+++ b/virt/kvm/new/file.c\n@@ -0,0 +1 @@\n+new\n"
        "--- a/virt/kvm/kvm_main.c\n+++ /dev/null\n@@ -1,3 +0,0 @@\n-alpha\n-beta\n-gamma\n"
    )
    tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    contents = _contents(tree.files)
    assert contents["virt/kvm/new/file.c"] == "new\n"
    assert "virt/kvm/kvm_main.c" not in contents
    tree.patch([], tmp_path / "log")
    assert _contents(tree.files) == {**_FILES, "link": "# top\n"}


def test_a_patch_that_does_not_apply_changes_nothing(tarball: Path, tmp_path: Path) -> None:
    tree = _tree(tarball)
    before = _stamps(tree.files)
    good = _write_patch(tmp_path, _patch("virt/kvm/kvm_main.c", "nonsense", "x"), "bad.patch")
    log = tmp_path / "log"
    with pytest.raises(LabError) as caught:
        tree.patch([good], log)
    assert str(good) in str(caught.value)
    assert str(log) in str(caught.value)
    assert "FAILED" in log.read_text()
    assert "\n" not in str(caught.value)
    assert _stamps(tree.files) == before


def _mode_patch(name: str, old: int, new: int) -> str:
    return f"diff --git a/{name} b/{name}\nold mode 100{old}\nnew mode 100{new}\n"


@pytest.mark.parametrize("text", ["", "no patch at all\n", _mode_patch("virt/none.c", 644, 755)])
def test_a_file_that_is_no_patch(tarball: Path, tmp_path: Path, text: str) -> None:
    tree = _tree(tarball)
    with pytest.raises(LabError, match="does not apply"):
        tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")


def test_a_patch_cannot_leave_the_tree(tarball: Path, tmp_path: Path) -> None:
    tree = _tree(tarball)
    outside = tree.folder / "outside"
    text = "--- /dev/null\n+++ b/../outside\n@@ -0,0 +1 @@\n+gotcha\n"
    path = _write_patch(tmp_path, text)
    assert patched_files(path) == set()
    with pytest.raises(LabError):
        tree.patch([path], tmp_path / "log")
    assert not outside.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [("linux-6.12.orig", "linux-6.12"), ("i", "w"), (".", "."), ("a", "b")],
)
def test_the_first_part_of_a_name_may_be_any(
    tarball: Path, tmp_path: Path, old: str, new: str
) -> None:
    tree = _tree(tarball)
    text = _patch("arch/x86/kvm/svm.c", "two", "2").replace("a/", f"{old}/", 1)
    text = text.replace("+++ b/", f"+++ {new}/").replace("\n", "\r\n")
    tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\n2\nthree\n"


def test_files_without_contents_and_scripts(tarball: Path, tmp_path: Path) -> None:
    tree = _tree(tarball)
    new = (
        "diff --git a/virt/empty b/virt/empty\nnew file mode 100644\nindex 0000000..e69de29\n"
        "diff --git a/scripts/run.sh b/scripts/run.sh\ndeleted file mode 100755\n"
        "--- a/scripts/run.sh\n+++ /dev/null\n@@ -1 +0,0 @@\n-#!/bin/sh\n"
    )
    tree.patch([_write_patch(tmp_path, new)], tmp_path / "log")
    assert (tree.files / "virt/empty").read_bytes() == b""
    assert not (tree.files / "scripts/run.sh").exists()
    tree.patch([], tmp_path / "log")
    assert not (tree.files / "virt/empty").exists()
    assert os.access(tree.files / "scripts/run.sh", os.X_OK)


def _executable(tree: Tree) -> list[str]:
    names = _contents(tree.files).keys() - {"link"}
    return sorted(name for name in names if os.access(tree.files / name, os.X_OK))


def test_modes_and_names_alone(tarball: Path, tmp_path: Path) -> None:
    """Patches without a hunk are patches, and make builds nothing again for a mode."""
    tree = _tree(tarball)
    before = _stamps(tree.files)
    run, not_run = _mode_patch("Kbuild", 644, 755), _mode_patch("scripts/run.sh", 755, 644)
    renamed = (
        "diff --git a/virt/kvm/kvm_main.c b/virt/kvm/main.c\nold mode 100644\nnew mode 100755\n"
        "similarity index 100%\nrename from virt/kvm/kvm_main.c\nrename to virt/kvm/main.c\n"
    )
    texts = {"1": run, "2": not_run, "3": renamed}
    paths = [_write_patch(tmp_path, text, name) for name, text in texts.items()]
    tree.patch(paths[:1], tmp_path / "log")
    assert _executable(tree) == ["Kbuild", "scripts/run.sh"]
    tree.patch(paths, tmp_path / "log")
    assert _executable(tree) == ["Kbuild", "virt/kvm/main.c"]
    assert _contents(tree.files)["virt/kvm/main.c"] == _FILES["virt/kvm/kvm_main.c"]
    tree.patch(paths[1:2], tmp_path / "log")
    assert _executable(tree) == []
    assert _stamps(tree.files).keys() == before.keys()
    kept = before.keys() - {"virt/kvm/kvm_main.c"}
    assert [name for name in kept if _stamps(tree.files)[name] != before[name]] == []
    gone = "--- a/Kbuild\n+++ /dev/null\n@@ -1 +0,0 @@\n-# top\n"
    tree.patch([paths[0], _write_patch(tmp_path, gone, "4")], tmp_path / "log")
    assert not (tree.files / "Kbuild").exists()
    tree.patch([], tmp_path / "log")
    assert _executable(tree) == ["scripts/run.sh"]


def _moved(kind: str, old: str, new: str, rest: str = "") -> str:
    return (
        f"diff --git a/{old} b/{new}\nsimilarity index 90%\n{kind} from {old}\n{kind} to {new}\n"
        f"{rest}"
    )


def test_files_that_change_places(tarball: Path, tmp_path: Path) -> None:
    """To git all of a patch is about the files as they were; a mode goes with its file."""
    tree = _tree(tarball)
    svm, main = "arch/x86/kvm/svm.c", "virt/kvm/kvm_main.c"
    hunk = f"--- a/{main}\n+++ b/{svm}\n@@ -1,3 +1,3 @@\n alpha\n-beta\n+2\n gamma\n"
    text = (
        _moved("rename", main, svm, hunk)
        + _moved("rename", svm, main)
        + _moved(
            "copy", main, "virt/kvm/copy of it.c", hunk.replace(svm, "virt/kvm/copy of it.c\t")
        )
        + _moved("rename", "scripts/run.sh", "scripts/go")
    )
    tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    contents = _contents(tree.files)
    assert contents[svm] == contents["virt/kvm/copy of it.c"] == "alpha\n2\ngamma\n"
    assert contents[main] == _FILES[svm]
    assert _executable(tree) == ["scripts/go"]
    tree.patch([], tmp_path / "log")
    assert _contents(tree.files) == {**_FILES, "link": "# top\n"}
    assert _executable(tree) == ["scripts/run.sh"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "--- a/arch/x86/kvm/svm.c\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n",
            "Not deleting file arch/x86/kvm/svm.c as content differs from patch",
        ),
        (_moved("rename", "virt/none.c", "virt/x.c"), "virt/none.c: there is no such file"),
        (_moved("copy", "Kbuild", "scripts/run.sh"), "scripts/run.sh: it is there already"),
        ("diff --git a/Kbuild b/Kbuild\nnew file mode 100644\n", "Kbuild: it is there already"),
        ("diff --git a/Kbuild b/Kbuild\ndeleted file mode 100644\n", "not have what it removes"),
        ("diff --git a/none b/none\ndeleted file mode 100644\n", "none: there is no such file"),
        (_moved("rename", "Kbuild", "../x"), r"\.\./x: it is not below the source"),
        ("diff --git a/link b/link\nindex 1..2 120000\n", "link: it is a symbolic link"),
    ],
)
def test_names_that_cannot_be(tarball: Path, tmp_path: Path, text: str, cause: str) -> None:
    tree = _tree(tarball)
    with pytest.raises(LabError, match=cause):
        tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    assert _contents(tree.files) == {**_FILES, "link": "# top\n"}


def test_a_binary_patch_is_refused(tarball: Path, tmp_path: Path) -> None:
    """patch(1) says that it cannot, and ends with status 0."""
    tree = _tree(tarball)
    text = (
        "diff --git a/link b/link\n"
        "index 87ae6b695deceaf160611414f7dcd5c7366b2e79..c0d3111929bc887ced3807bd2525c438b0b49708"
        " 100644\nGIT binary patch\nliteral 8\nPcmYew%wtF_s;mG249^1o\n\n"
        "literal 7\nOcmYew%wtF_sssQD(E^45\n\ndiff --git a/x b/x\n"
    ) + _patch("arch/x86/kvm/svm.c", "two", "2")
    with pytest.raises(LabError, match="git binary diffs are not supported"):
        tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\ntwo\nthree\n"


def test_a_patch_as_git_mails_it(tarball: Path, tmp_path: Path) -> None:
    """patch(1) would apply the indented diff against the version before, too, and fail."""
    tree = _tree(tarball)
    change = _patch("arch/x86/kvm/svm.c", "two", "2")
    older = "".join(f"  {line}\n" for line in change.replace("two", "zwei").splitlines())
    head = f"From: a@example.org\nSubject: [PATCH v2] KVM: x\n\n---\nInterdiff:\n{older}\n"
    text = head + change + f"-- \n2.39.5\n\nNotes:\n{older}"
    tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\n2\nthree\n"
    encoded = quopri.encodestring(change.encode()).decode().replace("=", "=3D").replace("t", "=74")
    assert "=74wo" in encoded
    head = "From: a@example.org\nContent-Transfer-Encoding: quoted-printable\n\n"
    tree.patch([_write_patch(tmp_path, head + encoded)], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\n2\nthree\n"


def test_a_patch_with_a_line_that_no_file_can_be_called(tarball: Path, tmp_path: Path) -> None:
    tree = _tree(tarball)
    text = f"--- x/{'y' * 300}\n--- x//\n" + _patch("arch/x86/kvm/svm.c", "two", "2")
    tree.patch([_write_patch(tmp_path, text)], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\n2\nthree\n"


def test_files_links_and_folders_take_each_other_s_place(folder: Path) -> None:
    tree = _tree(folder)
    (folder / "virt/kvm/kvm_main.c").unlink()
    (folder / "virt/kvm/kvm_main.c").mkdir()
    (folder / "virt/kvm/kvm_main.c/part.c").write_text("part\n")
    (folder / "scripts/run.sh").unlink()
    (folder / "scripts").rmdir()
    (folder / "scripts").write_text("a file\n")
    (folder / "link").unlink()
    (folder / "link").write_text("no link\n")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    _update(tree)
    assert (tree.files / "Kbuild").read_text() == "# top\n"
    assert (tree.files / "link").read_text() == "no link\n"
    assert (tree.files / "scripts").read_text() == "a file\n"
    assert (tree.files / "virt/kvm/kvm_main.c/part.c").read_text() == "part\n"
    (folder / "dangling").unlink()
    (folder / "Kbuild").unlink()
    (folder / "Kbuild").symlink_to("link")
    _update(tree)
    assert not os.path.lexists(tree.files / "dangling")
    assert (tree.files / "link").read_text() == "no link\n"


def test_changes_in_a_source_folder_come_through(folder: Path, tmp_path: Path) -> None:
    tree = _tree(folder)
    state, before = tree.state(), _stamps(tree.files)
    (folder / "virt/kvm/kvm_main.c").write_text("changed\n")
    (folder / "virt/kvm/more.c").write_text("more\n")
    (folder / "scripts/run.sh").unlink()
    (folder / "Kbuild").touch()
    _update(tree)
    assert tree.state() != state
    contents = _contents(tree.files)
    assert contents["virt/kvm/kvm_main.c"] == "changed\n"
    assert contents["virt/kvm/more.c"] == "more\n"
    assert "scripts/run.sh" not in contents
    assert _stamps(tree.files)["Kbuild"] == before["Kbuild"], "same contents, nothing to build"


def test_a_changed_source_under_a_patch(folder: Path, tmp_path: Path) -> None:
    tree = _tree(folder)
    patch = _write_patch(tmp_path, _patch("arch/x86/kvm/svm.c", "two", "2"))
    tree.patch([patch], tmp_path / "log")
    (folder / "arch/x86/kvm/svm.c").write_text("one\ntwo\nthree\nfour\n")
    _update(tree)
    tree.patch([patch], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\n2\nthree\nfour\n"
    tree.patch([], tmp_path / "log")
    assert _contents(tree.files)["arch/x86/kvm/svm.c"] == "one\ntwo\nthree\nfour\n"


def test_what_was_built_in_the_source_folder_stays_there(folder: Path) -> None:
    built = (".config", "vmlinux", "virt/kvm/x.o", "include/generated/x.h", ".git/HEAD")
    # Kbuild leaves its command line beside what has no ending that tells.
    for name in (*built, "scripts/fixdep", "scripts/.fixdep.cmd", "lib/x.lds", "lib/.x.lds.cmd"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("built")
    tree = _tree(folder)
    assert _contents(tree.files) == {**_FILES, "link": "# top\n"}


def test_the_source_folder_is_never_written_to(folder: Path, tmp_path: Path) -> None:
    before = _stamps(folder)
    tree = _tree(folder)
    tree.patch([_write_patch(tmp_path, _patch("arch/x86/kvm/svm.c", "two", "2"))], tmp_path / "l")
    assert _stamps(folder) == before
    assert _contents(folder)["arch/x86/kvm/svm.c"] == "one\ntwo\nthree\n"


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabUsageError, match="no Kbuild"):
        open_source(tmp_path / "empty")
    with pytest.raises(LabUsageError, match="pyvmm lab setup"):
        open_source(tmp_path / "missing.tar.xz")
    (tmp_path / "not.tar.xz").write_text("not a tarball")
    with pytest.raises(LabUsageError, match="cannot unpack"):
        _tree(tmp_path / "not.tar.xz")
    (tmp_path / "empty/file").write_text("")
    subprocess.run(["tar", "-cJf", tmp_path / "e.tar.xz", "-C", tmp_path, "empty"], check=True)
    with pytest.raises(LabUsageError, match="no kernel source"):
        _tree(tmp_path / "e.tar.xz")


def test_a_tarball_without_a_folder_at_its_top(folder: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "x.tar", "-C", folder, "."], check=True)
    assert _contents(_tree(tmp_path / "x.tar").files) == {**_FILES, "link": "# top\n"}


def test_a_source_of_any_name_has_a_name_to_build_under(folder: Path) -> None:
    """Kbuild refuses a path with a space or a colon in it."""
    odd = folder.rename(folder.with_name("-my linux: übung" + "x" * 100))
    source = open_source(odd)
    assert check_name(f"{source.name}-01234567").startswith("my_linux_bung")
    assert str(_tree(odd).folder).isascii()


def test_how_to_get_a_source_that_is_not_there() -> None:
    with pytest.raises(LabUsageError, match=r"setup --source 9\.9' gets one"):
        open_source(default_tarball("9.9"))


def test_an_interrupted_unpacking_is_done_again(tarball: Path) -> None:
    tree = Tree(open_source(tarball))
    (tree.folder / "unpacking-x" / "linux").mkdir(parents=True)
    _update(tree)
    assert _contents(tree.files)["Kbuild"] == "# top\n"
    assert not list(tree.folder.glob("unpacking-*"))


@pytest.mark.parametrize("before", range(1, 5))
@pytest.mark.parametrize("behind", range(1, 5))
@pytest.mark.parametrize("off", [0, 2, -1])
def test_context_may_be_longer_on_one_side(
    before: int, behind: int, off: int, tmp_path: Path
) -> None:
    """As with git: patch(1) takes a hunk with more of it in front for one of the file's end."""
    lines = [f"line {number}\n" for number in range(20)]

    def hunk(at: int, kept: list[str], moved: int = 0) -> str:
        start, end = at - before, at + behind
        first = start + 1 + off
        head = f"@@ -{first},{end - start} +{first + moved},{end - start + 1} @@\n"
        old = [f" {line}" for line in (*kept, *lines[at:end])]
        return head + "".join([*old[:before], f"+new {at}\n", *old[before:]])

    def apply(text: str) -> str:
        file.write_text("".join(lines))
        apply_diffs(diffs_in(f"--- a/x.c\n+++ b/x.c\n{text}"), tmp_path, tmp_path / "log")
        return file.read_text()

    file = tmp_path / "x.c"
    two = hunk(5, lines[5 - before : 5]) + hunk(12, lines[12 - before : 12], 1)
    wanted = [*lines[:5], "new 5\n", *lines[5:12], "new 12\n", *lines[12:]]
    assert apply(two) == "".join(wanted)
    wrong = ["other\n", *lines[12 - before + 1 : 12]]
    with pytest.raises(CannotApply, match=r"x.c: Hunk #2 FAILED at"):
        apply(hunk(5, lines[5 - before : 5]) + hunk(12, wrong, 1))
