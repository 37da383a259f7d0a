"""The guest protocol in protected and long mode, as docs/protocol.md has it."""

from __future__ import annotations

import errno
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from pyvmm_command import pyvmm

from pyvmm import ConfigurationError, Machine, Result, assemble
from pyvmm.guest.flat_modes import LongMode, ProtectedMode
from pyvmm.guest.options import PlatformOptions
from pyvmm.guest.platform import Platform
from pyvmm.guest.real_mode import RealMode
from pyvmm.kvm.arguments import MOST_U32
from pyvmm.native import lib
from pyvmm.report import RunReport

MIB = 1 << 20
FLAT = ("protected", "long")
PASS = "xorl %eax, %eax\noutl %eax, $0xf4\n"


def run(text: str, mode: str = "long", **options: object) -> RunReport:
    with Machine(assemble(text, mode=mode), **options) as machine:  # type: ignore[arg-type]
        return machine.run(20)


def out(port: int, value: str) -> str:
    return f"movw ${port:#x}, %dx\nmovl {value}, %eax\noutl %eax, %dx\n"


def measure(register: str) -> str:
    return out(0x614, register)


# ---- the start ----


@pytest.mark.parametrize("mode", FLAT)
def test_registers_at_the_start(mode: str) -> None:
    stack = "%rsp" if mode == "long" else "%esp"
    text = f"mov {stack}, %{stack[1]}bx\n" + "".join(
        measure(f"%{register}") for register in ("edi", "esi", "ebx", "ecx", "ebp")
    )
    report = run(text + PASS, mode)
    assert report.result is Result.PASS and report.mode == mode
    index, vcpus, top, *rest = report.measures
    assert (index, vcpus, top % 16, rest) == (0, 1, 0, [0, 0])


@pytest.mark.parametrize("mode", FLAT)
def test_each_vcpu_has_a_stack_of_16_kib(mode: str) -> None:
    stack = "%rsp" if mode == "long" else "%esp"
    text = f"mov {stack}, %{stack[1]}bx\n{measure('%ebx')}{PASS}"
    report = run(text, mode, vcpus=64)
    tops = sorted(report.measures)
    assert report.passed and len(tops) == 64
    assert all(after - before >= 16 << 10 for before, after in pairwise(tops))


def test_the_page_tables_are_in_low_ram_and_the_guest_may_change_them() -> None:
    """Page 0x200000-0x3fffff is mapped to 0x400000."""
    text = f"""
        movq %cr3, %rbx
        cmpq $0x40000, %rbx
        jae 1f
        movq $0x5a, 0x400000
        movq (%rbx), %rbx           # PML4
        andq $~0xfff, %rbx
        movq (%rbx), %rbx           # PDPT
        andq $~0xfff, %rbx
        addq $0x200000, 8(%rbx)
        movq %cr3, %rax
        movq %rax, %cr3
        cmpq $0x5a, 0x200000
        jne 1f
        {PASS}
1:      {out(0xF4, "$9")}
    """
    assert run(text).passed


def test_eight_gib_are_mapped_and_nothing_is_behind_ram() -> None:
    report = run(f"movq $0x1ffffffff, %rax\nmovb (%rax), %bl\n{measure('%ebx')}{PASS}")
    assert report.passed and report.measures == (0xFF,)
    assert [each.gpa for each in report.unclaimed] == [0x1FFFFFFFF]
    report = run("movq $0x200000000, %rax\nmovb (%rax), %bl\n")
    assert "page fault (#PF) at RIP 0x10000a" in report.reason
    assert "error code 0x0" in report.reason and "CR2 0x200000000" in report.reason


# ---- memory ----


@pytest.mark.parametrize(("mode", "mebibytes"), [(mode, n) for mode in FLAT for n in (2, 16, 512)])
def test_ram_ends_where_memory_says(mode: str, mebibytes: int) -> None:
    options = PlatformOptions(memory=mebibytes)
    platform = LongMode(options) if mode == "long" else ProtectedMode(options)
    end = mebibytes * MIB
    text = f"movl $7, {end - 4:#x}\nmovl {end - 4:#x}, %ebx\n{measure('%ebx')}"
    report = run(f"{text}movl {end:#x}, %ebx\n{measure('%ebx')}{PASS}", mode, platform=platform)
    assert report.passed and report.measures == (7, MOST_U32)


@pytest.mark.parametrize("mode", FLAT)
def test_variables_may_fill_ram(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "large.c"
    path.write_text(
        "volatile char all[40 << 20], some[17 << 20] = {1};\n"
        "int main(void) { return all[sizeof all - 1] + some[0] - 1; }\n"
    )
    words = ("run", path, "--mode", mode)
    assert pyvmm(*words, "--memory", 59).status == 0
    pyvmm(*words, "--memory", 57).error(2, "stacks", "--memory 59 or more")
    pyvmm(*words).error(2, "stacks", "--memory 59 or more")


@pytest.mark.parametrize("is_global", [True, False])
@pytest.mark.parametrize("mode", FLAT)
def test_assembly_begins_at_its_start_symbol(mode: str, is_global: bool) -> None:
    """As with any linker; a guest without one, or with a local one, begins at its first byte."""
    first, globl = ("ud2\n", ".globl _start\n") if is_global else (PASS, "")
    assert run(f"{first}{globl}_start: {PASS if is_global else 'ud2'}", mode).passed


@pytest.mark.parametrize("options", [[], ["-z", "noseparate-code"], ["-n"], ["-N"]])
@pytest.mark.parametrize("mode", FLAT)
def test_an_elf_file_as_ld_makes_it(mode: str, options: list[str], tmp_path: Path) -> None:
    """Where nobody says -N, ld puts the file's headers in front of 0x100000, where no RAM is."""
    source, unlinked, linked = (tmp_path / f"guest.{suffix}" for suffix in ("S", "o", "elf"))
    source.write_text(
        ".globl _start\n_start: incl word\n movl word, %eax\n subl $8, %eax\n"
        " addl zeros + 5000, %eax\n outl %eax, $0xf4\n .data\nword: .long 7\n"
        " .lcomm zeros, 8192\n"
    )
    width, emulation = ("--64", "elf_x86_64") if mode == "long" else ("--32", "elf_i386")
    subprocess.run(["as", width, "-o", unlinked, source], check=True)
    places = ["-m", emulation, "-Ttext", "0x100000", "-e", "_start"]
    subprocess.run(["ld", *places, *options, "-o", linked, unlinked], check=True)
    found = pyvmm("run", linked, "--json", "--deadline", 10)
    assert (found.status, found.json["mode"]) == (0, mode), found


@pytest.mark.parametrize("origin", ["0x1000", "0x600"])
@pytest.mark.parametrize("platform", [[], ["--platform", "bare"]])
def test_an_elf_files_headers_are_not_put_over_the_vectors(
    platform: list[str], origin: str, tmp_path: Path
) -> None:
    """Where ld puts them for code of real mode at 0x1000."""
    source, unlinked, linked = (tmp_path / f"guest.{suffix}" for suffix in ("S", "o", "elf"))
    source.write_text(".code16\n.globl _start\n_start: int $0x10\n hlt\n")
    subprocess.run(["as", "--32", "-o", unlinked, source], check=True)
    places = ["-m", "elf_i386", "-Ttext", origin, "-e", "_start"]
    subprocess.run(["ld", *places, "-o", linked, unlinked], check=True)
    found = pyvmm("run", linked, "--json", "--deadline", 10, *platform)
    assert found.status == 1, found
    assert "there is no BIOS, nothing handles vector 0x10" in found.json["reason"]


def test_zeros_of_a_segment_replace_what_is_there() -> None:
    from pyvmm.guest.image import Image, Segment

    start = 0x100000
    code = assemble(f"cmpb $0, {start + 0x2000}\n setne %al\n outb %al, $0xf4", mode="long")
    under = Segment(start + 0x1000, b"\1" * 0x2000)
    over = Segment(start + 0x1800, b"\2", zeros=0x1000)
    image = Image("x", (*code.segments, under, over), start, mode="long")
    with Machine(image) as machine:
        assert machine.run(20).passed


def test_variables_over_the_first_vectors_are_zero() -> None:
    """An ELF file that is linked at 0 has its .bss where the protocol put the vectors' stubs."""
    from pyvmm.guest.image import Image, Segment

    code = assemble(f".code16\n movl {lib.VECTOR_STUBS}, %eax\n addl 0x80, %eax\n outl %eax, $0xf4")
    variables = Segment(0x40, b"\0", zeros=0x700)
    with Machine(Image("x", (*code.segments, variables), 0x7C00)) as machine:
        assert machine.run(10).passed


def test_a_second_guest_has_no_variables_of_the_first() -> None:
    from pyvmm.guest.image import Image, Segment

    start = 0x100000
    code = assemble(f"cmpb $0, {start + 0x2000}\n setne %al\n outb %al, $0xf4", mode="long")
    (segment,) = code.segments
    with Machine(Image("x", (Segment(start, b"\1" * 0x3000),), start, mode="long")) as machine:
        machine.load(Image("y", (Segment(start, segment.data, zeros=0x3000),), start, mode="long"))
        assert machine.run(20).passed


@pytest.mark.parametrize(
    ("mode", "platform"),
    [("long", ProtectedMode()), ("protected", LongMode()), ("long", RealMode())],
    ids=lambda each: getattr(each, "mode", each),
)
def test_a_world_of_another_mode_is_refused(mode: str, platform: Platform) -> None:
    image = assemble(f"{PASS}.org 0x1000", mode=mode)
    with pytest.raises(ConfigurationError, match=f"its code is for {mode} mode, and .* begins"):
        Machine(image, platform=platform)


def test_large_ram_costs_what_is_touched() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    platform = LongMode(PlatformOptions(memory=3072))
    assert run(f"movq $1, 0x20000000\n{PASS}", platform=platform).passed
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10  # KiB


def test_the_high_region_converts_both_ways() -> None:
    text = f"""
        movq $0x100000000, %rbx
        movq $0x140000000, %rcx
        movq $0x1234, 8(%rbx)
        cmpq $0x1234, 8(%rbx)
        jne 1f
        cmpq $0, 8(%rcx)
        jne 1f
        movq $-1, 0x3ff008(%rcx)
        movb $1, 0x3fffff(%rbx)
        {PASS}
1:      {out(0xF4, "$9")}
    """
    report = run(text)
    assert report.passed, report.reason
    assert (report.conversions.to_private, report.conversions.to_shared) == (2, 1)
    assert [(each.gpa, each.size) for each in report.memory] == [
        (0x40000, 0x40000),
        (1 << 32, 4 * MIB),
    ]


def test_a_region_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    path.write_text(
        f"movq $0x180000000, %rbx\nmovq $5, (%rbx)\nmovb $1, 0x2000000\ncmpq $5, (%rbx)\n"
        f"jne .\n{PASS}"
    )
    words = ("--region", "0x180000000,0x200000,0x1c0000000", "--region", "0x2000000,4096,0x3000000")
    outcome = pyvmm("run", path, "--mode", "long", *words, "--json")
    assert outcome.status == 0, outcome
    assert outcome.json["memory"][-1]["private"] == [[0x2000000, 4096]]
    assert outcome.json["memory"][-2]["private"] == [[0x180000000, 4096]]


# ---- ports ----


@pytest.mark.parametrize("high", ["$1", "$0"])
def test_the_doorbell_has_numbers_of_64_bits(high: str) -> None:
    """Upper halves are 0 again after each request, in which the region at 4 GiB is found once."""
    ring = (
        out(0x61C, high) + out(0x600, "$0") + out(0x604, "$3") + out(0x608, "$2")
    ) + "movw $0x60c, %dx\ninl %dx, %eax\nmovl %eax, %ebx\n"
    again = out(0x608, "$1") + "movw $0x60c, %dx\ninl %dx, %eax\nmovl %eax, %ecx\n"
    report = run(ring + again + measure("%ebx") + measure("%ecx") + PASS)
    refused = MOST_U32 + 1 - errno.EINVAL
    assert report.passed
    assert report.measures == ((0, refused) if high == "$1" else (refused, refused))
    assert report.conversions.explicit == (3 if high == "$1" else 0)


def test_upper_halves_of_the_page_count_are_refused_where_no_region_is_so_large() -> None:
    ring = out(0x620, "$1") + out(0x600, "$0x40000") + out(0x604, "$1") + out(0x608, "$2")
    text = f"{ring}movw $0x60c, %dx\ninl %dx, %eax\nmovl %eax, %ebx\n{measure('%ebx')}{PASS}"
    report = run(text)
    assert report.measures == (MOST_U32 + 1 - errno.EINVAL,)
    assert report.conversions.explicit == 0


def test_the_upper_halves_are_any_other_port_in_real_mode() -> None:
    text = ".code16\nmovw $0x61c, %dx\noutl %eax, %dx\nxorb %al, %al\noutb %al, $0xf4\n"
    report = run(text, "real")
    assert report.passed and [each.port for each in report.unclaimed] == [0x61C]


@pytest.mark.parametrize("mode", FLAT)
def test_an_assert_has_numbers_of_64_bits(mode: str) -> None:
    text = f"""
        {out(0x624, "$0")}{out(0x610, "$1f")}
1:      .word 77, 0
        .quad 0x123456789abcdef0, 5
        .asciz "file.c"
        .asciz "x == 5"
    """
    report = run(text, mode)
    told = "file.c:77: assert failed: x == 5: seen 0x123456789abcdef0, expected 0x5"
    assert report.exit_code == 1 and told in report.reason
    report = run(out(0x624, "$1") + out(0x610, "$0x10000000"), mode)
    assert "its record at GPA 0x110000000 cannot be read" in report.reason


# ---- exceptions ----


@pytest.mark.parametrize("mode", FLAT)
def test_what_nothing_handles(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    wide = mode == "long"
    for text, vector, words in (
        ("xorl %ecx, %ecx\ndivl %ecx\n", 0, ["divide error (#DE)", "(x.S:2)"]),
        ("ud2\n", 6, ["invalid opcode (#UD)", "(x.S:1)"]),
        ("movl $0x18, %eax\nmovl %eax, %ds\n", 13, ["(#GP)", "error code 0x18", "(x.S:2)"]),
    ):
        path.write_text(text)
        report = pyvmm("run", path, "--mode", mode, "--json").json
        assert report["exit_code"] == 0x100 + vector
        for word in (*words, "RIP 0x10000" if wide else "CS:EIP 0008:0010000"):
            assert word in report["reason"]
        where = report["where"]
        assert where["mode"] == mode and where["vector"] == vector
        assert where["registers"]["rsp" if wide else "esp"] == 16 * MIB
        assert where["error_code"] == (0x18 if vector == 13 else None)


def test_a_triple_fault() -> None:
    report = run("lidt 1f(%rip)\nud2\n1: .quad 0, 0\n")
    assert "triple fault" in report.reason and report.result is Result.FAIL


def test_the_stubs_are_known_by_their_place_alone() -> None:
    """The same bytes as a stub's elsewhere are the guest's own OUTs to any other port."""
    report = run(f"outb %al, $0xe6\noutl %eax, $0xe7\n{PASS}")
    assert report.passed and {each.port for each in report.unclaimed} == {0xE6, 0xE7}


# ---- bad input ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "real", "--memory", "16"], ["--memory", "real mode has no use"]),
        (["--mode", "long", "--load", "0x1000"], ["--load", "no use for it"]),
        (["--mode", "long", "--set", "rax=1"], ["--set", "no use for it"]),
        (["--mode", "long", "--hlt", "pass"], ["--hlt", "no use for it"]),
        (["--mode", "long", "--memory", "1"], ["--memory 1", "2 to"]),
        (["--mode", "long", "--memory", "8192"], ["--memory 8192", "to 4064"]),
        (["--mode", "long", "--vcpus", "65"], ["65 vCPUs", "1 to 64"]),
        (["--mode", "long", "--region", "0x100000,0x1000"], ["overlaps RAM"]),
        (["--mode", "long", "--region", "0x2000000,0x1000,0x2000000"], ["overlaps"]),
        (["--mode", "long", "--region", "0xfee00000,0x1000"], ["overlaps KVM's LAPIC"]),
        (["--mode", "long", "--region", "0xfffbd000,0x1000"], ["KVM's page table and TSS"]),
        (
            ["--mode", "long", "--region", "0x4000000,0x1000,0x5000000", "--views", "1"],
            ["one view"],
        ),
        (["--mode", "protected", "--memory", "2", "--vcpus", "64"], ["reach into the stacks"]),
        (["--mode", "long", "--region", "0x200000000,0x40000000000"], ["may have 1024 GiB"]),
    ],
    ids=lambda each: " ".join(each),
)
def test_options_that_cannot_be(words: list[str], said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    path.write_text(PASS if "real" not in words else f".code16\n{PASS}")
    line = pyvmm("run", path, *words).error(2)
    for each in said:
        assert each in line


@pytest.mark.parametrize(
    "words",
    [
        ["--mode", "virtual"],
        ["--platform", "xen"],
        ["--memory", "-1"],
        ["--memory", "x"],
        ["--region", "0x1000"],
        ["--region", "1,4096"],
        ["--region", "0,0"],
        ["--region", "0x1000,0x1001"],
        ["--set", "rax"],
        ["--set", "rax=x"],
        ["--hlt", "maybe"],
        ["--exit-port", "65536"],
        ["--load", "0x10000000000000000"],
    ],
    ids=" ".join,
)
def test_usage(words: list[str]) -> None:
    pyvmm("run", "hello.S", *words).error(2, words[0], "see pyvmm")


def test_a_mode_that_the_guest_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    path.write_text(".code16\nmovw %ax, %bx\n")
    pyvmm("run", path, "--mode", "long").error(2, "16-bit code (line 1)", "--mode real")
    path.write_text("\n.code64\nmovq %rax, %rbx\n")
    pyvmm("run", path).error(2, "64-bit code (line 2)", "--mode long")


def test_a_guest_where_the_platform_has_its_tables(tmp_path: Path) -> None:
    from pyvmm.guest.image import Image, Segment

    for gpa, word in ((0x3F000, "page tables"), (16 * MIB - 4, "stacks"), (0x50000, "not in RAM")):
        image = Image("x", (Segment(gpa, b"\xf4"),), gpa, mode="long")
        with pytest.raises(ConfigurationError, match=word):
            Machine(image)


@pytest.mark.parametrize("mode", FLAT)
def test_set_handler_keeps_the_flags(mode: str) -> None:
    bx, cx = ("%rbx", "%rcx") if mode == "long" else ("%ebx", "%ecx")
    text = f"""
        .include "pyvmm.inc"
        guest "flags"
        stc
        std
        pushf
        pop {bx}
        set_handler 13, handler
        pushf
        pop {cx}
        cld
        assert_eq %ecx, %ebx
        exit_guest $0
handler:
        hlt
    """
    report = run(text, mode)
    assert report.passed, report.reason
