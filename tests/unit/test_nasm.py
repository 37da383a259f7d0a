"""NASM's language: by nasm where there is one. A stand-in takes its place where there is none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pyvmm import GuestError, load_guest

CODE = b"\xb0\x41\xe6\xe9"
# Writes what nasm would, and its own words beside it.
STAND_IN = """\
#!/bin/sh
echo "$@" > {said}
while [ $# -gt 1 ]; do
    [ "$1" = -o ] && out=$2
    shift
done
if grep -q frob "$1"; then
    echo "$1:3: error: parser: instruction expected" >&2
    exit 1
fi
printf '\\260A\\346\\351' > "$out"
"""
SOURCE = "; a boot sector\nbits 16\norg {origin}\nmov al, 'A'\nout 0xe9, al\n"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in was called with; the folder of this test is the current one."""
    tools = tmp_path / "tools"
    tools.mkdir()
    said = tmp_path / "said"
    (tools / "nasm").write_text(STAND_IN.format(said=said))
    (tools / "nasm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return said


@pytest.mark.parametrize(
    ("origin", "number"), [("0x7c00", 0x7C00), ("8000h", 0x8000), ("32768 ; why", 0x8000)]
)
@pytest.mark.parametrize("name", ["x.asm", "x.nasm"])
def test_flat_where_it_says(name: str, origin: str, number: int, said: Path) -> None:
    Path(name).write_text(SOURCE.format(origin=origin))
    image = load_guest(name, {"N": 5})
    assert image.entry == image.segments[0].gpa == number
    assert image.segments[0].data == CODE
    words = said.read_text().split()
    assert "-DN=5" in words and words[words.index("-f") + 1] == "bin"
    assert words[-1] == str(Path(name).absolute())


def test_its_first_error_is_one_line(said: Path) -> None:
    Path("x.asm").write_text(SOURCE.format(origin="0x7c00") + "frob\n")
    with pytest.raises(GuestError) as error:
        load_guest("x.asm")
    assert str(error.value) == "x.asm: not assembling: x.asm:3: error: parser: instruction expected"


def test_what_does_not_link_is_one_line_about_the_source(said: Path) -> None:
    """Not about the object file, which has no name that anybody knows."""
    assembles = "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ $1 = -o ] && out=$2; shift; done\n"
    assembles += "echo jmp nowhere | as --32 -o $out -\n"
    (said.parent / "tools" / "nasm").write_text(assembles)
    Path("x.nasm").write_text("; a jump\nextern nowhere\njmp nowhere\n")
    with pytest.raises(GuestError) as error:
        load_guest("x.nasm")
    assert str(error.value) == "x.nasm: not linking: x.nasm:2: undefined symbol 'nowhere'"


def test_an_origin_that_is_computed(said: Path) -> None:
    Path("x.asm").write_text(SOURCE.format(origin="BASE + 4"))
    with pytest.raises(GuestError, match="its org is no number"):
        load_guest("x.asm")


def test_gnu_assembly_named_asm_goes_to_as(said: Path) -> None:
    Path("x.asm").write_text(".code16\nhlt\n")
    assert load_guest("x.asm").segments[0].data == b"\xf4" and not said.exists()


@pytest.mark.parametrize(
    ("widths", "mode", "said_of_it"),
    [
        (["bits 64"], None, "it is 64-bit code (line 2), no real-mode guest; --mode long is for"),
        (["[BITS 32]"], None, "it is 32-bit code (line 2), no real-mode guest; --mode protected"),
        (["use64"], "protected", "it is 64-bit code (line 2), no guest of protected mode"),
        (["bits 16"], "long", "it is 16-bit code (line 2), no guest of long mode; --mode real"),
        (["bits 64"], "real", ""),
        (["bits 16", "bits 32"], None, ""),
        (["bits 16", "bits 64"], "long", ""),
        (["; bits 64"], None, ""),
        (["bits 64", '%include "more.inc"'], None, ""),
    ],
)
def test_code_of_another_width(
    widths: list[str], mode: str | None, said_of_it: str, said: Path
) -> None:
    """As with GNU as's .code16 and the like."""
    Path("x.nasm").write_text("org 0x7c00\n" + "\n".join(widths) + "\nmov al, 'A'\n")
    if not said_of_it:
        assert load_guest("x.nasm", mode=mode).segments[0].data == CODE
        return
    with pytest.raises(GuestError, match=re.escape(f"x.nasm: {said_of_it}")):
        load_guest("x.nasm", mode=mode)
    assert not said.exists()


def test_without_nasm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if shutil.which("nasm"):
        monkeypatch.setenv("PATH", "/nowhere")
    Path("x.nasm").write_text("mov al, 'A'\n")
    for mode in (None, "real", "long"):
        with pytest.raises(GuestError, match=r"nasm is not installed; .*apt install nasm"):
            load_guest("x.nasm", mode=mode)


@pytest.mark.skipif(shutil.which("nasm") is None, reason="nasm is missing (apt install nasm)")
def test_linked_with_lines_where_it_has_no_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyvmm.guest.source_lines import source_line

    monkeypatch.chdir(tmp_path)
    Path("x.nasm").write_text("mov al, 'A'\nout 0xe9, al\nhlt\n")
    for mode, origin in (("real", 0x7C00), ("protected", 0x100000), ("long", 0x100000)):
        image = load_guest("x.nasm", mode=mode)
        assert image.segments[0].gpa == origin and image.segments[0].data == CODE + b"\xf4"
        assert source_line(image, origin + 2) == ("x.nasm", 2)
