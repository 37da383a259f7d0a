"""The world of a Linux kernel, as kernels of a few instructions find it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_kernels import POWER_OFF, SEND, bzimage, kernel

from pyvmm import (
    ConfigurationError,
    GuestError,
    Kvm,
    Machine,
    Result,
    RunReport,
    UnsupportedError,
)
from pyvmm.guest import linux
from pyvmm.guest.linux import Linux
from pyvmm.guest.linux_probe import try_kernel_code
from pyvmm.kvm.cpuid import cpuid_entries

SAY_COMMAND_LINE = (
    "cmpl $0x53726448, 0x202(%rsi)\n jne 8f\n movl 0x228(%rsi), %ebx\n movl $0x90000, %esp\n"
    f"call send\n{POWER_OFF}\n8: ud2\n{SEND}"
)
IN_32_BITS = (
    SAY_COMMAND_LINE.replace("%rsi", "%esi").replace("%rbx", "%ebx").replace("incq", "incl")
)


@pytest.fixture
def any_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """These kernels do without the instructions that not every KVM has."""
    monkeypatch.setattr(linux, "try_kernel_code", lambda kvm: (True, ""))


def run(source: str, platform: Linux | None = None, vcpus: int = 1) -> RunReport:
    with Machine(kernel(source), platform=platform or Linux(), vcpus=vcpus) as machine:
        return machine.run(20)


@pytest.mark.parametrize(
    ("source", "is_64_bit", "mode"),
    [(SAY_COMMAND_LINE, True, "long"), (IN_32_BITS, False, "protected")],
    ids=["long", "protected"],
)
def test_a_kernel_reads_its_command_line(
    any_kvm: None, source: str, is_64_bit: bool, mode: str
) -> None:
    shown: list[bytes] = []
    platform = Linux(append="console=ttyS0 é", show=shown.append)
    with Machine(kernel(source, is_64_bit=is_64_bit), platform=platform) as machine:
        report = machine.run(20)
    assert report.passed, report.reason
    assert report.serial == b"".join(shown).decode() == "console=ttyS0 é"
    assert (report.platform, report.mode, report.exit_code) == ("linux", mode, None)


def test_an_initrd_is_where_the_zero_page_says(any_kvm: None) -> None:
    source = f"movl 0x218(%rsi), %ebx\n movl $0x90000, %esp\n call send\n{POWER_OFF}{SEND}"
    report = run(source, Linux(memory=32, initrd=b"from the initrd\0"))
    assert report.passed and report.serial == "from the initrd"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("movb $0xfe, %al\n outb %al, $0x64\n", "its keyboard controller"),
        ("movw $0xcf9, %dx\n movb $6, %al\n outb %al, %dx\n", "its reset register"),
    ],
)
def test_a_reset_fails(any_kvm: None, code: str, how: str) -> None:
    report = run(code)
    assert report.result is Result.FAIL
    assert f"vCPU 0 reset the machine by {how}" in report.reason


def test_the_other_vcpus_wait_for_init_and_sipi(any_kvm: None) -> None:
    """Each counts itself; the first one waits for all of them, and switches off."""
    start = "movl $0xc4500, 0x300(%rdi)\n movl $0xc4608, 0x300(%rdi)\n"  # all but itself
    report = run(
        "movl $0xfee00000, %edi\n"
        # lock incb 0x1000; hlt
        "movl $0x0006fef0, 0x8000\n movl $0xf410, 0x8004\n"
        f"movl $0x1ff, 0xf0(%rdi)\n{start} 1: pause\n cmpb $3, 0x1000\n jne 1b\n{POWER_OFF}",
        vcpus=4,
    )
    assert report.passed, report.reason


def test_each_vcpu_has_a_cpuid_of_its_own(any_kvm: None) -> None:
    with Machine(kernel(POWER_OFF), platform=Linux(), vcpus=3) as machine:
        for vcpu in machine.vcpus:
            leaves = {each.function: each for each in cpuid_entries(vcpu.get_cpuid2())}
            assert leaves[1].ebx >> 16 == vcpu.index << 8 | 3
            assert leaves[0x40000000].ebx.to_bytes(4, "little") == b"KVMK"
        assert machine.run(20).passed


@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_kernel_at_every_port_of_a_device(any_kvm: None, seed: int) -> None:
    """Random values and widths; nothing raises, hangs, or ends as an error."""
    dice = random.Random(seed)
    ports = [*range(0x60, 0x72), *range(0x3F8, 0x400), *range(0x600, 0x610), *range(0xCF8, 0xD00)]
    code = []
    for _ in range(3000):
        register, letter = dice.choice((("al", "b"), ("ax", "w"), ("eax", "l")))
        code.append(f"movw ${dice.choice(ports)}, %dx")
        if dice.random() < 0.4:
            code.append(f"in{letter} %dx, %{register}")
        else:
            value = dice.getrandbits(32) & 0x7FFFFFFF
            # What ends the run would end the test, too.
            code.append(f"movl ${value & ~0x2404 | 0x01 if dice.random() < 0.99 else value}, %eax")
            code.append(f"out{letter} %{register}, %dx")
    report = run("\n".join(code) + "\n" + POWER_OFF)
    assert report.result in (Result.PASS, Result.FAIL), report.reason


def test_where_memory_is_and_where_not(any_kvm: None) -> None:
    end = 64 << 20
    source = f"movl ${end - 4:#x}, %ebx\n movl $7, (%rbx)\n movl 4(%rbx), %eax\n incl %eax\n"
    report = run(f"{source} jnz 8f\n{POWER_OFF} 8: ud2", Linux(memory=64))
    assert report.passed, report.reason
    assert report.unclaimed_mmio == 1


def test_no_hints_of_the_guest_protocol(any_kvm: None) -> None:
    report = run(f"movw $0x2f8, %dx\n outb %al, %dx\n outb %al, $0xf4\n{POWER_OFF}")
    assert [str(each) for each in report.unclaimed] == ["port 0xf4 once", "port 0x2f8 once"]


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, no_leak: None) -> None:
    """Of kernels that ran, of one that was refused, and of one for which this KVM is no good."""
    for answer in (True, False):
        monkeypatch.setattr(linux, "try_kernel_code", lambda kvm, answer=answer: (answer, "tried"))
        for _ in range(3):
            if answer:
                assert run(POWER_OFF, vcpus=2).passed
            else:
                with pytest.raises(UnsupportedError, match="platform linux: tried; this KVM runs"):
                    run(POWER_OFF, vcpus=2)
    with pytest.raises(GuestError):
        Machine(b"no kernel", platform=Linux())
    with Kvm() as kvm:
        try_kernel_code(kvm)


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (bzimage(), {"memory": 16}, "needs memory from"),
        (bzimage(), {"append": "x" * 2048}, "reads at most 2047"),
        (bzimage(), {"initrd": bytes(250 << 20)}, "bytes are left for it"),
        (b"\x90" * 4096, {}, "no Linux boot header"),
        (bzimage()[:3000], {}, "cut short"),
    ],
)
def test_what_cannot_be_loaded(data: bytes, options: dict[str, object], words: str) -> None:
    with pytest.raises((ConfigurationError, GuestError), match=words):
        Machine(data, platform=Linux(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [0, -1, 1 << 40, "16"])
def test_memory_that_cannot_be(memory: object) -> None:
    with pytest.raises(ConfigurationError if memory != "16" else TypeError, match="memory"):
        Linux(memory=memory)  # type: ignore[arg-type]


# ---- the command line ----


def pyvmm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_kernels_file_chooses_the_platform(tmp_path: Path) -> None:
    """And where this KVM cannot run kernels, that is said."""
    file = tmp_path / "bzImage"
    file.write_bytes(kernel(SAY_COMMAND_LINE))
    result = pyvmm(file, "--append", "hello", "--json")
    report = json.loads(result.stdout)
    with Kvm() as kvm:
        works, seen = try_kernel_code(kvm)
    if works:
        assert (result.returncode, report["serial"]) == (0, "hello")
        assert (report["platform"], report["mode"]) == ("linux", "long")
    else:
        assert (result.returncode, report["result"]) == (4, "skip")
        assert report["reason"].startswith(f"platform linux: {seen}; this KVM runs kernels by")
        assert result.stderr == f"pyvmm: {report['reason']}\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--memory", "16"], "bzImage: it needs memory from 0x1000000 to 0x1400000"),
        (["--append", "x" * 3000], "command line of 3000 bytes"),
        (["--initrd", "/"], "initrd /: Is a directory"),
        (["--initrd", "/nowhere"], "initrd /nowhere: No such file or directory"),
        (["--initrd", "/dev/zero"], "initrd /dev/zero: it is no regular file"),
        (["--initrd", "empty"], "initrd empty: it is empty"),
        (["--initrd", "bzImage", "--memory", "20"], "initrd of 6144 bytes: 0 bytes are left"),
        (["--load", "0x1000"], "--load: the platform linux has no use for it"),
        (["--vcpus", "65"], "65 vCPUs: the platform linux has room for 1 to 64"),
        (["--memory", "0"], "memory in MiB 0"),
        (["--param", "A=1"], "takes parameters"),
    ],
)
def test_one_line_for_what_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bzImage").write_bytes(bzimage())
    (tmp_path / "empty").touch()
    result = pyvmm("bzImage", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("pyvmm: ") and result.stderr.count("\n") == 1
    assert complaint in result.stderr
