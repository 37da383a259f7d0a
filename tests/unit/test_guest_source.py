"""What is wrong with a guest's source: one line with the user's file, line and a way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm import GuestError, assemble, load_guest
from pyvmm.cli.main import main
from pyvmm.guest import tool_messages
from pyvmm.guest.dialects import dialect
from pyvmm.guest.preprocessor import line_for_it

CALLS_WHAT_IS_NOWHERE = """\
        .code16
        .globl _start
_start:
        call draw_logo
        hlt
"""
NASM = """\
; NASM syntax, as most guests called .asm are.
bits 16
org 0x7c00
    mov al, 'A'
    out 0xe9, al
    xor eax, eax
    out 0xf4, eax
"""
LineAbout = Callable[..., str]


@pytest.fixture
def line_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> LineAbout:
    monkeypatch.chdir(tmp_path)

    def line(source: str | bytes, name: str = "x.S") -> str:
        Path(name).write_bytes(source if isinstance(source, bytes) else source.encode())
        assert main(["run", name] if name[0] != "-" else ["run", "--", name]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.isascii() and str(tmp_path) not in error
        return error.removeprefix(f"pyvmm: {name}: ").rstrip("\n")

    return line


# Each source, and what its line must begin with and end with.
REJECTED = {
    "undefined": (CALLS_WHAT_IS_NOWHERE, "not linking: x.S:4: undefined symbol 'draw_logo'; ", ""),
    "mistyped": (
        CALLS_WHAT_IS_NOWHERE + "draw_lgo: ret\n",
        "not linking: x.S:4: undefined symbol 'draw_logo'",
        "; is draw_lgo meant?",
    ),
    "in data": (
        ".code16\n hlt\n .data\n .long table\n",
        "not linking: x.S:4: undefined symbol 'table'",
        "",
    ),
    "twice undefined": (
        ".code16\n jmp b\n call a\n call b\n",
        "not linking: x.S:2: undefined symbol 'b' (and 1 more)",
        "",
    ),
    "a local label after it": (
        ".code16\n1: jmp 1f\n jmp 1b\n",
        "not assembling: x.S:2: no label 1: follows the jump to 1f",
        "",
    ),
    "a local label before it": (
        ".code16\n jmp 3b\n3: jmp 3b\n",
        'not assembling: x.S:2: Error: backward ref to unknown label "3:"',
        "",
    ),
    "twice defined": (
        ".code16\nx: hlt\nx: hlt\n",
        "not assembling: x.S:3: Error: symbol `x' is already defined",
        "",
    ),
    "beyond 64 KiB": (
        ".code16\n .globl far\n mov $far, %ax\n .fill 0xa000\nfar: hlt\n",
        "not linking: x.S:3: the address of 'far' does not fit into 16 bits",
        "a real-mode segment reaches 64 KiB",
    ),
    "beyond a byte": (
        ".code16\nx: hlt\n.byte x\n",
        "not linking: x.S",
        "an address in .text does not fit into 8 bits",
    ),
    "far away": (
        ".code16\n mov far, %ax\n .fill 0x10000\nfar: hlt\n",
        "not assembling: x.S:2: Error: value of 00010003 too large for field of 2 bytes",
        "",
    ),
    "directive": (
        ".code16\n .frobnicate 3\n",
        "not assembling: x.S:2: Error: unknown pseudo-op: `.frobnicate'",
        "",
    ),
    "mnemonic": (
        ".code16\n\n frobnicate %ax\n bar\n",
        "not assembling: x.S:3: Error: no such instruction: `frobnicate %ax' (and 1 more)",
        "",
    ),
    "no include": (
        '.code16\n .include "nowhere.inc"\n',
        "not assembling: x.S:2: Error: can't open nowhere.inc",
        "looked for beside the guest and in guests/include",
    ),
    "a macro's use": (
        '.include "pyvmm.inc"\n guest "x.S"\n assert_eq %eaxx, $5\n',
        "not assembling: x.S:3: Error: bad register name `%eaxx' (in a macro)",
        "",
    ),
    "unfinished if": (".code16\n .if 1\n hlt\n", "not assembling: x.S:2: Error: ", ""),
    "its own words": ('.code16\n .error "no"\n', "not assembling: x.S:2: Error: no", ""),
    "a register": (
        ".code16\n jmp ax\n",
        "not linking: x.S:2: undefined symbol 'ax'",
        "write the register %ax, or begin with .intel_syntax noprefix",
    ),
    "Intel": (
        ".code16\n mov ax, 5\n",
        "not assembling: x.S:2: Error: ",
        "for Intel's syntax put .intel_syntax noprefix before it",
    ),
    "Intel with prefixes": (
        ".intel_syntax\n.code16\n mov ax, 5\n xor ax, ax\n",
        "not assembling: x.S:",
        "registers without % need .intel_syntax noprefix",
    ),
    ".code32": (
        ".code32\n mov $1, %eax\n",
        "it is 32-bit code (line 1), no real-mode guest",
        "--mode real runs it all the same",
    ),
    "no .code16": (" mov $1, %eax\n", "it has no .code16", "; begin it with .code16"),
    "no .code16 that can be": (" jmp *%eax\n mov (%eax), %ebx\n", "it has no .code16", ""),
    "a macro without its include": (
        ".code16\n exit_guest $0\n",
        "not assembling: x.S:2: Error: no such instruction: `exit_guest $0'",
        'that macro is in pyvmm.inc: .include "pyvmm.inc"',
    ),
    "a symbol without its include": (
        ".code16\n mov $PRIVATE, %ax\n",
        "not linking: x.S:2: undefined symbol 'PRIVATE'",
        'it is in pyvmm.inc: .include "pyvmm.inc"',
    ),
    "64 bits": (".code16\n mov %rax, %rbx\n", "not assembling: x.S:2: ", "for --mode long"),
    "what gcc -S makes": (" pushq %rbp\n ret\n", "not assembling: x.S:1: ", "for --mode long"),
    "#include": (
        '#include "mine.inc"\n exit_guest $0\n',
        "not preprocessing: x.S:1:10: fatal error: mine.inc: No such file or directory",
        "it is looked for beside the guest and in guests/include",
    ),
    "#error": (
        ".code16\n#ifndef DEBUG\n#error no DEBUG\n#endif\n",
        "not preprocessing: x.S:3:2: error: #error no DEBUG",
        "",
    ),
    "an error after directives": (
        "#define COM1 0x3f8\n.code16\n mov $COM1, %dx\n frob\n",
        "not assembling: x.S:4: Error: no such instruction: `frob'",
        "",
    ),
    "a symbol after directives": (
        "#define COM1 0x3f8\n.code16\n mov $COM1, %dx\n call nowhere\n",
        "not linking: x.S:4: undefined symbol 'nowhere'",
        "",
    ),
    "what never ends": (
        '#include "x.S"\n#include "x.S"\n',
        "not preprocessing: x.S:1:15: error: #include nested depth 200",
        "",
    ),
    "NASM": (
        NASM,
        "it is NASM syntax (line 2: bits 16), and pyvmm assembles with GNU as",
        "make a flat binary (nasm -f bin x.S -o GUEST.bin) and run that",
    ),
    "fasm": ("format binary\nuse16\n mov ax, 1\n", "it is fasm syntax", "fasm x.S GUEST.bin) "),
    "MASM": (".model tiny\n.code\nmain proc\n mov ax, 1\nmain endp\n", "it is MASM", ""),
    "UTF-8 mark": (b"\xef\xbb\xbf.code16\n", "it begins with a UTF-8 byte order mark", ""),
    "UTF-16": (".code16\n".encode("utf-16"), "it begins with a UTF-16 byte order mark", ""),
    "an ELF file": (b"\x7fELF" + bytes(60), "it is ", "not end in .S, .s or .asm"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(60), "it is ", "not end in .S, .s or .asm"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_wrong_and_where(name: str, line_about: LineAbout) -> None:
    source, begins, ends = REJECTED[name]
    line = line_about(source)
    assert line.startswith(begins) and ends in line, line


@pytest.mark.parametrize("line", ["[BITS 16]", "[org 0x7c00]", "org 0x7c00", "%define X 5",
    "%include 'x.inc'", "section .text", "global start", "x: db 'text', 0", "msg db 1", "use16",
    "times 510-($-$$) db 0", "dw 0xaa55", "buffer: resb 64", "X equ 5"])  # fmt: skip
def test_each_sign_of_nasm(line: str) -> None:
    found = dialect(f"; a comment\n\n  {line} ; and another\n", "x.asm")
    assert found is not None and found.name == "NASM" and found.line.number == 3
    assert dialect(f".code16\n{line}\n", "x.asm") is None


COMMENTS = """\
# include "pyvmm.inc" for macros
#include it, if you like
#define what you want, and where
#if you think that this is wrong
# if it were so
#endif of that
#else what?
# ifdef is for others
#error: none
#.include "x.inc"
/*
#include <stdio.h>
#if 1
#endif
*/
        .code16
        movb $0, %al    #if 1
        outb %al, $0xf4 #endif
"""


def test_comments_that_look_like_directives() -> None:
    assert line_for_it(COMMENTS) is None
    assert assemble(COMMENTS).segments[0].data == b"\xb0\0\xe6\xf4"


@pytest.mark.parametrize("line", ["#include <x.h>", '  #include "x.h" // why', '#include "a b"'])
def test_each_include_of_the_preprocessor(line: str) -> None:
    assert line_for_it(f"nop\n{line}\n") == (2, line.strip())


@pytest.mark.parametrize("line", ["#if X > 1", "# ifdef X", "#ifndef X // why", "#if 0"])
def test_each_condition_of_the_preprocessor(line: str) -> None:
    assert line_for_it(f"{line}\nnop\n#endif\n") == (1, line)
    assert line_for_it(f"{line}\nnop\n#endif // X\n") == (1, line)
    assert line_for_it(f"#endif\n{line}\n") is None


def test_directives_are_followed(tmp_path: Path) -> None:
    """With #include, #if and #endif, or a #define that is used; or by its name."""
    path = tmp_path / "x.S"
    (tmp_path / "ports.h").write_text("/* ports */\n#define CONSOLE 0xe9\n")
    for text, code in (
        ('#include "ports.h"\n.code16\n out %al, $CONSOLE\n', b"\xe6\xe9"),
        ('#include "pyvmm.inc"\n#define CODE $0\n exit_guest CODE\n', b"\x66\xb8\0\0\0\0"),
        ("# a comment\n#ifdef N\n.code16\nnop\n#else\n.code16\nhlt\n#endif\n", b"\xf4"),
        (".code16\n#define SEND(x) movb $x, %al ; outb %al, $0xe9\nSEND(3)\n", b"\xb0\3\xe6\xe9"),
        ("#define linux 5\n.code16\nunix: movb $linux, %al\n jmp unix\n", b"\xb0\5\xeb\xfc"),
    ):
        path.write_text(text)
        for image in (load_guest(path), load_guest(path, mode="real")):
            assert image.segments[0].data.startswith(code), text
        if "ports.h" not in text:
            assert assemble(text).segments == load_guest(path).segments
    path.write_text("#define N this is a comment\n.code16\nhlt\n")
    assert load_guest(path).segments[0].data == b"\xf4"
    path = path.rename(tmp_path / "x.sx")
    path.write_text("#undef N\n.code16\nhlt // as C++ has it\n")
    assert load_guest(path).segments[0].data == b"\xf4"


def test_parameters_of_preprocessed_source(tmp_path: Path) -> None:
    """For the preprocessor where a directive has the name, and for as always."""
    path = tmp_path / "x.S"
    path.write_text(
        "#ifndef N\n#define N 1\n#endif\n.code16\n.ifndef M\n.set M, 2\n.endif\n.byte N, M\n"
    )
    assert load_guest(path).segments[0].data == b"\1\2"
    assert load_guest(path, {"N": 7}).segments[0].data == b"\7\2"
    assert load_guest(path, {"M": 8, "N": -1}).segments[0].data == b"\xff\x08"


def test_what_gcc_preprocessed_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.s"
    path.write_text('# 0 "x.S"\n# 1 "<command-line>"\n# 1 "x.S"\n.code16\n\nhlt\n call nowhere\n')
    with pytest.raises(GuestError, match=r"x\.S:4: undefined symbol 'nowhere'"):
        load_guest(path)


def test_code_that_is_the_same_in_both_widths_needs_no_code16(tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    path.write_text('1: inb $0x60, %al\n out %al, $0xf4\n jmp 1b\n .ascii "text"\n')
    assert load_guest(path).segments == assemble(path.read_text()).segments
    path.write_text("mov $1, %eax\n")
    with pytest.raises(GuestError, match=r"no \.code16"):
        assemble(path.read_text())
    assert load_guest(path, mode="real").segments[0].data == b"\xb8\1\0\0\0"


@pytest.mark.parametrize("code", ["hlt", "hlt\n", "hlt\r\n"])
@pytest.mark.parametrize("name", ["a b.S", "-x.S", "ü.S", "a'\"b.S", "a\nb.S", "%s.S", "$(x).S"])
def test_any_name_and_end_of_line(code: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(f"# a comment\n.code16\n{code}".replace("\n", code[3:] or "\n").encode())
    assert load_guest(path).segments[0].data == b"\xf4"
    path.write_text(".code16\n call nowhere\n")
    with pytest.raises(GuestError) as error:
        load_guest(path)
    where = str(path).replace("\n", "\\n")
    assert error.value.cause == f"not linking: {where}:2: undefined symbol 'nowhere'"
    path.write_text(".code16\n frob\n")
    with pytest.raises(GuestError) as error:
        load_guest(path)
    assert error.value.cause == f"not assembling: {where}:2: Error: no such instruction: `frob'"


def test_a_name_that_begins_with_a_dash(line_about: LineAbout) -> None:
    assert line_about(" frob\n", "-x.S").startswith("not assembling: -x.S:1: Error: no such")


def test_the_language_of_the_machine_changes_nothing(
    line_about: LineAbout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL", "LANGUAGE"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    assert "undefined symbol 'draw_logo'" in line_about(CALLS_WHAT_IS_NOWHERE)


def test_text_that_is_assembled_has_a_name_for_itself() -> None:
    with pytest.raises(GuestError) as error:
        assemble(".code16\n\n call nowhere\n")
    assert error.value.cause == "not linking: guest:3: undefined symbol 'nowhere'"


@pytest.mark.parametrize("said", ["", "\n", "as: out of memory", "x" * 10, "ld: final link failed"])
def test_words_that_nobody_foresaw(said: str) -> None:
    for complaint in (
        tool_messages.from_assembler(said, "x.S", ""),
        tool_messages.from_linker(said, "x.S", ""),
    ):
        assert str(complaint) in (said.strip().removeprefix("ld: "), said, "no message")


def test_source_with_lines_without_end_is_read_in_time() -> None:
    for piece in (" ", "\n", "/* ", "#if ", "x: ", "times ", "[bits", '#include "', "db '"):
        source = piece * (1 << 18)
        assert line_for_it(source) is None
        dialect(source, "x.asm")
