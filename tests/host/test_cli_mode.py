"""In which mode a guest runs, by what its file is or by what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_images import CODE, EM_X86_64, boot_sector, elf, multiboot1, partition
from pyvmm_command import pyvmm

CANNOT_START = 2
MESSAGE = b"hello\n"
# 64-bit code that prints a text by its RIP-relative address; 16-bit code prints something else.
CODE_64 = bytes.fromhex(
    "488d350e000000"  # lea text(%rip), %rsi
    "b906000000"  # mov $6, %ecx
    "ac e6e9 e2fb"  # 1: lodsb; out %al, $0xe9; loop 1b
    "31c0 e7f4"  # xor %eax, %eax; out %eax, $0xf4
)


@pytest.mark.parametrize(
    "data",
    [
        CODE,
        b"M" + CODE,
        b"BM" + CODE,
        b"MZ" + CODE,
        b"PK" + CODE,
        b"\x1f\x8b\x08" + CODE,
        boot_sector(),
        boot_sector(table=partition()),
        boot_sector() + multiboot1(),
        elf(),
    ],
    ids=lambda data: data[:4].hex(),
)
def test_guests_run(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(data)
    assert pyvmm("run", path).status == 0


def test_a_64_bit_elf_file_does_not_run_as_16_bit_code(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(elf(64, machine=EM_X86_64, code=CODE_64 + MESSAGE))
    found = pyvmm("run", path, "--json").json
    assert (found["result"], found["mode"], found["console"]) == ("pass", "long", MESSAGE.decode())
    outcome = pyvmm("run", path, "--json", "--mode", "real", "--deadline", "5")
    assert outcome.json["exits"]["io"] > 0 and outcome.json["console"] != MESSAGE.decode()


def test_a_multiboot_image_does_not_run_as_16_bit_code(tmp_path: Path) -> None:
    path = tmp_path / "kernel.bin"
    path.write_bytes(multiboot1())
    pyvmm("run", path).error(CANNOT_START, "multiboot header does not say where to load it")
    assert pyvmm("run", path, "--mode", "real", "--json", "--deadline", "5").json["exits"]


@pytest.mark.parametrize("mode", ["long64", "Real", ""])
def test_modes_that_are_not_there(mode: str, tmp_path: Path) -> None:
    outcome = pyvmm("run", tmp_path / "any", "--mode", mode)
    # Newer Pythons name the choices without quotation marks.
    choices = ("real", "protected", "long")
    outcome.error(CANNOT_START, "--mode", f"'{mode}'", *choices, "see pyvmm run --help")


def test_mode_real_changes_nothing_for_real_mode_guests() -> None:
    assert pyvmm("run", "hello.S", "--mode", "real").status == 0


@pytest.mark.parametrize(
    ("width", "mode", "other"),
    [("16", "long", "real"), ("32", "long", "protected"), ("64", "protected", "long")],
)
def test_code_of_another_width_is_no_guest_of_a_mode(
    width: str, mode: str, other: str, tmp_path: Path
) -> None:
    """These bytes are code of every width: only the directive tells."""
    path = tmp_path / "guest.S"
    path.write_text(f"# a guest\n\t.code{width}\n\t.globl _start\n_start:\txorl %eax, %eax\n"
                    "\toutl %eax, $0xf4\n")  # fmt: skip
    outcome = pyvmm("run", path, "--mode", mode)
    cause = f"it is {width}-bit code (line 2), no guest of {mode} mode"
    outcome.error(CANNOT_START, cause, f"--mode {other} is for such code")
    assert pyvmm("run", path, "--mode", other).status == 0
