"""The line of a guest's source behind an address, whatever its file is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.guest.assembler import assemble, load_guest
from pyvmm.guest.boot import START
from pyvmm.guest.source_lines import source_line


@pytest.mark.parametrize(
    "name", ["plain", "a copy (2)", " (discriminator 3)", "a:7", "(x) (y", "x (discriminator 1) y"]
)
def test_any_name_of_a_folder_and_a_file(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path = folder / f"{name}.S"
    path.write_text(".code16\n\nnop\nhlt\n")
    image = load_guest(str(path))
    assert source_line(image, START) == (path.name, 3)
    assert source_line(image, START + 1) == (path.name, 4)
    assert source_line(image, START + 0x1000) is None


def test_a_discriminator_is_no_part_of_the_line() -> None:
    image = assemble(
        '.code16\n.file 1 "made (1).c"\n.loc 1 7\nnop\n.loc 1 8 discriminator 3\nhlt\n'
    )
    assert source_line(image, START) == ("made (1).c", 7)
    assert source_line(image, START + 1) == ("made (1).c", 8)
