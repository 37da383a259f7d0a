"""The platform multiboot, and pyvmm-as-qemu, by guests of our own; kvm-unit-tests' on demand.

PYVMM_KVM_UNIT_TESTS=FOLDER, with the .flat files of a built kvm-unit-tests, runs four of them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyvmm_command import ROOT, Outcome, pyvmm

from pyvmm.devices.debug_exit import status_of
from pyvmm.guest.assembler import image_of, read_guest
from pyvmm.guest.multiboot import Multiboot
from pyvmm.guest.options import PlatformOptions

TOLD = ROOT / "examples" / "multiboot" / "told.S"
SMP = ROOT / "examples" / "multiboot" / "smp.S"
FOREIGN = os.environ.get("PYVMM_KVM_UNIT_TESTS", "")
HEADER = """
        .code32
        jmp start
        .align 4
        .long 0x1badb002, 0, -0x1badb002
start:
"""


def built(folder: Path, source: Path) -> Path:
    """A multiboot ELF file made of an example, as a stranger would bring it."""
    platform = Multiboot(PlatformOptions())
    image = image_of(read_guest(source), platform.layout, is_asked=True, make=platform.image)
    path = folder / f"{source.stem}.elf"
    path.write_bytes(image.elf)
    return path


def guest(folder: Path, code: str) -> Path:
    path = folder / "guest.S"
    path.write_text(HEADER + code)
    return path


def as_qemu(*words: object, limit: float = 60) -> Outcome:
    result = subprocess.run(
        [sys.executable, "-m", "pyvmm.cli.as_qemu", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


def test_what_a_guest_is_told(tmp_path: Path) -> None:
    path = built(tmp_path, TOLD)
    module = tmp_path / "module"
    module.write_text("A=1\nB=2\n")
    modules = f"{module} one,{module} two,,three"
    found = pyvmm("run", path, "--append", "x -y", "--initrd", modules, "--memory", 64, "--json")
    assert found.status == 0, found
    assert found.json["platform"] == "multiboot" and found.json["mode"] == "protected"
    told = found.json["serial"].splitlines()
    assert told == [
        f"{path} x -y",
        f"{module} one",
        "A=1",
        f"{module} two,three",
        "A=1",
        str(63 << 10),
    ]


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_the_other_vcpus_are_started_by_the_guest(vcpus: int) -> None:
    words = ("--platform", "multiboot", "--vcpus", vcpus, "--json", "--deadline", 20)
    found = pyvmm("run", SMP, *words)
    assert (found.status, found.json["exit_code"]) == (0, 0), found


def test_vcpus_that_nobody_starts_end_with_the_run(tmp_path: Path) -> None:
    path = guest(tmp_path, "xorl %eax, %eax; outl %eax, $0xf4")
    words = ("--platform", "multiboot", "--vcpus", 4, "--json", "--deadline", 20)
    started = time.monotonic()
    found = pyvmm("run", path, *words)
    assert found.status == 0, found
    assert time.monotonic() - started < 10


def test_a_deadline_ends_vcpus_that_nobody_starts(tmp_path: Path) -> None:
    words = ("--platform", "multiboot", "--vcpus", 3, "--json", "--deadline", 0.5)
    found = pyvmm("run", guest(tmp_path, "jmp ."), *words)
    assert found.status == 3
    assert found.json["reason"].startswith("vCPU 0 still ran at the deadline")


@pytest.mark.parametrize(("hlt", "status"), [([], 1), (["--hlt", "pass"], 0)])
def test_a_kernel_that_ends_as_most_first_kernels_do(
    hlt: list[str], status: int, tmp_path: Path
) -> None:
    words = ("--platform", "multiboot", "--json", "--deadline", 20, *hlt)
    assert pyvmm("run", guest(tmp_path, "cli\n1: hlt\n jmp 1b"), *words).status == status


def test_a_hlt_that_another_vcpu_may_end_is_none(tmp_path: Path) -> None:
    words = ("--platform", "multiboot", "--json", "--deadline", 0.5, "--vcpus", 2)
    assert pyvmm("run", guest(tmp_path, "cli\n hlt"), *words).status == 3


@pytest.mark.parametrize(("code", "status"), [(0, 0), (1, 1), (38, 1)])
def test_codes_at_the_debug_exit_port(code: int, status: int, tmp_path: Path) -> None:
    path = guest(tmp_path, f"movl ${code}, %eax; outl %eax, $0xf4")
    found = pyvmm("run", path, "--platform", "multiboot", "--json")
    assert (found.status, found.json["exit_code"]) == (status, code)


def test_a_guest_may_have_no_gdt_of_its_own(tmp_path: Path) -> None:
    """As many first kernels: gates that lead to selector 8, and no LGDT."""
    code = """
        movw $16, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        ljmp $8, $1f
1:      movl $0x12345678, 0x200000
        xorl %eax, %eax
        cmpl $0x12345678, %es:0x200000
        setne %al
        outl %eax, $0xf4
"""
    words = ("--platform", "multiboot", "--json", "--deadline", 10)
    found = pyvmm("run", guest(tmp_path, code), *words)
    assert (found.status, found.json["exit_code"]) == (0, 0), found


@pytest.mark.parametrize("number", ["0x1badb002", "0x1BADB002"])
def test_source_is_known_by_the_headers_number(number: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.S"
    path.write_text(
        f" .set MAGIC, {number}\n jmp 1f\n .align 4\n .long MAGIC, 0, -MAGIC\n"
        "1: xorl %eax, %eax\n outl %eax, $0xf4\n"
    )
    found = pyvmm("run", path, "--json", "--deadline", 10)
    assert (found.status, found.json["platform"]) == (0, "multiboot"), found


def test_a_boot_loader_that_looks_for_the_number_is_none(tmp_path: Path) -> None:
    path = tmp_path / "loader.S"
    path.write_text(".code16\n cmpl $0x1badb002, %es:0\n xorl %eax, %eax\n outl %eax, $0xf4\n")
    found = pyvmm("run", path, "--json", "--deadline", 10)
    assert (found.status, found.json["mode"]) == (0, "real"), found


def test_source_begins_at_its_start_symbol(tmp_path: Path) -> None:
    path = tmp_path / "kernel.S"
    path.write_text(
        " .align 4\n .long 0x1badb002, 0, -0x1badb002\n .globl _start\n"
        "_start: xorl %eax, %eax\n outl %eax, $0xf4\n"
    )
    words = ("--platform", "multiboot", "--json", "--deadline", 10)
    found = pyvmm("run", path, *words)
    assert (found.status, found.json["exit_code"]) == (0, 0), found


def test_a_guest_may_have_no_stack_of_its_own(tmp_path: Path) -> None:
    """As first kernels whose entry is a function in C; GRUB and QEMU leave them a stack."""
    code = "call 1f\n outl %eax, $0xf4\n1: pushl $0\n popl %eax\n ret"
    words = ("--platform", "multiboot", "--json", "--deadline", 10)
    found = pyvmm("run", guest(tmp_path, code), *words)
    assert (found.status, found.json["exit_code"]) == (0, 0), found


WANTS_VIDEO = """
        .code32
        jmp start
        .align 4
        .long 0x1badb002, 7, -(0x1badb002 + 7), 0, 0, 0, 0, 0
        .long 0, 1024, 768, 32
start:  movl (%ebx), %eax
        shrl $11, %eax
        andl $3, %eax
        outl %eax, $0xf4
"""


def test_a_guest_that_wants_video_runs_without(tmp_path: Path) -> None:
    """Bits 11 and 12 of what it is told are clear, and one line on stderr says so, too."""
    path = tmp_path / "video.S"
    path.write_text(WANTS_VIDEO)
    line = "video.S: its multiboot header asks for a video mode (flag 2): there is none, and"
    found = pyvmm("run", path, "--platform", "multiboot", "--json", "--deadline", 10)
    assert (found.status, found.json["exit_code"]) == (0, 0), found
    assert found.stderr.startswith(f"pyvmm: {line}") and found.stderr.count("\n") == 1
    found = as_qemu("-kernel", built(tmp_path, path))
    assert found.status == status_of(0), found
    assert "video mode" in found.stderr and found.stderr.count("\n") == 1


def test_com1_and_port_0xe9_are_one_text(tmp_path: Path) -> None:
    code = """
        movb $'a', %al
        movw $0x3f8, %dx
        outb %al, %dx
        incl %eax
        outb %al, $0xe9
        incl %eax
        outb %al, %dx
        xorl %eax, %eax
        outl %eax, $0xf4
"""
    words = ("--platform", "multiboot", "--json", "--deadline", 10)
    found = pyvmm("run", guest(tmp_path, code), *words)
    assert (found.status, found.json["serial"]) == (0, "abc"), found


@pytest.mark.parametrize("port", [0x501, 0xFFFF])
def test_another_exit_port(port: int, tmp_path: Path) -> None:
    path = guest(tmp_path, f"movw ${port:#x}, %dx; movb $7, %al; outb %al, %dx; jmp .")
    words = ("--platform", "multiboot", "--exit-port", port, "--json", "--deadline", 10)
    found = pyvmm("run", path, *words)
    assert (found.status, found.json["exit_code"]) == (1, 7), found


def test_a_line_of_the_test_device_interrupts(tmp_path: Path) -> None:
    """Line 5 through the PIC as firmware leaves it, at vector 0x0D."""
    code = """
        lidt idtr
        movl $handler, %eax
        movl $0x80000, %esp
        movw %ax, idt + 0x0d * 8
        movw %cs, idt + 0x0d * 8 + 2
        movw $0x8e00, idt + 0x0d * 8 + 4
        shrl $16, %eax
        movw %ax, idt + 0x0d * 8 + 6
        lgdt gdtr
        sti
        movw $0x2005, %dx
        movb $1, %al
        outb %al, %dx
        jmp .
handler: movl $0, %eax
        outl %eax, $0xf4
        .align 8
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr:   .word 23
        .long gdt
idtr:   .word 0x7ff
        .long idt
        .align 8
idt:    .fill 0x800
"""
    found = pyvmm(
        "run", guest(tmp_path, code), "--platform", "multiboot", "--json", "--deadline", 5
    )
    assert (found.status, found.json["exit_code"]) == (0, 0), found


def test_a_page_that_is_flushed_keeps_its_contents(tmp_path: Path) -> None:
    code = """
        movl $0x12345678, 0x200000
        movl $0x200000, %eax
        outl %eax, $0xe4
        xorl %eax, %eax
        cmpl $0x12345678, 0x200000
        setne %al
        outl %eax, $0xf4
"""
    found = pyvmm(
        "run", guest(tmp_path, code), "--platform", "multiboot", "--json", "--deadline", 5
    )
    assert (found.status, found.json["exit_code"]) == (0, 0), found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--initrd", "/nonexistent"], "No such file"),
        (["--memory", "1"], "RAM"),
        (["--vcpus", "256"], "room for 1 to 255"),
        (["--load", "0x100000"], "has no use for it"),
        (["--set", "cs=0x20000"], "16 bits"),
        (["--exit-port", "0x3f8"], "DebugExit at port 0x3f8: device Serial16550 has it"),
        (["--exit-port", "0xe0"], "DebugExit at port 0xe0: device TestDevice has it"),
        (["--exit-port", "0xe9"], "DebugExit at port 0xe9: device DebugConsole has it"),
        (["--append", "x" * 70000], "more than"),
    ],
)
def test_bad_input(words: list[str], said: str, tmp_path: Path) -> None:
    pyvmm("run", built(tmp_path, TOLD), *words).error(2, said)


def test_an_initrd_that_does_not_fit(tmp_path: Path) -> None:
    module = tmp_path / "module"
    module.write_bytes(bytes(1 << 20))
    words = ("--initrd", module, "--memory", 2)
    pyvmm("run", built(tmp_path, TOLD), *words).error(2, "past the end of RAM")


def test_no_header_and_no_multiboot(tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\xf4" * 64)
    pyvmm("run", path, "--platform", "multiboot").error(2, "no multiboot header")


def test_a_hostile_guest_does_not_hold_the_machine(tmp_path: Path) -> None:
    """Every line and every page, and INIT to itself and to all."""
    code = """
        movl $0xc4500, %edi
        movl $0x10000, %ecx
1:      movl %ecx, %edx
        movl %ecx, %eax
        cmpw $0xf4, %dx
        jb 2f
        cmpw $0xf8, %dx
        jb 3f
2:      outl %eax, %dx
        inl %dx, %eax
3:      loop 1b
        movl %edi, 0xfee00300
        movl $0x44500, 0xfee00300
        jmp .
"""
    words = ("--platform", "multiboot", "--vcpus", 2, "--json", "--deadline", 3)
    found = pyvmm("run", guest(tmp_path, code), *words)
    assert found.status in (0, 1, 3), found
    assert found.json["result"] in ("pass", "fail", "deadline")


# ---- in QEMU's place ----


def test_what_run_tests_asks_first() -> None:
    assert as_qemu("--help").stdout.startswith("QEMU emulator version ")
    numbers = as_qemu("-h").stdout.split("\n")[0].split()[3].split(".")
    assert len(numbers) == 3 and all(number.isdecimal() for number in numbers)
    devices = as_qemu("-device", "?").stdout
    assert '"pc-testdev"' in devices and "pci-testdev" not in devices
    found = as_qemu("-kernel", "_NO_FILE_4Uhere_")
    assert found.status == 2 and "could not open kernel _NO_FILE_4Uhere_" in found.stderr


@pytest.mark.parametrize("code", [0, 1, 38, 63])
def test_the_exit_status_is_qemus(code: int, tmp_path: Path) -> None:
    platform = Multiboot(PlatformOptions())
    source = guest(tmp_path, f"movl ${code}, %eax; outl %eax, $0xf4")
    image = image_of(read_guest(source), platform.layout, is_asked=True, make=platform.image)
    path = tmp_path / "guest.elf"
    path.write_bytes(image.elf)
    options = ["--no-reboot", "-nodefaults", "-display", "none", "-serial", "stdio"]
    options += ["-device", "pc-testdev", "-machine", "accel=kvm", "-cpu", "max,-x2apic"]
    found = as_qemu(*options, "-smp", 2, "-m", "64M", "-kernel", path)
    assert found.status == status_of(code), found
    assert found.stderr == ""


def test_it_prints_what_the_guest_prints_and_nothing_else(tmp_path: Path) -> None:
    path = built(tmp_path, TOLD)
    found = as_qemu("-kernel", path, "-append", "x")
    assert found.stdout == f"{path} x\n{127 << 10}\n"


VMWARE = """
    movl $0x564d5868, %eax
    movl $0xdeadbeef, %ebx
    movl ${command}, %ecx
    movl $0x5658, %edx
    inl %dx, %eax
    cmpl ${eax}, %eax
    jne 1f
    cmpl ${ebx}, %ebx
    jne 1f
    xorl %eax, %eax
    outl %eax, $0xf4
1:  movl $1, %eax
    outl %eax, $0xf4
"""
NOBODY = (0xFFFFFFFF, 0xDEADBEEF)


@pytest.mark.parametrize(
    ("command", "machine", "answer"),
    [
        (10, "accel=kvm", (6, 0x564D5868)),
        (10, "accel=kvm,vmport=on", (6, 0x564D5868)),
        (10, "accel=kvm,vmport=off", NOBODY),
        (0xFFF, "accel=kvm", NOBODY),
    ],
)
def test_vmwares_port_answers_in_registers(
    command: int, machine: str, answer: tuple[int, int], tmp_path: Path
) -> None:
    source = guest(tmp_path, VMWARE.format(command=command, eax=answer[0], ebx=answer[1]))
    found = as_qemu("-machine", machine, "-kernel", built(tmp_path, source))
    assert (found.status, found.stderr) == (status_of(0), ""), found


@pytest.mark.parametrize(
    "words",
    [
        ["-frobnicate"],
        ["-device", "edu"],
        ["-cpu", "nocpu"],
        ["-cpu", "max,+nofeature"],
        ["-machine", "q35"],
        ["-m", "much"],
        ["-smp", "0"],
        ["-smp", "1000"],
        ["-kernel"],
        [],
    ],
)
def test_what_it_lacks_is_one_line(words: list[str], tmp_path: Path) -> None:
    found = as_qemu(*words, *(["-kernel", built(tmp_path, TOLD)] if len(words) > 1 else []))
    assert found.status == 2 and found.stdout == ""
    assert len(found.stderr.splitlines()) == 1 and found.stderr.startswith("pyvmm-as-qemu: ")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "> /dev/full"])
def test_standard_streams_that_cannot_be_written(redirection: str, tmp_path: Path) -> None:
    """Nothing is written to what has the descriptor of a closed one: it may be a guest's memory."""
    command = shlex.join([sys.executable, "-m", "pyvmm.cli.as_qemu", "-kernel"])
    path = built(tmp_path, TOLD)
    shell = f"exec {command} {shlex.quote(str(path))} {redirection}"
    found = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    said = "pyvmm-as-qemu: stdout: No space left on device\n" if "full" in redirection else ""
    assert (found.returncode, found.stderr) == (1, said)


# ---- kvm-unit-tests ----


@pytest.mark.skipif(not FOREIGN, reason="PYVMM_KVM_UNIT_TESTS names no folder of .flat files")
@pytest.mark.parametrize(
    ("name", "passes"), [("realmode", 127), ("setjmp", 10), ("smptest", 1), ("ioapic", 19)]
)
def test_kvm_unit_tests(name: str, passes: int) -> None:
    options = ["-cpu", "max", "-m", 256, "-smp", 2 if name == "smptest" else 1]
    found = as_qemu("-kernel", Path(FOREIGN) / f"{name}.flat", *options, limit=120)
    lines = found.stdout.splitlines()
    assert sum(line.startswith("PASS") for line in lines) == passes, found
    assert not any(line.startswith("FAIL") for line in lines)
    assert found.status == 1
