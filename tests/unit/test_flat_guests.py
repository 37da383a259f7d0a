"""Machine code is taken as what it is, however it begins: a false refusal is as bad."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from foreign_images import (
    CODE,
    SOURCE,
    boot_sector,
    dos_executable,
    elf,
    multiboot1,
    partition,
)

from pyvmm import GuestError, load_guest
from pyvmm.guest.boot import START
from pyvmm.guest.identify import kind_of
from pyvmm.guest.image import Image, Segment
from pyvmm.guest.shipped import guests_dir

CODES = int(os.environ.get("PYVMM_FUZZ_CODES", "3000"))
FAT_SECTOR = b"\xeb\x3c\x90" + struct.pack("<8sHBHBHHBHHH", b"PYVMM", 512, 1, 1, 2, 16, 2880,
                                         0xF0, 9, 18, 2)  # fmt: skip
# Bytes that a guest may begin with, most of them instructions that do no harm.
BEGINNINGS = [
    *(bytes([first]) for first in (*b"MBPZ7S:#/{<!", 0x1F, 0x7F, 0x89, 0xCA, 0xD0, 0xFE, 0xFF)),
    b"MZ", b"ZM", b"BM", b"PK", b"PK\3\4", b"BZh", b"BZh9", b"#!/", b"BC", b"7z", b"UF2", b"hsqs",
    b"\x1f\x8b", b"\x1f\x8b\x08", b"\x1f\x8b\x08\0", b"\x7fEL", b"\x55\xaa", b"\x55\xaa\x01",
    b"\x4c\x01", b"\x64\x86", b"\xca\xfe\xba\xbe", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xce",
    b"\x27\x05\x19\x56", b"\xd0\x0d\xfe\xed", b"\xef\xbb\xbf", b"\xff\xfe", b"\x5d\0\0",
    b"\xeb\xfe", b"\xed\xab\xee\xdb", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"QFI\xfb", b"KDMV",
]  # fmt: skip


def is_flat(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    return load_guest(path) == Image(str(path), (Segment(START, data),))


@pytest.mark.parametrize("begins", BEGINNINGS, ids=bytes.hex)
def test_code_with_an_odd_beginning(begins: bytes, tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    assert is_flat(path, begins + CODE)
    assert is_flat(path, begins + CODE.ljust(4096, b"\x90"))
    assert is_flat(path, boot_sector(begins + CODE))


def test_boot_sectors(tmp_path: Path) -> None:
    path = tmp_path / "boot.bin"
    assert is_flat(path, boot_sector())
    assert is_flat(path, boot_sector(table=partition()))
    assert is_flat(path, boot_sector(FAT_SECTOR))
    second_stage = CODE.ljust(4096, b"\x90")
    assert is_flat(path, boot_sector() + second_stage)
    assert is_flat(path, boot_sector(FAT_SECTOR) + second_stage)
    # Numbers that are no table: a partition of type 0, and one at sector 0.
    assert is_flat(path, boot_sector(table=partition(kind=0)) + second_stage)
    assert is_flat(path, boot_sector(table=partition(first=0)) + second_stage)
    assert is_flat(path, boot_sector(table=CODE * 12) + second_stage)
    # A boot sector may bring a multiboot kernel along.
    assert is_flat(path, boot_sector() + multiboot1())


def test_what_looks_like_a_header_but_for_its_checks(tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    wrong_sum = multiboot1().replace(struct.pack("<I", 3), struct.pack("<I", 2))
    assert is_flat(path, wrong_sum)
    assert is_flat(path, b"\x90" + multiboot1())  # not at a multiple of four
    assert is_flat(path, b"\x90" * 8192 + multiboot1())  # beyond where a loader looks
    longer_than_the_file = bytearray(dos_executable())
    struct.pack_into("<H", longer_than_the_file, 4, 3)
    assert is_flat(path, bytes(longer_than_the_file))


def test_real_mode_elf_files(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    for at in (0x600, START, 0xFFF0):
        path.write_bytes(elf(at=at))
        assert load_guest(path) == Image(str(path), (Segment(at, CODE),), at)


@pytest.mark.parametrize("guest", sorted(guests_dir().glob("*.S")), ids=lambda path: path.name)
def test_guests_of_the_set_as_flat_files(guest: Path) -> None:
    segment = load_guest(guest).segments[0]
    assert kind_of(Path("guest"), segment.data, len(segment.data)) is None


def test_random_code(rng: random.Random) -> None:
    short = [b"", *(begins for begins in BEGINNINGS if len(begins) < 4)]
    for _ in range(CODES):
        code = rng.choice(short) + rng.randbytes(rng.randrange(32, 2000))
        if len(code) % 512 == 0:
            code += b"\x90"  # chance may make an option ROM, whose checksum is one byte
        assert kind_of(Path("guest.bin"), code, len(code)) is None, code.hex()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing (apt install gcc)")
def test_the_remedies_for_elf_files(tmp_path: Path) -> None:
    """What the refusal of a PIE and of an object say to type makes a guest of them."""
    source = tmp_path / "guest.S"
    source.write_text(SOURCE)

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)

    pie, made = tmp_path / "pie", tmp_path / "guest.elf"
    run("gcc", "-m32", "-nostdlib", "-pie", "-o", pie, source)
    with pytest.raises(GuestError) as refusal:
        load_guest(pie)
    command = re.search(r"(gcc .*) \(C code: (-m16 .*), too\)", refusal.value.remedy)
    assert command is not None
    run(*shlex.split(command[1]), "-o", made, source)
    # gcc's build-id is nothing of the guest.
    segments = load_guest(made).segments
    assert [segment.gpa for segment in segments if not segment.is_notes] == [START]
    code = tmp_path / "guest.c"
    code.write_text('void _start(void) { __asm__ volatile("hlt"); }\n')
    run(*shlex.split(f"{command[1]} {command[2]}"), "-o", made, code)
    assert 0x7C00 <= load_guest(made).entry < 0x8000

    run("gcc", "-m32", "-c", "-o", pie, source)
    with pytest.raises(GuestError) as refusal:
        load_guest(pie)
    made.unlink()
    link = refusal.value.remedy.removeprefix("link it: ").replace("FILE", str(pie))
    run(*shlex.split(link))
    assert load_guest(made).entry == START
