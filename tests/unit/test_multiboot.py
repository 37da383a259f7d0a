"""Multiboot headers, what a guest is told, and the devices that only multiboot guests have."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.debug_exit import DebugExit, status_of
from pyvmm.devices.end_of_run import EndOfRun
from pyvmm.devices.fw_cfg import FirmwareConfiguration
from pyvmm.devices.hpet import HPET_GPA, Hpet
from pyvmm.devices.test_device import TestDevice
from pyvmm.errors import ConfigurationError, GuestError
from pyvmm.guest.acpi import ACPI_GPA
from pyvmm.guest.image import Segment
from pyvmm.guest.multiboot import Multiboot
from pyvmm.guest.multiboot_header import MAGIC, find_header, multiboot_image
from pyvmm.guest.multiboot_info import Module, boot_information, memory_map
from pyvmm.guest.options import PlatformOptions
from pyvmm.guest.pc_devices import Printed
from pyvmm.guest.pc_memory import DEVICES, pc_ram
from pyvmm.guest.placing import LOW_END, place_below

MOST = 16 << 20


def header(flags: int = 0, addresses: tuple[int, ...] = (), checksum: int | None = None) -> bytes:
    right = -(MAGIC + flags) & 0xFFFFFFFF
    words = (MAGIC, flags, right if checksum is None else checksum, *addresses)
    return struct.pack(f"<{len(words)}I", *words)


def kludge(load: int = 0x100000, size: int = 64, **changes: int) -> bytes:
    """An a.out guest: a header that says where to load it."""
    values = {"header": load, "load": load, "load_end": 0, "bss_end": 0, "entry": load + 32}
    values.update(changes)
    return header(1 << 16, tuple(values.values())).ljust(size, b"\x90")


def test_a_header_is_found_in_the_first_8_kib_and_nowhere_else() -> None:
    for at in (0, 4, 8192 - 12):
        found = find_header(bytes(at) + header())
        assert found is not None and found.at == at
    for bad in (bytes(2) + header(), bytes(8192 - 8) + header(), header(checksum=1), header()[:11]):
        assert find_header(bad + bytes(64)) is None or bad == header()[:11]


def test_a_wrong_one_does_not_hide_the_right_one() -> None:
    found = find_header(header(checksum=1) + header())
    assert found is not None and found.at == 12


def test_the_addresses_of_a_header_load_it() -> None:
    image = multiboot_image("guest", kludge(bss_end=0x100000 + 256), MOST)
    (segment,) = image.segments
    assert (segment.gpa, len(segment.data), segment.zeros) == (0x100000, 64, 192)
    assert image.entry == 0x100020


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x90" * 64, "no multiboot header"),
        (header(), "no ELF file"),
        (header(1 << 5), "asks for 0x20"),
        (header(1 << 16), "cut short"),
        (kludge(header=0xFF000), "is not in what it loads"),
        (kludge(load_end=0x200000), "past the file"),
        (kludge(load_end=0xFF000), "past the file"),
        (kludge(bss_end=0x100010), ".bss"),
        (kludge(bss_end=0xFFFFFFFF), "bytes of RAM"),
        (kludge(entry=0), "lies in nothing"),
    ],
)
def test_headers_that_cannot_be(data: bytes, said: str) -> None:
    with pytest.raises(GuestError, match=said):
        multiboot_image("guest", data, MOST)


def test_a_video_mode_is_not_given_and_that_is_said() -> None:
    addresses = (0x100000, 0x100000, 0, 0, 0x100020)
    data = header(1 << 16 | 1 << 2, addresses).ljust(64, b"\x90")
    image = multiboot_image("guest", data, MOST)
    assert image.entry == 0x100020 and "video mode" in image.remark and "\n" not in image.remark
    assert multiboot_image("guest", kludge(), MOST).remark == ""


@given(st.binary(max_size=128))
def test_no_header_breaks_the_reader(data: bytes) -> None:
    for start in (b"", header(), header(1 << 16), b"\x7fELF" + header()):
        try:
            multiboot_image("guest", start + data, MOST)
        except GuestError as error:
            assert "\n" not in str(error)


def test_what_a_guest_is_told() -> None:
    ram = ((0, 64 << 20), (1 << 32, 1 << 20))
    module = Module(b"file a=1", b"12345")
    gpa = 0x9000
    told = boot_information(gpa, b"name -x", [(0x200000, module)], ram)

    def word(at: int) -> int:
        return int(struct.unpack_from("<I", told, at - gpa)[0])

    def text(at: int) -> bytes:
        return told[at - gpa :].partition(b"\0")[0]

    assert word(gpa) & 0b1001101 == 0b1001101
    assert (word(gpa + 4), word(gpa + 8)) == (639, (63 << 20) >> 10)
    assert text(word(gpa + 16)) == b"name -x"
    assert word(gpa + 20) == 1
    at = word(gpa + 24)
    assert (word(at), word(at + 4), text(word(at + 8))) == (0x200000, 0x200005, b"file a=1")
    assert text(word(gpa + 64)) == b"pyvmm"
    length, at = word(gpa + 44), word(gpa + 48)
    ranges = []
    end = at + length
    while at < end:
        ranges.append(struct.unpack_from("<QQI", told, at - gpa + 4))
        at += word(at) + 4
    assert ranges == memory_map(ram)
    assert (1 << 32, 1 << 20, 1) in ranges
    assert all(start + size <= 0xA0000 or start >= 0xF0000 for start, size, _ in ranges)


class Stored(dict[int, bytes]):
    """RAM that keeps what was stored, by GPA."""

    def write_ram(self, gpa: int, data: bytes) -> None:
        self[gpa] = data

    def flush(self, gpa: int) -> None:
        raise AssertionError("nothing is flushed before a guest runs")


@pytest.mark.parametrize(
    ("load", "sizes", "places"),
    [
        (0x8000, (8, 0x1000), (0x9000, 0xA000)),
        (0x8000, (8, 0x100000, 8), (0x9000, 0x100000, 0x200000)),
        (0x9F000, (8,), (0x100000,)),
        (0x9E000, (8, 8), (0x9F000, 0x100000)),
        (0x9C000, (8, 8), (0x9D000, 0x100000)),
        (0x100000, (0x100000, 8), (0x101000, 0x201000)),
    ],
)
def test_modules_lie_where_a_pc_has_memory(
    load: int, sizes: tuple[int, ...], places: tuple[int, ...], tmp_path: Path
) -> None:
    """Above 639 KiB are reserved pages, the ACPI tables among them; memory goes on at 1 MiB."""
    names = []
    for number, size in enumerate(sizes):
        names.append(tmp_path / str(number))
        names[-1].write_bytes(bytes([number + 1]) * size)
    options = PlatformOptions(memory=16, initrd=",".join(map(str, names)))
    platform, ram = Multiboot(options), Stored()
    platform.load(platform.image("guest", kludge(load)), ram, 1)
    assert tuple(sorted(gpa for gpa, data in ram.items() if len(set(data)) == 1)) == places
    assert ram[ACPI_GPA].startswith(b"RSD PTR ")
    assert_apart(ram)


def test_many_modules_leave_room_for_what_the_guest_is_told(tmp_path: Path) -> None:
    module = tmp_path / "m"
    module.write_bytes(b"x")
    options = PlatformOptions(memory=16, initrd=",".join([f"{module} {'a' * 200}"] * 1000))
    platform, ram = Multiboot(options), Stored()
    platform.load(platform.image("guest", kludge(0x8000)), ram, 1)
    assert list(ram.values()).count(b"x") == 1000
    assert_apart(ram)


def assert_apart(ram: Stored) -> None:
    """Nothing was stored over something else."""
    pieces = sorted((gpa, gpa + len(data)) for gpa, data in ram.items())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(pieces))


def test_variables_over_the_acpi_tables_are_zero() -> None:
    """The tables are there before the guest, which may lie over them."""
    platform, ram = Multiboot(PlatformOptions(memory=16)), Stored()
    platform.load(platform.image("guest", kludge(0xD0000, bss_end=0xF0000)), ram, 1)
    tables = ram[ACPI_GPA]
    assert set(tables) == {0} and len(tables) > 0x100


def test_memory_goes_on_above_the_devices() -> None:
    assert pc_ram(1) == ((0, 1 << 20),)
    assert pc_ram(4096) == ((0, DEVICES), (1 << 32, (4 << 30) - DEVICES))
    with pytest.raises(ConfigurationError):
        pc_ram(0)


def test_room_is_found_beside_what_is_loaded() -> None:
    assert place_below("it", 100, []) == LOW_END - 100 & -4096
    taken = [(0x8000, 0x20000), (0x90000, 0xB0000)]
    assert place_below("it", 100, taken) == 0x8F000
    with pytest.raises(ConfigurationError):
        place_below("it", 100, [(0, LOW_END)])
    assert Segment(0, b"ab", zeros=3).end == 5


# ---- devices ----


def test_the_debug_exit_port_ends_the_run() -> None:
    with pytest.raises(EndOfRun) as end:
        DebugExit().write(0xF4, 4, 3)
    assert (end.value.passed, end.value.code) == (False, 3)
    assert (status_of(0), status_of(1), status_of(38), status_of(0x180)) == (1, 3, 77, 1)


def test_firmware_configuration_reads_a_keys_bytes_and_then_zeros() -> None:
    device = FirmwareConfiguration.of_machine(3, 255, 256 << 20)

    def value(key: int, size: int) -> bytes:
        device.write(0x510, 2, key)
        return bytes(device.read(0x511, 1) for _ in range(size))

    assert value(0, 5) == b"QEMU\0"
    assert value(5, 2) == b"\x03\0"
    assert value(3, 8) == (256 << 20).to_bytes(8, "little")
    assert value(0xF, 2) == b"\xff\0"
    assert value(0x7FFF, 8) == bytes(8)
    device.write(0x510, 1, 5)
    device.write(0x511, 1, 5)
    assert device.read(0x510, 2) == 0xFFFF


def test_the_test_device() -> None:
    lines: list[tuple[int, bool]] = []
    flushed: list[int] = []
    device = TestDevice(lambda number, level: lines.append((number, level)), flushed.append)
    device.write(0xE0, 4, 0x11223344)
    assert [device.read(0xE0 + at, 1) for at in range(4)] == [0x44, 0x33, 0x22, 0x11]
    device.write(0xEA, 2, 0xAABB)
    assert device.read(0xE0, 4) == 0xAABB3344
    assert device.read(0xE2, 4) == 0xFFFFAABB
    device.write(0xE4, 4, 0x123456)
    device.write(0x200B, 4, 1)
    device.write(0x2017, 2, 0x101)
    assert flushed == [0x123456]
    assert lines == [(11, True), (12, False), (13, False), (14, False), (23, True)]
    device.write(0xFF00FFFE, 4, 0x12345678)
    assert device.read(0xFF00FFFE, 4) == 0xFFFF5678
    assert device.read(0x2000, 1) == 0xFF


def test_what_a_guest_prints_is_kept_up_to_a_mebibyte_and_counted() -> None:
    shown: list[int] = []
    printed = Printed(lambda data: shown.append(len(data)))
    for _ in range(3):
        printed.take(b"x" * 400_000)
    assert len(printed.output) == 1 << 20
    assert printed.dropped == 1_200_000 - (1 << 20)
    assert sum(shown) == 1_200_000


def test_the_hpets_counter_runs_while_it_is_enabled() -> None:
    hpet = Hpet()
    assert hpet.read(HPET_GPA + 4, 4) == 10_000_000  # femtoseconds
    assert hpet.read(HPET_GPA, 4) >> 16 == 0x8086
    stands = hpet.read(HPET_GPA + 0xF0, 8)
    assert hpet.read(HPET_GPA + 0xF0, 8) == stands
    hpet.write(HPET_GPA + 0x10, 8, 1)
    seen = [hpet.read(HPET_GPA + 0xF0, 8) for _ in range(1000)]
    assert seen == sorted(seen) and seen[-1] > seen[0]
    hpet.write(HPET_GPA + 0x10, 4, 0)
    stands = hpet.read(HPET_GPA + 0xF0, 8)
    assert hpet.read(HPET_GPA + 0xF0, 8) == stands >= seen[-1]
    hpet.write(HPET_GPA + 0xF4, 4, 7)
    assert hpet.read(HPET_GPA + 0xF0, 8) == 7 << 32 | stands & 0xFFFFFFFF
    hpet.write(HPET_GPA, 8, 0)
    assert hpet.read(HPET_GPA + 4, 4) == 10_000_000
    hpet.write(HPET_GPA + 0x3FC, 8, (1 << 64) - 1)
    assert hpet.read(HPET_GPA + 0x3FC, 8) == 0xFFFFFFFF
