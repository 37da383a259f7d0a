"""Binary formats that are no real-mode code, by their magic numbers.

Machine code may be any bytes, so a format is named only where chance is out of the question: a
magic number that code could hold is believed together with what must follow it, which is a
checksum, lengths that fit the file, or a second magic number.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from pyvmm.guest.kind import Kind

SECTOR = 512
_BOOT_SIGNATURE = b"\x55\xaa"
_UNPACK = "unpack it ({}) and run what is in it"
_FIRST_SECTOR = "there is no BIOS to read a disk; its boot sector alone runs: head -c 512 FILE"
_PYC_FLAGS = (bytes(4), b"\1\0\0\0", b"\3\0\0\0")
_OTHER_CPU = "it is for another machine"
_KERNEL = "pyvmm run boots it, on the platform linux"
MULTIBOOT_2_REMEDY = "pyvmm loads multiboot 1 only: give it a header of that version, too"
_FLAT = "link a flat binary (ld --oformat binary)"
_BLANK = "is it a disk without a boot loader, or linked for another address?"
_OWN_VMM = "firmware needs the machine that it was made for (qemu -bios)"
_RAW_DISK = f"convert it to raw (qemu-img convert -O raw); {_FIRST_SECTOR}"

# At an offset, bytes that no code has there.
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\xfd7zXZ\0", "an xz archive", _UNPACK.format("xz -d")),
    (0, b"\x89LZO\0\r\n\x1a\n", "an lzop archive", _UNPACK.format("lzop -d")),
    (0, b"LZIP\1", "an lzip archive", _UNPACK.format("lzip -d")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format("7z x")),
    (0, b"Rar!\x1a\x07", "a rar archive", _UNPACK.format("unrar x")),
    (0, b"MSCF\0\0\0\0", "a cabinet archive", _UNPACK.format("cabextract")),
    (0, b"\xed\xab\xee\xdb\3\0\0", "an RPM package", _UNPACK.format("rpm2cpio")),
    (0, b"!<arch>\ndebian-binary", "a Debian package", _UNPACK.format("dpkg-deb -x")),
    (0, b"!<arch>\n", "an ar archive (a static library)", "link an ELF of it"),
    (0, b"!<thin>\n", "a thin ar archive (a static library)", "link an ELF of its members"),
    (0, b"BC\xc0\xde\x35\x14", "LLVM bitcode", "compile it to an ELF file"),
    (0, b"BC\xc0\xde\x21\x0c", "LLVM bitcode", "compile it to an ELF file"),
    (0, b"\xde\xc0\x17\x0b\0\0\0\0", "LLVM bitcode", "compile it to an ELF file"),
    (0, b"\0asm\1\0\0\0", "a WebAssembly module", _OTHER_CPU),
    (0, b"\0asm\x0d\0\1\0", "a WebAssembly component", _OTHER_CPU),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", ""),
    (0, b"\xff\xd8\xff\xe0", "a JPEG picture", ""),
    (0, b"\xff\xd8\xff\xe1", "a JPEG picture", ""),
    (0, b"GIF87a", "a GIF picture", ""),
    (0, b"GIF89a", "a GIF picture", ""),
    (0, b"%PDF-1.", "a PDF document", ""),
    (0, b"OggS\0\2", "an Ogg file", ""),
    (0, b"ANDROID!", "an Android boot image", "take the kernel out of it"),
    (0x24, b"\x18\x28\x6f\x01\0\0\0\0", "a Linux kernel for ARM (zImage)", _OTHER_CPU),
    (0, b"-rom1fs-", "a romfs file system", _FIRST_SECTOR),
    (0, b"SQLite format 3\0", "an SQLite database", ""),
    (0, b"LUKS\xba\xbe", "a LUKS volume", _FIRST_SECTOR),
    (0, b"QFI\xfb\0\0\0\1", "a qcow disk image", _RAW_DISK),
    (0, b"QFI\xfb\0\0\0\2", "a qcow2 disk image", _RAW_DISK),
    (0, b"QFI\xfb\0\0\0\3", "a qcow2 disk image", _RAW_DISK),
    (0, b"QED\0\0\x10\0\0", "a QED disk image", _RAW_DISK),
    (0, b"KDMV\1\0\0\0", "a VMDK disk image", _RAW_DISK),
    (0, b"KDMV\2\0\0\0", "a VMDK disk image", _RAW_DISK),
    (0, b"KDMV\3\0\0\0", "a VMDK disk image", _RAW_DISK),
    (0, b"COWD\1\0\0\0", "a VMDK disk image", _RAW_DISK),
    (0, b"conectix\0\0\0\2", "a VHD disk image", _RAW_DISK),
    (0, b"vhdxfile", "a VHDX disk image", _RAW_DISK),
    (0x40, b"\x7f\x10\xda\xbe\1\0\1\0", "a VDI disk image", _RAW_DISK),
    (0x8001, b"CD001", "an ISO 9660 image", _FIRST_SECTOR),
    (SECTOR, b"EFI PART\0\0\1\0", "a disk image with a GPT", _FIRST_SECTOR),
)


def binary_kind(data: bytes, size: int) -> Kind | None:
    """What ``data`` is, the first bytes of a file of ``size`` bytes; None if it may be code."""
    for at, magic, name, remedy in _MAGIC:
        if data.startswith(magic, at):
            return Kind(name, remedy)
    for look in _LOOKS:
        kind = look(data, size)
        if kind is not None:
            return kind
    return None


MULTIBOOT_1 = "multiboot 1"


def has_multiboot_header(data: bytes) -> str:
    """ "multiboot 1" or "multiboot 2", with a right checksum where a loader looks; or ""."""
    at = -1
    while (at := data.find(b"\x02\xb0\xad\x1b", at + 1, 8192)) >= 0:
        if at % 4 == 0 and _sums_to_zero(data, at, 3):
            return MULTIBOOT_1
    while (at := data.find(b"\xd6\x50\x52\xe8", at + 1, 32768)) >= 0:
        if at % 8 == 0 and _sums_to_zero(data, at, 4):
            return "multiboot 2"
    return ""


def _sums_to_zero(data: bytes, at: int, words: int) -> bool:
    if at + 4 * words > len(data):
        return False
    total: int = sum(struct.unpack_from(f"<{words}I", data, at))
    return total % (1 << 32) == 0


def _is_bootable(data: bytes) -> bool:
    return data[SECTOR - 2 : SECTOR] == _BOOT_SIGNATURE


def _linux(data: bytes, size: int) -> Kind | None:
    if _is_bootable(data) and data[0x202:0x206] == b"HdrS":
        return Kind("a Linux kernel (bzImage)", _KERNEL, platform="linux")
    if data[56:60] == b"ARM\x64" and data[:2] != b"\0\0":
        return Kind("a Linux kernel for AArch64", _OTHER_CPU)
    if data[48:56] == b"RISCV\0\0\0" and data[56:60] == b"RSC\x05":
        return Kind("a Linux kernel for RISC-V", _OTHER_CPU)
    return None


def _multiboot(data: bytes, size: int) -> Kind | None:
    version = has_multiboot_header(data)
    # A boot sector may bring a multiboot kernel along, and begins in real mode all the same.
    if version and not _is_bootable(data):
        what = f"a {version} image, which starts in protected mode"
        if version == MULTIBOOT_1:
            return Kind(what, "use --platform multiboot", platform="multiboot")
        return Kind(what, MULTIBOOT_2_REMEDY)
    return None


def _dos_or_windows(data: bytes, size: int) -> Kind | None:
    if data[:2] not in (b"MZ", b"ZM") or len(data) < 0x1C:
        return None
    if len(data) >= 0x40:
        (new,) = struct.unpack_from("<I", data, 0x3C)
        signature = data[new : new + 4]
        if signature == b"PE\0\0":
            return _portable_executable(data, new)
        if new >= 0x40 and signature[:2] in (b"NE", b"LE", b"LX"):
            return Kind(f"an {signature[:2].decode()} executable of Windows or OS/2", _FLAT)
    last, pages, relocations, head = struct.unpack_from("<4H", data, 2)
    table = struct.unpack_from("<H", data, 0x18)[0]
    length = pages * 512 - (512 - last if last else 0)
    fits = last < 512 and pages > 0 and 0x1C <= 16 * head <= length <= size
    if fits and table + 4 * relocations <= 16 * head:
        return Kind("a DOS executable (MZ)", f"there is no DOS; {_FLAT}")
    return None


def _portable_executable(data: bytes, at: int) -> Kind:
    machines = {0x14C: "i386", 0x8664: "x86-64", 0x1C4: "ARM", 0xAA64: "AArch64", 0x5064: "RISC-V"}
    number = int.from_bytes(data[at + 4 : at + 6], "little")
    machine = machines.get(number, f"machine {number:#x}")
    subsystem = int.from_bytes(data[at + 0x5C : at + 0x5E], "little")
    what = "an EFI application" if 10 <= subsystem <= 13 else "a Windows executable"
    return Kind(f"{what} (PE, {machine})", _FLAT)


def _old_objects(data: bytes, size: int) -> Kind | None:
    """What assemblers and linkers of 16-bit times make."""
    # Minix's a.out for the 8086: magic, flags, CPU, and the header's length of 32 or 48.
    if data[:2] == b"\x01\x03" and data[3:5] in (b"\4\x20", b"\4\x30") and not any(data[5:8]):
        return Kind("a Minix a.out executable", "link a flat binary (ld86 -d)")
    # Intel's object format: the module's name in a record with a checksum, then another record.
    if data[:1] == b"\x80" and len(data) > 5:
        length = int.from_bytes(data[1:3], "little")
        record, follows = data[: length + 3], data[length + 3 : length + 4]
        fits = 2 + data[3] == length and follows in (b"\x88", b"\x8c", b"\x96", b"\x98", b"\x9a")
        if fits and (sum(record) % 256 == 0 or record[-1] == 0):
            return Kind("an OMF object (.obj)", "link a flat binary of it")
    return None


def _unix_a_out(data: bytes, size: int) -> Kind | None:
    """Unix's format before ELF: sizes of text and data that lie in the file, and an entry."""
    if len(data) < 32 or data[2:4] not in (b"\x64\0", b"\0\0"):
        return None
    magic, _, text, content, _, symbols, _, *moves = struct.unpack_from("<HH7I", data)
    # ZMAGIC begins its text at 1024, the others right behind the header or with it.
    begins = {0o407: 32, 0o410: 32, 0o413: 1024, 0o314: 0}.get(magic)
    if begins is None or not text:
        return None
    length = begins + text + content + symbols + sum(moves)
    if length <= size and text % 4 == content % 4 == symbols % 12 == 0:
        return Kind("an a.out executable or object", _FLAT)
    return None


def _coff(data: bytes, size: int) -> Kind | None:
    if data[:2] not in (b"\x4c\x01", b"\x64\x86") or len(data) < 60:
        return None
    sections, _, symbols, count, optional, _ = struct.unpack_from("<HIIIHH", data, 2)
    fits = 0 < sections < 0x100 and optional == 0 and 20 + 40 * sections <= symbols
    if fits and symbols + 18 * count + 4 <= size and data[20:21] in (b".", b"/", b"_"):
        return Kind("a COFF object", _FLAT)
    return None


def _compressed(data: bytes, size: int) -> Kind | None:
    if data[:3] == b"\x1f\x8b\x08" and _is_gzip(data):
        return Kind("a gzip archive", _UNPACK.format("gzip -d"))
    blocks = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
    if data[:3] == b"BZh" and data[3:4] in b"123456789" and data[4:10] in blocks:
        return Kind("a bzip2 archive", _UNPACK.format("bzip2 -d"))
    if data[:4] == b"\x28\xb5\x2f\xfd" and _is_zstd(data, size):
        return Kind("a zstd archive", _UNPACK.format("zstd -d"))
    if data[:4] == b"\x04\x22\x4d\x18" and len(data) > 6 and _is_lz4(*data[4:6]):
        return Kind("an lz4 archive", _UNPACK.format("lz4 -d"))
    if data[:3] == b"\x5d\0\0" and data[5:13] == b"\xff" * 8:
        return Kind("an lzma archive", _UNPACK.format("xz -d"))
    return None


def _is_gzip(data: bytes) -> bool:
    """Whether the header has a method and a system that exist, and what follows unpacks."""
    if len(data) < 18 or data[8] not in (0, 2, 4) or data[9] not in (*range(14), 255):
        return False
    unpacking = zlib.decompressobj(31)
    try:
        return bool(unpacking.decompress(data, 1 << 12)) or unpacking.eof
    except zlib.error:
        return False


def _is_zstd(data: bytes, size: int) -> bool:
    """Whether the frame's header is right, and its first block lies in the file."""
    if len(data) < 9 or data[4] & 0x18:
        return False
    whole, dictionary, length = data[4] >> 5 & 1, data[4] & 3, data[4] >> 6
    at = 6 - whole + (0, 1, 2, 4)[dictionary] + (whole, 2, 4, 8)[length]
    block = int.from_bytes(data[at : at + 3], "little")
    kind, block_size = block >> 1 & 3, block >> 3
    return kind < 3 and at + 3 + (1 if kind == 1 else block_size) <= size


def _is_lz4(flags: int, block: int) -> bool:
    """Whether the frame's descriptor has its version, its block size and zeros for the rest."""
    return flags & 0xC2 == 0x40 and block & 0x8F == 0 and block >> 4 >= 4


def _archive(data: bytes, size: int) -> Kind | None:
    if data[:4] == b"PK\3\4" and len(data) >= 30:
        version, flags, method = struct.unpack_from("<HHH", data, 4)
        if version & 0xFF < 100 and method < 100 and flags & 0xC000 == 0:
            return Kind("a zip archive", _UNPACK.format("unzip"))
    if data[:4] == b"PK\5\6" and size >= 22 and data[4:8] == bytes(4):
        return Kind("an empty zip archive")
    if data[:6] in (b"070701", b"070702", b"070707") and data[6:76].isalnum():
        return Kind("a cpio archive", _UNPACK.format("cpio -i"))
    return _tar(data)


def _tar(data: bytes) -> Kind | None:
    """Old archives have no magic number, but all have a checksum of their header."""
    try:
        told = int(data[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    header = data[:148] + b" " * 8 + data[156:SECTOR]
    if len(header) == SECTOR and any(data[:100]) and sum(header) == told:
        return Kind("a tar archive", _UNPACK.format("tar -xf"))
    return None


def _firmware(data: bytes, size: int) -> Kind | None:
    """What a boot loader, a flasher or a BIOS takes."""
    uf2 = b"UF2\n\x57\x51\x5d\x9e"
    if data[:8] == uf2 and data[508:512] == b"\x30\x6f\xb1\x0a":
        return Kind("UF2 firmware for a microcontroller", _OTHER_CPU)
    if data[:4] == b"\x27\x05\x19\x56" and len(data) >= 64:
        without_sum = data[:4] + bytes(4) + data[8:64]
        if zlib.crc32(without_sum) == int.from_bytes(data[4:8], "big"):
            return Kind("a U-Boot image (uImage)", "U-Boot starts it; mkimage -l says what it is")
    if data[:4] == b"\xd0\x0d\xfe\xed" and len(data) >= 28:
        total, tree, strings, _, version = struct.unpack_from(">5I", data, 4)
        if max(tree, strings) <= total <= size and 0 < version < 0x100:
            is_fit = b"images\0" in data and b"data-" in data
            return Kind("a FIT image of U-Boot" if is_fit else "a device tree (dtb) or FIT image")
    if data[:2] == b"\x55\xaa" and len(data) > 3:
        length = SECTOR * data[2]
        if 0 < length <= size == len(data) and size % SECTOR == 0 and sum(data[:length]) % 256 == 0:
            return Kind(
                "an option ROM, which a BIOS calls at its byte 3", "cut it: tail -c +4 FILE"
            )
    if data[40:44] == b"_FVH" and not any(data[:16]):
        return Kind("a UEFI firmware volume", _OWN_VMM)
    if (
        size == len(data)
        and size % 0x10000 == 0
        and data[-16:-15] == b"\xea"
        and data[-13:-11] == b"\0\xf0"
    ):
        return Kind("a BIOS, which starts at its last 16 bytes", _OWN_VMM)
    return None


def _other_machines(data: bytes, size: int) -> Kind | None:
    if data[:4] == b"\xca\xfe\xba\xbe" and len(data) >= 8:
        # Java's version number and the number of CPUs of a Mach-O file stand in one place.
        number = int.from_bytes(data[4:8], "big")
        if 45 <= number & 0xFFFF < 0x100:
            return Kind("a Java class", _OTHER_CPU)
        if 0 < number < 45:
            return Kind("a Mach-O file for several CPUs", _FLAT)
    orders = {b"\xce\xfa\xed\xfe": "<", b"\xcf\xfa\xed\xfe": "<"}
    orders |= {b"\xfe\xed\xfa\xce": ">", b"\xfe\xed\xfa\xcf": ">"}
    if data[:4] in orders and len(data) >= 16:
        (kind,) = struct.unpack_from(f"{orders[data[:4]]}I", data, 12)
        if 0 < kind < 0x20:
            return Kind("a Mach-O file", _FLAT)
    if data[:2] == b"BM" and data[6:10] == bytes(4) and data[2:6] == size.to_bytes(4, "little"):
        return Kind("a BMP picture")
    if data[:4] == b"RIFF" and data[8:12] in (b"WAVE", b"AVI ", b"WEBP"):
        return Kind("a RIFF file (sound or pictures)")
    if data[2:4] == b"\r\n" and len(data) >= 16 and data[1] == 0x0D and data[4:8] in _PYC_FLAGS:
        return Kind("Python bytecode", _OTHER_CPU)
    return None


def _file_system(data: bytes, size: int) -> Kind | None:
    if data[:4] == b"hsqs" and data[28:32] == b"\4\0\0\0":
        return Kind("a squashfs file system", _FIRST_SECTOR)
    if data[0x438:0x43A] == b"\x53\xef" and len(data) >= 0x450:
        first, block = struct.unpack_from("<II", data, 0x414)
        (revision,) = struct.unpack_from("<I", data, 0x44C)
        if first < 2 and block < 7 and revision < 2:
            return Kind("an ext file system", _FIRST_SECTOR)
    if size > SECTOR and not any(data[:SECTOR]):
        return Kind("a file that begins with a sector of zeros, which boots nothing", _BLANK)
    if size > SECTOR and _is_bootable(data):
        if _has_partitions(data, size):
            return Kind("a disk image with a partition table", _FIRST_SECTOR)
        if _is_fat(data, size):
            return Kind("a FAT disk image", _FIRST_SECTOR)
    return None


def _has_partitions(data: bytes, size: int) -> bool:
    """Whether each entry is empty or a partition, and one begins inside the file."""
    begins_inside = False
    for at in range(446, 510, 16):
        entry = data[at : at + 16]
        if not any(entry):
            continue
        first, sectors = struct.unpack_from("<II", entry, 8)
        if entry[0] not in (0, 0x80) or not entry[4] or not first or not sectors:
            return False
        begins_inside = begins_inside or first * SECTOR < size
    return begins_inside


def _is_fat(data: bytes, size: int) -> bool:
    each, cluster, reserved, tables, _, few, media = struct.unpack_from("<HBHBHHB", data, 11)
    (many,) = struct.unpack_from("<I", data, 32)
    return (
        data[0] in (0xEB, 0xE9)
        and each == SECTOR
        and cluster.bit_count() == 1
        and reserved > 0
        and tables in (1, 2)
        and media in (0xF0, *range(0xF8, 0x100))
        and 0 < (few or many) * SECTOR <= size
    )


_LOOKS: tuple[Callable[[bytes, int], Kind | None], ...] = (
    _linux,
    _multiboot,
    _dos_or_windows,
    _unix_a_out,
    _coff,
    _old_objects,
    _compressed,
    _archive,
    _firmware,
    _other_machines,
    _file_system,
)
