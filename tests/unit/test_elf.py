"""ELF files from anybody: an image or one error, whatever their headers say."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from foreign_images import CODE, EM_X86_64, elf
from hypothesis import example, given
from hypothesis import strategies as st

from pyvmm.errors import ConfigurationError, GuestError
from pyvmm.guest.elf_kind import elf_kind
from pyvmm.guest.flat_modes import ProtectedMode
from pyvmm.guest.identify import kind_of
from pyvmm.guest.image import MAX_FILE, elf_image

WHOLE = (elf(), elf(64, machine=EM_X86_64), elf(interpreter=True))
BORDERS = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)


def taken_or_refused(data: bytes) -> None:
    kind = elf_kind(data)
    assert kind is None or kind.name
    try:
        image = elf_image("guest", data)
    except GuestError as error:
        assert "\n" not in str(error)
        return
    assert any(segment.gpa <= image.entry < segment.end for segment in image.segments)
    assert sum(len(segment.data) for segment in image.segments) <= MAX_FILE


@given(st.sampled_from(WHOLE), st.data())
def test_headers_with_other_numbers(whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        width = data.draw(st.sampled_from((1, 2, 4, 8)))
        at = data.draw(st.integers(4, len(changed) - width))
        any_number = st.integers(0, (1 << 8 * width) - 1)
        number = data.draw(any_number | st.sampled_from(BORDERS)) % (1 << 8 * width)
        changed[at : at + width] = number.to_bytes(width, "little")
    taken_or_refused(bytes(changed[: data.draw(st.integers(4, len(changed)))]))


@given(st.binary(max_size=200))
@example(b"")
def test_anything_after_the_magic_number(tail: bytes) -> None:
    taken_or_refused(b"\x7fELF" + tail)


@given(st.binary(max_size=2000))
def test_any_bytes_have_a_kind_or_none(data: bytes) -> None:
    kind = kind_of(Path("guest.bin"), data, len(data))
    assert kind is None or kind.name


@pytest.mark.parametrize("at", range(4, len(CODE) + 52 + 32))
def test_a_file_that_is_cut_anywhere(at: int) -> None:
    with pytest.raises(GuestError, match="cut short"):
        elf_image("guest", elf()[:at])


def test_program_headers_beyond_any_file() -> None:
    whole = bytearray(elf(64))
    for table in BORDERS[3:]:
        struct.pack_into("<Q", whole, 32, table)
        with pytest.raises(GuestError, match="cut short"):
            elf_image("guest", bytes(whole))


def test_program_headers_of_another_size() -> None:
    whole = bytearray(elf())
    for size in (0, 31):
        struct.pack_into("<H", whole, 42, size)
        with pytest.raises(GuestError, match=f"headers are of {size} bytes"):
            elf_image("guest", bytes(whole))


def test_an_entry_outside_of_all_segments() -> None:
    whole = bytearray(elf())
    struct.pack_into("<I", whole, 24, 0x7C00 + len(CODE))
    with pytest.raises(GuestError, match=r"entry 0x7c05 lies in none of its segments; .*ld -e"):
        elf_image("guest", bytes(whole))


@pytest.mark.parametrize("address", [0xC0107C00, 0x7C00, 0])
def test_an_entry_may_be_virtual(address: int) -> None:
    """As linkers write it for a kernel in the upper half; it begins where that lies in memory."""
    whole = bytearray(elf(at=0x107C00, address=address))
    struct.pack_into("<I", whole, 24, address + 2)
    assert elf_image("guest", bytes(whole)).entry == 0x107C02


class NoRam:
    """Nothing may be stored."""

    def write_ram(self, gpa: int, data: bytes) -> None:
        raise AssertionError(f"{gpa:#x}")

    def flush(self, gpa: int) -> None:
        raise AssertionError(f"{gpa:#x}")


@pytest.mark.parametrize(
    ("at", "remedy"), [(0x8048000, "ffffff: --memory 129 or more"), (0xFEE00000, "ffffff$")]
)
def test_a_guest_beyond_ram_is_told_how_much_it_needs(at: int, remedy: str) -> None:
    """0x8048000 is where ld puts a program of Linux."""
    image = elf_image("guest", elf(at=at), "protected")
    with pytest.raises(ConfigurationError, match=f"not in RAM; RAM of the guest .*{remedy}"):
        ProtectedMode().place(image, NoRam())


def test_what_follows_a_segments_bytes_is_not_made_of_bytes() -> None:
    whole = bytearray(elf(64))
    struct.pack_into("<Q", whole, 64 + 40, 1 << 40)
    (segment,) = elf_image("guest", bytes(whole)).segments
    assert (segment.data, segment.end - segment.gpa) == (CODE, 1 << 40)


def with_headers(at: int = 0xFF000, padding: int = 4096 - 84, entry: int = 0x100000) -> bytes:
    """A file whose one segment begins with the file's own headers, as ld makes it."""
    whole = bytearray(elf(at=at, code=bytes(padding) + CODE))
    struct.pack_into("<I", whole, 24, entry)
    struct.pack_into("<I", whole, 52 + 4, 0)
    struct.pack_into("<II", whole, 52 + 16, len(whole), len(whole) + 8)
    return bytes(whole)


def test_a_files_own_headers_need_no_ram() -> None:
    """ld -Ttext 0x100000 puts them on the page before, where no RAM is."""
    image = elf_image("guest", with_headers(), "protected")
    headers, code = image.segments
    assert (headers.gpa, headers.end, headers.is_notes) == (0xFF000, 0x100000, True)
    assert (code.gpa, code.data, code.zeros, code.is_notes) == (0x100000, CODE, 8, False)
    stored: dict[int, bytes] = {}

    class Stored(NoRam):
        def write_ram(self, gpa: int, data: bytes) -> None:
            stored[gpa] = data

    ProtectedMode().place(image, Stored())
    assert stored == {0x100000: CODE}


@pytest.mark.parametrize(
    ("entry", "sizes"),
    [
        (0xFF000 + 4, [4096 + len(CODE)]),  # in the headers themselves
        (0xFF000 + 84, [84, 4012 + len(CODE)]),  # in zeros, which are code, too
        (0x100001, [4096, len(CODE)]),
    ],
)
def test_what_a_guest_is_entered_at_is_no_header(entry: int, sizes: list[int]) -> None:
    image = elf_image("guest", with_headers(entry=entry))
    assert [len(segment.data) for segment in image.segments] == sizes
    assert not image.segments[-1].is_notes


def test_a_file_of_headers_alone_is_no_guest() -> None:
    """But what they are followed by may be zeros that the file does not have."""
    whole = bytearray(with_headers(entry=0xFF000 + 90)[:84])
    struct.pack_into("<II", whole, 52 + 16, 84, 84 + 16)
    _, variables = elf_image("guest", bytes(whole)).segments
    assert (variables.gpa, variables.data, variables.zeros) == (0xFF000 + 84, b"", 16)
    struct.pack_into("<II", whole, 52 + 16, 84, 84)
    with pytest.raises(GuestError, match="no code and no data"):
        elf_image("guest", bytes(whole))
