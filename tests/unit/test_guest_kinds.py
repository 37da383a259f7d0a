"""What cannot be a real-mode guest is refused in one line that names what it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from foreign_images import (
    DYN,
    EM_386,
    EM_X86_64,
    Foreign,
    built_by_hand,
    by_gcc,
    elf,
    multiboot2,
    of_other_modes,
)

from pyvmm import ConfigurationError, GuestError, load_guest
from pyvmm.cli.main import main

IMAGES = list(built_by_hand())
OF_LINUX = [image for image in IMAGES if image.name.startswith("bzImage")]
REFUSED = [image for image in IMAGES if image not in OF_LINUX]


def refused(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `pyvmm run` says of the file, with all of ``words``; status 2."""
    assert main(["run", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(f"pyvmm: {path}: it"), err
    for word in words:
        assert word in err
    return err


@pytest.mark.parametrize("image", REFUSED, ids=[image.name for image in REFUSED])
def test_a_file_that_is_no_real_mode_guest(
    image: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / image.name
    path.write_bytes(image.data)
    line = refused(path, capsys, *image.words)
    assert "no real-mode guest" in line or "too many" in line


@pytest.mark.parametrize("image", OF_LINUX, ids=[image.name for image in OF_LINUX])
def test_a_kernel_is_a_guest_of_another_platform(image: Foreign, tmp_path: Path) -> None:
    path = tmp_path / image.name
    path.write_bytes(image.data)
    with pytest.raises(GuestError, match=r"Linux kernel \(bzImage\).*pyvmm run boots it"):
        load_guest(path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing (apt install gcc)")
def test_what_gcc_makes_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0
    for image in by_gcc(tmp_path):
        refused(tmp_path / image.name, capsys, *image.words)
        count += 1
    assert count > 5


def test_there_are_enough_of_them() -> None:
    assert len(IMAGES) >= 40 and len({image.words[0] for image in IMAGES}) >= 15


@pytest.mark.parametrize("image", IMAGES, ids=[image.name for image in IMAGES])
def test_mode_real_takes_what_it_is_offered_for(image: Foreign, tmp_path: Path) -> None:
    path = tmp_path / image.name
    path.write_bytes(image.data)
    with pytest.raises(GuestError) as refusal:
        load_guest(path)
    if "--mode real runs it all the same" in str(refusal.value):
        assert load_guest(path, mode="real").segments
    else:
        with pytest.raises(GuestError) as again:
            load_guest(path, mode="real")
        assert str(again.value) == str(refusal.value)


def test_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo.S")
    refused(tmp_path / "fifo.S", capsys, "it is a FIFO, no regular file; name an assembly file")
    (tmp_path / "folder.S").mkdir()
    refused(tmp_path / "folder.S", capsys, "it is a folder")
    refused(Path("/dev/zero"), capsys, "it is a device")
    empty = tmp_path / "empty.c"
    empty.touch()
    refused(empty, capsys, "it is empty")
    sparse = tmp_path / "sparse.img"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(GuestError, match=f"{1 << 40} bytes are too many"):
        load_guest(sparse)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(GuestError, match="no such file"):
        load_guest(tmp_path / "link")


@pytest.mark.parametrize(("mode", "data"), list(of_other_modes()))
def test_an_elf_file_chooses_its_mode(mode: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(data)
    assert load_guest(path).mode == load_guest(path, mode=mode).mode == mode
    other = {"long": "protected", "protected": "long"}[mode]
    with pytest.raises(GuestError, match=f"which {other} mode does not run; use --mode {mode}"):
        load_guest(path, mode=other)


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_a_mode_runs_what_is_for_another_boot_loader(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.elf"
    bits, machine = (64, EM_X86_64) if mode == "long" else (32, EM_386)
    path.write_bytes(elf(bits, machine=machine, at=1 << 20, code=multiboot2(4 * (bits == 32))))
    assert load_guest(path, mode=mode).entry == 1 << 20


@pytest.mark.parametrize(
    ("mode", "words"), [("real", "real-mode guest"), ("long", "guest of long mode")]
)
def test_a_refusal_speaks_of_the_mode_that_was_asked_for(
    mode: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "pie.elf"
    path.write_bytes(elf(64, DYN, EM_X86_64, 0x1000))
    with pytest.raises(
        GuestError, match=f"it is a 64-bit ELF PIE or shared object, no {words}; link"
    ):
        load_guest(path, mode=mode)


def test_a_mode_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"mode 'virtual': .*real"):
        load_guest(tmp_path, mode="virtual")
