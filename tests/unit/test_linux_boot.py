"""What a Linux kernel is loaded with: its header, the zero page, ACPI, CPUID."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from foreign_images import DYN, EM_X86_64, elf
from tiny_kernels import bzimage

from pyvmm import ConfigurationError, GuestError
from pyvmm.guest.acpi import ACPI_GPA, acpi_tables
from pyvmm.guest.bzimage import BzImage, is_bzimage, read_bzimage
from pyvmm.guest.cpu_topology import cpuid_of_vcpu
from pyvmm.guest.image import Segment
from pyvmm.guest.linux import Linux
from pyvmm.guest.linux_boot import HIGH_MEMORY, LOW_MEMORY_END, place
from pyvmm.kvm.cpuid import CpuidEntry

MIB = 1 << 20
RAM = ((0, 64 * MIB),)


# ---- the file ----


def test_a_kernels_file() -> None:
    kernel = read_bzimage("k", bzimage())
    assert (kernel.gpa, kernel.memory, kernel.entry) == (16 * MIB, 4 * MIB, 16 * MIB + 0x200)
    assert kernel.is_64_bit and kernel.code == b"\x90" * 0x1000
    assert kernel.most_command_line == 2047 and kernel.initrd_end == 0x80000000
    assert kernel.header[:1] == b"\x03" and b"HdrS" in kernel.header
    assert len(kernel.header) == 0x202 + 0x6A - 0x1F1


def test_an_elf_file_is_told_to_be_no_bzimage() -> None:
    """It is none of ld's to link it again: vmlinux is one, and so is any program."""
    for data in (elf(), elf(64, kind=DYN, machine=EM_X86_64), b"\x7fELF"):
        with pytest.raises(GuestError, match=r"no Linux boot header .* give a bzImage"):
            Linux().image("x", data)
    assert Linux().image("k", bzimage()).segments[0].data == bzimage()


@pytest.mark.parametrize(("version", "xloadflags"), [(0x20F, 0), (0x20B, 1)])
def test_a_kernel_without_a_64_bit_entry(version: int, xloadflags: int) -> None:
    kernel = read_bzimage("k", bzimage(version=version, xloadflags=xloadflags))
    assert not kernel.is_64_bit and kernel.entry == kernel.gpa


def test_a_kernel_that_does_not_say_where_it_wants_to_be() -> None:
    kernel = read_bzimage("k", bzimage(version=0x206))
    assert (kernel.gpa, kernel.memory) == (MIB, 0x1000)


def test_no_setup_sectors_means_four() -> None:
    data = bytearray(bzimage(setup_sects=4))
    data[0x1F1] = 0
    assert len(read_bzimage("k", bytes(data)).code) == 0x1000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no Linux boot header"),
        (bytes(4096), "no Linux boot header"),
        (bzimage()[:0x250], "cut short: 592 bytes, in its header"),
        (bzimage()[:0x800], "cut short: 2048 bytes, and its header says 6144"),
        (bzimage()[:-17], "cut short: 6127 bytes, and its header says 6144"),
        (bzimage(syssize=0xFFFFFFFF), "cut short: 6144 bytes, and its header says 68719478768"),
        (bzimage(version=0x205), "boot protocol is 2.05, of before Linux 2.6.22"),
        (bzimage(loadflags=0), "zImage"),
        (bzimage(pref_address=0), "wants to be loaded at 0x0"),
        (bzimage(pref_address=(1 << 64) - 1), "wants to be loaded at 0xffffffffffffffff"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cannot_be_booted(data: bytes, words: str) -> None:
    with pytest.raises(GuestError, match=words) as caught:
        read_bzimage("kernel", data)
    assert str(caught.value).startswith("kernel: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_a_hostile_header_is_an_error_or_a_kernel(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(200):
        data = bytearray(bzimage())
        for _ in range(dice.randrange(1, 40)):
            data[dice.randrange(0x1F1, 0x270)] = dice.randrange(256)
        try:
            kernel = read_bzimage("k", bytes(data[: dice.choice((0x300, len(data)))]))
            segments = place(kernel, RAM, "x", bytes(5000))
        except (GuestError, ConfigurationError):
            continue
        check_segments(segments)


def check_segments(segments: list[Segment]) -> None:
    """They lie in RAM and do not overlap."""
    end = 0
    for segment in sorted(segments, key=lambda each: each.gpa):
        assert segment.gpa >= end
        end = segment.gpa + len(segment.data)
    assert end <= RAM[0][1]


# ---- the zero page ----


def zero_page(kernel: BzImage, initrd: bytes | None = None) -> bytes:
    segments = place(kernel, RAM, "console=ttyS0", initrd)
    check_segments(segments)
    return next(each.data for each in segments if each.gpa == 0x7000)


def test_the_zero_page() -> None:
    page = zero_page(read_bzimage("k", bzimage()), b"i" * 5000)
    assert page[0x1FE:0x206] == b"\x55\xaa\xeb\x6aHdrS"
    assert page[0x210] == 0xFF
    initrd, size, _, _, command_line = struct.unpack_from("<5I", page, 0x218)
    assert (initrd, size, command_line) == (64 * MIB - 8192, 5000, 0x20000)
    assert struct.unpack_from("<Q", page, 0x70) == (ACPI_GPA,)
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * at) for at in range(page[0x1E8])]
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xE0000, 0x20000, 2),
        (MIB, 63 * MIB, 1),
    ]


def test_memory_above_4_gib() -> None:
    kernel = read_bzimage("k", bzimage())
    ram = ((0, LOW_MEMORY_END), (HIGH_MEMORY, 512 * MIB))
    page = next(each.data for each in place(kernel, ram, "", None) if each.gpa == 0x7000)
    assert struct.unpack_from("<QQI", page, 0x2D0 + 80) == (HIGH_MEMORY, 512 * MIB, 1)
    assert struct.unpack_from("<II", page, 0x218) == (0, 0)


def test_an_initrd_lies_where_the_kernel_reaches() -> None:
    kernel = read_bzimage("k", bzimage(initrd_max=40 * MIB - 1))
    page = zero_page(kernel, b"i" * 4096)
    assert struct.unpack_from("<I", page, 0x218) == (40 * MIB - 4096,)


@pytest.mark.parametrize(
    ("kernel", "append", "initrd", "words"),
    [
        (bzimage(init_size=49 * MIB), "", None,
         "needs memory from 0x1000000 to 0x4100000, and RAM ends at 0x4000000; --memory 65"),
        (bzimage(), "x" * 2048, None, "command line of 2048 bytes: k reads at most 2047"),
        (bzimage(cmdline_size=0xFFFFFFFF), "x" * 65536, None, "k reads at most 65535"),
        (bzimage(), "é" * 1024, None, "command line of 2048 bytes"),
        (bzimage(), "a\0b", None, "it has a NUL"),
        (bzimage(), "", bytes(45 * MIB), "initrd of 47185920 bytes: 46137344 bytes are left"),
        (bzimage(initrd_max=20 * MIB), "", bytes(MIB), "the kernel takes it no higher"),
        (bzimage(initrd_max=MIB), "", bytes(MIB), "0 bytes are left"),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_has_no_room(kernel: bytes, append: str, initrd: bytes | None, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        place(read_bzimage("k", kernel), RAM, append, initrd)
    assert "\n" not in str(caught.value)


def test_what_is_a_bzimage() -> None:
    assert is_bzimage(bzimage())
    assert not is_bzimage(bzimage()[:0x203]) and not is_bzimage(b"")


# ---- ACPI ----


def test_acpi_tables_add_up() -> None:
    memory = acpi_tables(3)
    assert sum(memory[:20]) & 0xFF == sum(memory[:36]) & 0xFF == 0
    assert memory[:8] == b"RSD PTR " and memory[15] == 2

    def table(gpa: int) -> tuple[bytes, bytes]:
        at = gpa - ACPI_GPA
        length = int.from_bytes(memory[at + 4 : at + 8], "little")
        whole = memory[at : at + length]
        assert len(whole) == length and gpa % 16 == 0
        assert whole[:4] == b"FACS" or sum(whole) & 0xFF == 0
        return whole[:4], whole[36:]

    name, pointers = table(int.from_bytes(memory[24:32], "little"))
    assert name == b"XSDT"
    gpas = struct.unpack(f"<{len(pointers) // 8}Q", pointers)
    assert table(int.from_bytes(memory[16:20], "little")) == (b"RSDT", struct.pack("<2I", *gpas))
    tables = dict(map(table, gpas))
    assert sorted(tables) == [b"APIC", b"FACP"]
    fadt = bytes(36) + tables[b"FACP"]
    assert len(fadt) == 244
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert table(facs)[0] == b"FACS" and facs % 64 == 0
    assert table(dsdt) == (b"DSDT", b"\x08\\_S5_\x12\x06\x04\0\0\0\0")
    assert struct.unpack_from("<I", fadt, 64) == (0x604,)
    assert struct.unpack_from("<I", fadt, 76) == (0x608,)
    assert struct.unpack_from("<QB", fadt, 120) == (0xCF9, 6)
    assert struct.unpack_from("<Q", fadt, 140) == (dsdt,)
    entries, kinds = tables[b"APIC"][8:], []
    while entries:
        kinds.append(entries[0])
        entries = entries[entries[1] :]
    assert kinds == [0, 0, 0, 1, 2, 4]


# ---- CPUID ----

LEAVES = [
    CpuidEntry(0, 0, 0, 0x1F, 0, 0, 0),
    CpuidEntry(1, 0, 0, 0x600F12, 0x05100800, 0x00200000, 0x01000000),
    CpuidEntry(4, 0, 1, 0x3C004121, 0, 0, 0),
    CpuidEntry(4, 3, 1, 0x3C01C163, 0, 0, 0),
    CpuidEntry(4, 4, 1, 0, 0, 0, 0),
    CpuidEntry(0xB, 0, 1, 1, 2, 0x100, 5),
    CpuidEntry(0xB, 1, 1, 4, 16, 0x201, 5),
    CpuidEntry(0x1F, 0, 1, 1, 2, 0x100, 5),
    CpuidEntry(0x80000008, 0, 0, 0x3030, 0, 0x700F, 0),
    CpuidEntry(0x8000001E, 0, 0, 5, 0x102, 0, 0),
]


@pytest.mark.parametrize(
    ("vcpus", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (64, 6), (65, 7), (255, 8)]
)
def test_every_vcpu_has_its_own_numbers(vcpus: int, bits: int) -> None:
    for index in range(vcpus):
        leaves = {
            (each.function, each.index): each
            for each in cpuid_of_vcpu(LEAVES, index, vcpus, tsc_deadline=True)
        }
        first = leaves[1, 0]
        assert first.ebx == index << 24 | vcpus << 16 | 0x0800
        assert first.ecx == 0x81200000
        assert bool(first.edx >> 28 & 1) == (vcpus > 1)
        cores = min(vcpus, 64) - 1 << 26  # six bits
        assert leaves[4, 0].eax == 0x121 | cores
        assert leaves[4, 3].eax == 0x163 | cores | (1 << bits) - 1 << 14
        assert all(each.eax < 1 << 32 for each in leaves.values())
        core = leaves[0xB, 1]
        assert (core.eax, core.ebx, core.ecx, core.edx) == (bits, vcpus, 0x201, index)
        assert leaves[0xB, 2].ebx == 0
        assert (0x1F, 0) not in leaves
        assert leaves[0x80000008, 0].ecx == bits << 12 | vcpus - 1
        assert leaves[0x8000001E, 0].eax == index
    assert cpuid_of_vcpu([LEAVES[0]], 0, 1, tsc_deadline=False) == [replace(LEAVES[0])]
