"""`pyvmm run -` takes any guest from standard input, and tells them apart by content."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvmm_command import GUESTS, Outcome, pyvmm

from pyvmm import load_guest
from pyvmm.cli.main import CANNOT_START, PASSED

C = '#include "pyvmm.h"\nint main(unsigned vcpu, unsigned vcpus) { puts("C"); return 0; }\n'
ASSEMBLY = '.include "pyvmm.inc"\nguest "x"\nputs "assembly"\nexit_guest $0\n'


def run(data: bytes, tmp_path: Path, *options: str) -> Outcome:
    (tmp_path / "input").write_bytes(data)
    given = ["sh", "-c", f'exec "$@" < {tmp_path / "input"}', "sh"]
    return pyvmm("run", "-", *options, prefix=given)


@pytest.mark.parametrize(
    ("data", "options", "printed"),
    [
        (C.encode(), [], "C\n"),
        (C.encode(), ["--mode", "protected"], "C\n"),
        (ASSEMBLY.encode(), [], "assembly"),
        (b"mov $0, %eax\nout %eax, $0xf4\n", ["--mode", "long"], ""),
        (b"\xb0\x42\xe6\xe9\x30\xc0\xe6\xf4", [], "B"),
    ],
)
def test_each_kind(data: bytes, options: list[str], printed: str, tmp_path: Path) -> None:
    outcome = run(data, tmp_path, *options, "--json")
    assert outcome.status == PASSED
    assert outcome.json["console"] == printed and outcome.json["guest"] == "-"


def test_an_elf_file(tmp_path: Path) -> None:
    assert run(load_guest(GUESTS / "hello.S").elf, tmp_path).status == PASSED


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "standard input: it is empty"),
        (bytes(17 << 20), "<stdin>: it is nothing but zeros"),
        (b".code16\n frob\n", "<stdin>: not assembling: <stdin>:2: Error: no such instruction"),
        (C.replace("0;", "x;").encode(), "<stdin>: not compiling: <stdin>:2:61: error: 'x' und"),
        (b'{"a": 1}', "<stdin>: it is a JSON file"),
        (b"\x7fELF", "<stdin>: the ELF file is cut short"),
    ],
)
def test_what_is_no_guest(data: bytes, words: str, tmp_path: Path) -> None:
    run(data, tmp_path).error(CANNOT_START, words)


def test_a_stream_without_an_end() -> None:
    endless = ["sh", "-c", 'exec "$@" </dev/zero', "sh"]
    outcome = pyvmm("run", "-", prefix=endless)
    outcome.error(CANNOT_START, "standard input: more than 1073741824 bytes are too many")
