"""The platform bare: what the first programs on the KVM API give their guests."""

from __future__ import annotations

import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
from foreign_images import EM_386, EM_X86_64, elf
from pyvmm_command import ROOT, pyvmm

from pyvmm import Machine, Result
from pyvmm.guest.bare import Bare
from pyvmm.guest.options import PlatformOptions
from pyvmm.guest.paging_probe import try_protected_paging
from pyvmm.kvm.system import Kvm

EXAMPLES = sorted((ROOT / "examples" / "bare").glob("*.S"))
_COMMAND = re.compile(r"^#     pyvmm ((?:[^\\\n]|\\\n)*)", re.MULTILINE)
PRINTS = {
    "add": "4\n",
    "boot_sector": "hello from a boot sector\r\n",
    "count": "",
    "hello16": "hello from real mode\n",
    "hello32": "hello from protected mode\n",
    "hello64": "hello from long mode\n",
    "tick": "..........\n",
}


def commands() -> list[tuple[str, list[str]]]:
    """The name of each example and the words of each command in its head."""
    return [
        (path.stem, shlex.split(found.replace("\\\n#", "")))
        for path in EXAMPLES
        for found in _COMMAND.findall(path.read_text())
    ]


def guest(folder: Path, code: bytes, name: str = "guest.bin") -> Path:
    path = folder / name
    path.write_bytes(code)
    return path


HLT = b"\xf4"
SPIN = b"\xeb\xfe"


@pytest.mark.parametrize(
    ("name", "words"), commands(), ids=[" ".join([name, *words[2:]]) for name, words in commands()]
)
def test_the_command_in_an_examples_head(name: str, words: list[str]) -> None:
    found = pyvmm(*words, "--json", "--deadline", "10", cwd=ROOT)
    if found.status == 4 and any(word.startswith("cr0=0x8") for word in words):
        pytest.skip(f"the lab lane runs it: {found.json['reason']}")
    assert found.status == 0, found
    assert found.json["result"] == "pass"
    assert found.json["serial"] == PRINTS[name]
    assert found.json["platform"] == "bare"


@pytest.mark.skipif(shutil.which("nasm") is None, reason="nasm is not installed")
def test_a_boot_sector_by_nasm() -> None:
    found = pyvmm("run", ROOT / "examples/bare/boot_sector.nasm", "--platform", "bare", "--json")
    assert (found.status, found.json["serial"]) == (0, "hello from NASM\r\n"), found


def test_every_example_has_a_command() -> None:
    assert {name for name, _ in commands()} == set(PRINTS) == {path.stem for path in EXAMPLES}


def test_what_is_printed_is_on_stdout_once() -> None:
    words = dict(commands())["add"]
    found = pyvmm(*words, cwd=ROOT)
    assert found.stdout.startswith("4\nPASS  ")
    assert "\n4\n" not in found.stdout


@pytest.mark.parametrize(
    ("hlt", "status"), [([], 0), (["--hlt", "pass"], 0), (["--hlt", "fail"], 1)]
)
@pytest.mark.parametrize("irqchip", [[], ["--irqchip"]])
def test_what_hlt_means(hlt: list[str], irqchip: list[str], status: int, tmp_path: Path) -> None:
    path = guest(tmp_path, b"\xfa" + HLT)
    found = pyvmm("run", path, "--platform", "bare", "--json", "--deadline", "5", *hlt, *irqchip)
    assert found.status == status, found
    assert found.json["exit_code"] is None


def test_a_hlt_that_waits_for_an_interrupt_goes_on_waiting(tmp_path: Path) -> None:
    path = guest(tmp_path, b"\xfb" + HLT + SPIN)
    words = ("--platform", "bare", "--irqchip", "--json", "--deadline", "0.5")
    assert pyvmm("run", path, *words).status == 3


@pytest.mark.parametrize(("code", "status"), [(0, 0), (7, 1)])
def test_the_exit_port(code: int, status: int, tmp_path: Path) -> None:
    path = guest(tmp_path, bytes([0xB0, code, 0xE6, 0x42]) + SPIN)
    found = pyvmm("run", path, "--platform", "bare", "--exit-port", "0x42", "--json")
    assert (found.status, found.json["exit_code"]) == (status, code)


@pytest.mark.parametrize("code", [0, 1, 0x10])
def test_the_exit_status_that_qemu_would_have(code: int, tmp_path: Path) -> None:
    path = guest(tmp_path, bytes([0xB0, code, 0xE6, 0xF4]) + SPIN)
    found = pyvmm("run", path, "--platform", "bare", "--exit-port", "0xf4,status", "--json")
    assert (found.status, found.json["exit_code"]) == (code << 1 | 1, code)


@pytest.mark.parametrize(
    "code",
    [
        b"\xb0\xfe\xe6\x64",  # out $0xfe to the keyboard controller
        b"\xba\x04\x06\xb8\x00\x20\xef",  # out $0x2000 to port 0x604
        b"\xba\xf9\x0c\xb0\x06\xee",  # out $6 to port 0xcf9
        b"\xb0\x01\xe6\x92",  # out $1 to port 0x92
    ],
    ids=["keyboard", "power", "reset", "port A"],
)
def test_resets_and_power_off_end_the_run(code: bytes, tmp_path: Path) -> None:
    found = pyvmm("run", guest(tmp_path, code + SPIN), "--platform", "bare", "--json")
    assert found.status == 0, found
    assert found.json["exit_code"] is None


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (b"\xb4\x0e\xcd\x10", "INT 0x10 at 7c02: there is no BIOS, nothing handles vector 0x10"),
        (b"\xcd\x21", "INT 0x21 at 7c00: nothing handles vector 0x21, there is no DOS"),
        (b"\x31\xc9\xf7\xf1", "divide error (#DE) at CS:IP 0000:7c02: nothing handles vector 0"),
        (b"\x0f\x0b", "invalid opcode (#UD) at CS:IP 0000:7c00: nothing handles vector 6"),
    ],
    ids=["BIOS", "DOS", "DE", "UD"],
)
def test_what_nothing_handles_does_not_pass(code: bytes, said: str, tmp_path: Path) -> None:
    path = guest(tmp_path, code + HLT)
    words = ("--platform", "bare", "--exit-port", "0xf4,status", "--json", "--deadline", "5")
    found = pyvmm("run", path, *words)
    assert (found.status, found.json["result"], found.json["exit_code"]) == (1, "fail", None)
    assert found.json["reason"] == f"vCPU 0: {said}"


PAGING = """
        movl $0x83, 0x200000
        movl $0x200000, %edi
        movl %edi, %cr3
        movl %cr4, %eax
        orl $0x10, %eax
        movl %eax, %cr4
        movl %cr0, %esi
        orl $0x80000000, %esi
        movl %esi, %cr0
        hlt
"""


@pytest.mark.parametrize("platform", [["--platform", "bare"], []])
def test_a_kvm_without_paging_in_protected_mode_is_named(
    platform: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "paging.S"
    path.write_text(PAGING.replace("hlt", "xorl %eax, %eax; outl %eax, $0xf4; hlt"))
    with Kvm() as kvm:
        works, _ = try_protected_paging(kvm)
    found = pyvmm("run", path, "--mode", "protected", "--json", "--deadline", "10", *platform)
    assert found.status == (0 if works else 1), found
    said = "; this KVM has no paging in protected mode, which the guest turned on"
    assert found.json["reason"].endswith(said) != works


def test_a_guest_that_begins_with_paging(tmp_path: Path) -> None:
    code = HLT.ljust(0x1000, b"\0") + b"\x83\0\0\0"
    registers = ["--set", "cr3=0x1000", "--set", "cr4=0x10", "--set", "cr0=0x80000011"]
    with Kvm() as kvm:
        works, _ = try_protected_paging(kvm)
    words = ("--platform", "bare", "--mode", "protected", "--load", "0", *registers)
    found = pyvmm("run", guest(tmp_path, code), *words)
    if works:
        assert found.status == 0, found
    else:
        found.error(4, "paging in protected mode", "use a KVM on VMX or SVM")


def test_a_triple_fault_with_paging_of_64_bits_is_the_guests(tmp_path: Path) -> None:
    words = ("--platform", "bare", "--mode", "long", "--set", "cr3=0x5000", "--json")
    found = pyvmm("run", guest(tmp_path, HLT), *words)
    assert found.status == 1 and "no paging" not in found.json["reason"], found


def test_a_guest_has_vectors_of_its_own(tmp_path: Path) -> None:
    """Set while it runs, or because it lies there; and the stubs' port is as any other."""
    prints = b"\xba\xf8\x03\xb0\x21\xee" + HLT
    sets = b"\xc7\x06\x40\x00\x00\x7d\xc7\x06\x42\x00\x00\x00\xe6\xe6\xcd\x10"
    for code, where in (
        (sets.ljust(0x100, b"\x90") + prints, ()),
        ((b"\xcd\x10".ljust(0x40, b"\x90") + b"\x50\0\0\0").ljust(0x50) + prints, ("--load", "0")),
    ):
        path = guest(tmp_path, code)
        found = pyvmm("run", path, "--platform", "bare", "--json", "--deadline", "5", *where)
        assert (found.status, found.json["serial"]) == (0, "!"), found
        assert [each.get("port") for each in found.json["unclaimed"]] == [0xE6] * (not where)


def test_a_guest_at_0_has_zeros_behind_it(tmp_path: Path) -> None:
    """What a flat binary was made without, its variables, may lie there."""
    code = b"\xa1\x80\x00\x02\x06\xfe\x03\xe6\xf4" + HLT
    words = ("--platform", "bare", "--load", "0", "--exit-port", "0xf4", "--json")
    assert pyvmm("run", guest(tmp_path, code), *words).json["exit_code"] == 0


def test_registers_by_every_name(tmp_path: Path) -> None:
    """Each register's value is sent to COM1, the low byte of it."""
    words = ["--set", "ax=0x31", "--set", "ebx=0x32", "--set", "rsi=0x33", "--set", "es=0x34"]
    code = b"\xba\xf8\x03\xee\x88\xd8\xee\x89\xf0\xee\x8c\xc0\xee" + HLT
    found = pyvmm("run", guest(tmp_path, code), "--platform", "bare", "--json", *words)
    assert found.json["serial"] == "1234", found


def test_numbered_registers_by_every_name(tmp_path: Path) -> None:
    """Sums them up and writes the sum to the exit port."""
    words = ["--set", "r8=1", "--set", "r9d=2", "--set", "r15w=4", "--exit-port", "0xf4"]
    code = b"\x45\x01\xc8\x45\x01\xf8\x44\x89\xc0\xe7\xf4" + HLT
    found = pyvmm(
        "run", guest(tmp_path, code), "--platform", "bare", "--mode", "long", "--json", *words
    )
    assert found.json["exit_code"] == 7, found


def test_entry_is_an_address_and_ip_follows_cs(tmp_path: Path) -> None:
    code = HLT * 16 + b"\xb0\x00\xe6\x42" + SPIN
    where = ("--load", "0x20000", "--entry", "0x20010", "--set", "cs=0x2000", "--exit-port", "0x42")
    found = pyvmm("run", guest(tmp_path, code), "--platform", "bare", "--json", *where)
    assert found.json["exit_code"] == 0, found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "foo=1"], "no such register"),
        (["--set", "cs=0x10000"], "16 bits"),
        (["--set", "eax=0x100000000"], "32 bits"),
        (["--set", "flags=0x10000"], "flags has 16 bits"),
        (["--set", "r8d=0x100000000"], "r8d has 32 bits"),
        (["--set", "r15w=0x10000"], "r15w has 16 bits"),
        (["--set", "r16=1"], "no such register"),
        (["--load", "0x1000000"], "not in RAM"),
        (["--load", "0xffffff"], "reach past the end of RAM"),
        (["--load", "0x20000"], "--set cs=0x2000"),
        (["--load", "0x100000"], "use --mode protected"),
        (["--set", "cr8=16"], "cr8 has 4 bits"),
        (["--set", "rax"], "'rax' is not REG=VALUE"),
        (["--memory", "0"], "needs RAM"),
        (["--vcpus", "2"], "the platform bare has room for 1 to 1"),
        (["--views", "1"], "1 view: the platform bare has no regions: all of its memory is RAM"),
        (["--contents", "keep"], "contents kept: the platform bare has no regions"),
        (["--append", "x"], "has no use for it"),
        (["--exit-port", "0x64"], "use another port"),
        (["--exit-port", "0xf4,qemu"], "is not PORT or PORT,status"),
        (["--mode", "protected", "--entry", "0x100000000"], "is no address of 32 bits"),
        (["--mode", "long", "--load", "0", "--memory", "1", "--entry", "0x200000"], ""),
    ],
)
def test_bad_input(words: list[str], said: str, tmp_path: Path) -> None:
    found = pyvmm("run", guest(tmp_path, HLT * 2), "--platform", "bare", *words)
    if said:
        found.error(2, said)
    else:
        assert found.status in (0, 1), found


@pytest.mark.parametrize(
    ("bits", "words", "said"),
    [
        (64, [], "it is a 64-bit ELF file, and a guest begins in real mode here"),
        (64, ["--mode", "protected"], "of 64 bits, which protected mode does not run"),
        (32, ["--mode", "long"], "of 32 bits, which long mode does not run"),
        (32, [], ""),
        (32, ["--mode", "protected"], ""),
        (64, ["--mode", "real"], ""),
        (64, ["--mode", "long"], ""),
    ],
)
def test_an_elf_file_has_the_width_of_its_code(
    bits: int, words: list[str], said: str, tmp_path: Path
) -> None:
    machine = EM_X86_64 if bits == 64 else EM_386
    path = guest(tmp_path, elf(bits, machine=machine, code=HLT), "guest.elf")
    found = pyvmm("run", path, "--platform", "bare", *words)
    if said:
        found.error(2, said)
    else:
        assert found.status == 0, found


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_random_code_ends_in_one_of_the_known_ways(
    mode: str, rng: random.Random, no_leak: None
) -> None:
    """Jumps back, accesses to every port and random bytes: nothing hangs, and nothing is left."""
    for _ in range(4):
        code = b"".join(
            rng.choice((rng.randbytes(3), b"\x0f\x30", b"\xef\x42", b"\xec", b"\xe6\x20", b"\xaa"))
            for _ in range(200)
        )
        options = PlatformOptions(platform="bare", mode=mode, memory=2, exit_port=0xF4)
        platform = Bare(options)
        image = platform.image("random", code + SPIN)
        with Machine(image, platform=platform, irqchip=rng.random() < 0.5) as machine:
            report = machine.run(0.3)
        assert report.result in (Result.PASS, Result.FAIL, Result.DEADLINE), (code.hex(), report)
        assert report.serial_dropped == 0 or len(report.serial) > 0
