"""Files that are no real-mode guests, made here: by struct, by Python's own modules, by gcc."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

EM_386, EM_ARM, EM_X86_64, EM_AARCH64, EM_RISCV = 3, 40, 62, 183, 243
EXEC, REL, DYN, CORE = 2, 1, 3, 4
CODE = bytes.fromhex("30c0 e6f4 f4")  # what would pass, were it run


class Foreign(NamedTuple):
    """A file's name and bytes, and words that the one line about it must have."""

    name: str
    data: bytes
    words: tuple[str, ...]


def elf(
    bits: int = 32,
    kind: int = EXEC,
    machine: int = EM_386,
    at: int = 0x7C00,
    order: str = "<",
    code: bytes = CODE,
    address: int | None = None,
    interpreter: bool = False,
) -> bytes:
    """An ELF file with one PT_LOAD of ``code`` at ``at``, and perhaps a PT_INTERP."""
    address = at if address is None else address
    head, each = (64, 56) if bits == 64 else (52, 32)
    count = 1 + interpreter
    offset = head + each * count
    ident = bytes([0x7F, *b"ELF", bits // 32, 1 if order == "<" else 2, 1]).ljust(16, b"\0")
    word = "Q" if bits == 64 else "I"
    header = struct.pack(
        f"{order}HHI{word * 3}IHHHHHH", kind, machine, 1, at, head, 0, 0, head, each, count, 0, 0, 0
    )
    programs = b""
    for what in (1, 3)[:count]:
        if bits == 64:
            fields = (what, 7, offset, address, at, len(code), len(code), 1)
            programs += struct.pack(f"{order}IIQQQQQQ", *fields)
        else:
            fields = (what, offset, address, at, len(code), len(code), 7, 1)
            programs += struct.pack(f"{order}IIIIIIII", *fields)
    return ident + header + programs + code


def multiboot1(before: int = 0) -> bytes:
    magic, flags = 0x1BADB002, 3
    header = struct.pack("<III", magic, flags, -(magic + flags) & 0xFFFFFFFF)
    return b"\xeb\x0e".ljust(before + 4, b"\x90") + header + CODE


def multiboot2(before: int = 0) -> bytes:
    magic, length = 0xE85250D6, 24
    header = struct.pack("<IIII", magic, 0, length, -(magic + length) & 0xFFFFFFFF)
    return b"\xeb\x1e".ljust(before + 8, b"\x90") + header + struct.pack("<HHI", 0, 0, 8) + CODE


def boot_sector(code: bytes = CODE, table: bytes = b"") -> bytes:
    return code.ljust(446, b"\0")[:446] + table.ljust(64, b"\0") + b"\x55\xaa"


def bzimage(start: bytes = b"\xea\x05\0\xc0\x07") -> bytes:
    return boot_sector(start) + b"\xeb\x66HdrS" + struct.pack("<H", 0x20F) + bytes(2048)


def portable_executable(machine: int, subsystem: int) -> bytes:
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    head = b"PE\0\0" + struct.pack("<HHIIIHH", machine, 1, 0, 0, 0, 0xF0, 0x22)
    optional = struct.pack("<H", 0x20B).ljust(0x44, b"\0") + struct.pack("<H", subsystem)
    return dos.ljust(0x80, b"\0") + head + optional.ljust(0xF0, b"\0") + CODE.ljust(512, b"\0")


def dos_executable() -> bytes:
    fields = struct.pack("<13H", 37, 1, 0, 2, 0, 0xFFFF, 0, 0x100, 0, 0, 0, 0x1C, 0)
    return (b"MZ" + fields).ljust(32, b"\0") + CODE


def coff_object() -> bytes:
    header = struct.pack("<HHIIIHH", 0x8664, 1, 0, 20 + 40 + len(CODE), 1, 0, 0)
    section = b".text\0\0\0" + struct.pack("<IIIIIIHHI", 0, 0, len(CODE), 60, 0, 0, 0, 0, 0x20)
    return header + section + CODE + bytes(18) + struct.pack("<I", 4)


def a_out(magic: int = 0o407) -> bytes:
    text = CODE.ljust(8, b"\0")
    header = struct.pack("<HH7I", magic, 0x64, len(text), 0, 0, 0, 0x7C00, 0, 0)
    return header.ljust(1024 if magic == 0o413 else 32, b"\0") + text


def intel_hex(data: bytes) -> bytes:
    body = bytes([len(data), 0x7C, 0, 0]) + data
    record = body + bytes([-sum(body) & 0xFF])
    return f":{record.hex().upper()}\r\n:00000001FF\r\n".encode()


def s_record(data: bytes) -> bytes:
    body = bytes([len(data) + 3, 0x7C, 0]) + data
    record = body + bytes([~sum(body) & 0xFF])
    return f"S1{record.hex().upper()}\nS9037C0080\n".encode()


def tar(form: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        member = tarfile.TarInfo("guest.bin")
        member.size = len(CODE)
        archive.addfile(member, io.BytesIO(CODE))
    return made.getvalue()


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("guest.bin", CODE)
    return made.getvalue()


def uimage() -> bytes:
    def header(crc: int) -> bytes:
        fields = (0x27051956, crc, 0, len(CODE), 0x7C00, 0x7C00, zlib.crc32(CODE))
        return struct.pack(">7I4B32s", *fields, 5, 3, 2, 0, b"guest")

    return header(zlib.crc32(header(0))) + CODE


def device_tree(strings: bytes = b"") -> bytes:
    tree = struct.pack(">IIIII", 1, 0, 2, 9, 0)
    total = 56 + len(tree) + len(strings)
    fields = (0xD00DFEED, total, 56, 56 + len(tree), 40, 17, 16, 0, len(strings), len(tree))
    return struct.pack(">10I", *fields) + bytes(16) + tree + strings


def uf2() -> bytes:
    head = struct.pack("<8I", 0x0A324655, 0x9E5D5157, 0, 0, 256, 0, 1, 0)
    return head.ljust(508, b"\0") + struct.pack("<I", 0x0AB16F30)


def disk(first_sector: bytes, size: int = 1 << 16) -> bytes:
    return first_sector.ljust(size, b"\0")


def partition(status: int = 0x80, kind: int = 0x83, first: int = 1, sectors: int = 64) -> bytes:
    return struct.pack("<B3xB3xII", status, kind, first, sectors)


def fat(sectors: int = 128) -> bytes:
    fields = struct.pack("<8sHBHBHHBHHH", b"MSDOS5.0", 512, 1, 1, 2, 16, sectors, 0xF8, 1, 9, 2)
    return disk(boot_sector(b"\xeb\x3c\x90" + fields), 512 * sectors)


def placed(at: int, data: bytes, size: int = 0) -> bytes:
    return (bytes(at) + data).ljust(size, b"\0")


def option_rom() -> bytes:
    rom = (b"\x55\xaa\x01" + CODE).ljust(511, b"\0")
    return rom + bytes([-sum(rom) & 0xFF])


def built_by_hand() -> Iterator[Foreign]:
    yield from _elf_files()
    yield from _for_boot_loaders()
    yield from _executables()
    yield from _packed()
    yield from _disks()
    yield from _texts()


def of_other_modes() -> Iterator[tuple[str, bytes]]:
    """Guests of protected and long mode: the mode, and an ELF file."""
    yield "long", elf(64, machine=EM_X86_64)
    yield "long", elf(64, machine=EM_X86_64, at=0x200000)
    yield "long", elf(64, machine=EM_X86_64, at=0x200000, address=0xFFFFFFFF80200000)
    yield "long", elf(32, machine=EM_X86_64)  # x32
    yield "protected", elf(at=0x200000)
    yield "protected", elf(at=0x100000)


def _elf_files() -> Iterator[Foreign]:
    yield Foreign("pie64", elf(64, DYN, EM_X86_64, 0x1000), ("64-bit ELF PIE", "-Ttext=0x100000"))
    yield Foreign("rel64.o", elf(64, REL, EM_X86_64, 0), ("64-bit ELF object",))
    yield Foreign("core", elf(64, CORE, EM_X86_64, 0), ("64-bit ELF core dump",))
    linux = elf(64, machine=EM_X86_64, at=0x1000000, address=0xFFFFFFFF81000000)
    linux += b"Linux version 6"
    yield Foreign("vmlinux", linux, ("Linux kernel (vmlinux)", "64-bit ELF"))
    yield Foreign("large", linux.ljust(17 << 20, b"\1"), ("Linux kernel (vmlinux)", "64-bit ELF"))
    yield Foreign("pie32", elf(32, DYN, at=0x1000), ("32-bit ELF PIE", "-no-pie", "-Ttext=0x7c00"))
    yield Foreign("rel32.o", elf(32, REL, at=0), ("32-bit ELF object", "ld -m elf_i386"))
    yield Foreign("dynamic", elf(interpreter=True), ("dynamically linked", "32-bit ELF"))
    yield Foreign("arm", elf(machine=EM_ARM), ("ELF file for ARM", "build it for x86"))
    yield Foreign("arm64", elf(64, machine=EM_AARCH64), ("ELF file for AArch64",))
    yield Foreign("riscv", elf(64, machine=EM_RISCV), ("ELF file for RISC-V",))
    yield Foreign("ppc", elf(machine=20, order=">"), ("ELF file for PowerPC, big-endian",))
    yield Foreign("odd-machine", elf(machine=4711), ("ELF file for machine 4711",))


def _for_boot_loaders() -> Iterator[Foreign]:
    yield Foreign("mb2", multiboot2(), ("multiboot 2 image", "loads multiboot 1 only"))
    yield Foreign("mb2-late", multiboot2(32000), ("multiboot 2 image",))
    kernel = elf(64, machine=EM_X86_64, at=1 << 20, code=multiboot2())
    yield Foreign("mb2-64", kernel, ("64-bit ELF executable with a multiboot 2 header",))
    kernel = elf(at=1 << 20, code=multiboot2(4))
    yield Foreign("mb2-32", kernel, ("32-bit ELF executable with a multiboot 2 header",))
    yield Foreign("bzImage", bzimage(), ("Linux kernel (bzImage)",))
    yield Foreign("bzImage-efi", bzimage(b"MZ\xea\x07\0\xc0\x07"), ("Linux kernel (bzImage)",))
    arm64 = placed(56, b"ARM\x64", 64)
    yield Foreign("Image", b"MZ" + arm64[2:], ("Linux kernel for AArch64",))
    yield Foreign("uImage", uimage(), ("uImage",))
    yield Foreign("board.dtb", device_tree(), ("device tree",))
    yield Foreign("fit.itb", device_tree(b"images\0data-size\0"), ("FIT image",))
    yield Foreign("pico.uf2", uf2(), ("UF2", "microcontroller"))
    yield Foreign("vga.rom", option_rom(), ("option ROM", "tail -c +4"))
    reset = b"\xea\x5b\xe0\0\xf006/23/99\0\xfc\0"
    yield Foreign("bios.bin", reset.rjust(1 << 16, b"\xff"), ("a BIOS",))
    yield Foreign("OVMF.fd", placed(40, b"_FVH", 4096), ("UEFI firmware",))


def _executables() -> Iterator[Foreign]:
    yield Foreign("shim.efi", portable_executable(0x8664, 10), ("EFI application (PE, x86-64)",))
    yield Foreign("a.exe", portable_executable(0x14C, 3), ("Windows executable (PE, i386)",))
    yield Foreign("a.out", a_out(), ("a.out executable",))
    yield Foreign("zmagic", a_out(0o413), ("a.out executable",))
    ne = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"NE" + bytes(62)
    yield Foreign("win16.exe", ne, ("an NE executable",))
    yield Foreign("dos.exe", dos_executable(), ("DOS executable",))
    yield Foreign("a.obj", coff_object(), ("COFF object",))
    yield Foreign("lib.a", b"!<arch>\n" + b"guest.o/".ljust(58) + b"`\n", ("static library",))
    yield Foreign("a.bc", b"BC\xc0\xde\x35\x14\0\0\5\0\0\0", ("LLVM bitcode",))
    yield Foreign("a.wasm", b"\0asm\1\0\0\0", ("WebAssembly",))
    yield Foreign("A.class", b"\xca\xfe\xba\xbe\0\0\0\x41" + bytes(8), ("Java class",))
    yield Foreign("minix", b"\1\3\x10\4\x20" + bytes(27) + CODE, ("Minix a.out",))
    theadr = b"\x80\x07\0\x05a.asm"
    omf = theadr + bytes([-sum(theadr) & 0xFF]) + b"\x96\x02\0\0\x68"
    yield Foreign("omf.obj", omf, ("OMF object",))
    macho = struct.pack("<7I", 0xFEEDFACF, 0x1000007, 3, 2, 0, 0, 0)
    yield Foreign("macho", macho, ("Mach-O",))
    yield Foreign("a.pyc", b"\xa7\r\r\n" + bytes(12) + b"\xe3", ("Python bytecode",))


def _packed() -> Iterator[Foreign]:
    yield Foreign("a.gz", gzip.compress(CODE), ("gzip archive", "gzip -d"))
    yield Foreign("a.xz", lzma.compress(CODE), ("xz archive",))
    yield Foreign("a.lzma", lzma.compress(CODE, lzma.FORMAT_ALONE), ("lzma archive",))
    yield Foreign("a.bz2", bz2.compress(CODE), ("bzip2 archive",))
    zstd = b"\x28\xb5\x2f\xfd\x20\x05\x29\0\0" + CODE
    yield Foreign("a.zst", zstd, ("zstd archive", "zstd -d"))
    yield Foreign("a.lz4", b"\x04\x22\x4d\x18\x64\x40\xa7\5\0\0\x80" + CODE, ("lz4 archive",))
    yield Foreign("a.zip", zipped(), ("zip archive",))
    yield Foreign("a.lz", b"LZIP\1\x0c" + bytes(32), ("lzip archive", "lzip -d"))
    deb = b"!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n"
    yield Foreign("a.deb", deb, ("a Debian package", "dpkg-deb -x"))
    yield Foreign("a.7z", b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24), ("7z archive",))
    yield Foreign("a.tar", tar(tarfile.USTAR_FORMAT), ("tar archive",))
    yield Foreign("gnu.tar", tar(tarfile.GNU_FORMAT), ("tar archive",))
    newc = b"070701" + b"0" * 104 + b"TRAILER!!!\0\0\0"
    yield Foreign("initrd.cpio", newc, ("cpio archive",))
    yield Foreign("a.rpm", b"\xed\xab\xee\xdb\3\0\0\0" + bytes(88), ("RPM package",))


def _disks() -> Iterator[Foreign]:
    table = boot_sector(table=partition())
    yield Foreign("disk.img", disk(table), ("disk image with a partition table", "head -c 512"))
    gpt = boot_sector(table=partition(0, 0xEE)) + b"EFI PART\0\0\1\0"
    yield Foreign("gpt.img", disk(gpt), ("GPT",))
    yield Foreign("fat.img", fat(), ("FAT disk image",))
    yield Foreign("floppy.img", disk(fat(2880)), ("FAT disk image",))
    yield Foreign("cd.iso", placed(0x8000, b"\1CD001\1", 0x9000), ("ISO 9660",))
    yield Foreign("a.qcow2", b"QFI\xfb\0\0\0\3" + bytes(96), ("qcow2", "qemu-img convert"))
    yield Foreign("a.vmdk", b"KDMV\1\0\0\0" + bytes(504), ("VMDK",))
    vdi = placed(0x40, b"\x7f\x10\xda\xbe\1\0\1\0", 512)
    yield Foreign("a.vdi", b"<<< Oracle VM" + vdi[13:], ("VDI",))
    yield Foreign("a.vhdx", b"vhdxfile" + bytes(504), ("VHDX",))
    ext4 = bytearray(0x1000)
    struct.pack_into("<IIII", ext4, 0x410, 9, 0, 2, 2)
    struct.pack_into("<H", ext4, 0x438, 0xEF53)
    struct.pack_into("<I", ext4, 0x44C, 1)
    yield Foreign("root.ext4", bytes(ext4), ("ext file system",))
    yield Foreign("root.squashfs", b"hsqs" + placed(24, b"\4\0\0\0", 96), ("squashfs",))
    minix = bytes(0x410) + b"\x7f\x13" + bytes(0x400)
    yield Foreign("root.minix", minix, ("begins with a sector of zeros", "--mode real"))
    yield Foreign("zeros.img", bytes(1 << 16), ("nothing but zeros",))


def _texts() -> Iterator[Foreign]:
    yield Foreign("a.hex", intel_hex(CODE), ("Intel HEX", "objcopy -I ihex"))
    yield Foreign("a.srec", s_record(CODE), ("S-record", "objcopy -I srec"))
    yield Foreign("bad.hex", b":057C000030C0E6F4F4F0\n", ("Intel HEX", "wrong checksum"))
    yield Foreign("bad.srec", b"S1087C0030C0E6F4F4EE\n", ("S-record", "wrong checksum"))
    c = b"#include <stdio.h>\n\nint main(void)\n{\n}\n"
    yield Foreign("no-suffix", c, ("C source", "name it .c"))
    yield Foreign("guest.h", b"int main(void) { return 0; }\n", ("C source", "name it .c"))
    yield Foreign("guest.cpp", b"int main() {}\n", ("C++ source",))
    yield Foreign("other", b"#include <vector>\nint main() { }\n", ("C++ source",))
    yield Foreign("run.sh", b"#!/bin/sh\nexec qemu\n", ("a script (#!/bin/sh)",))
    yield Foreign("run.py", b"import sys\nsys.exit(0)\n", ("Python source",))
    nasm = b"; a boot sector\nbits 16\norg 0x7c00\n  mov al, 'A'\n  times 510-($-$$) db 0\n"
    yield Foreign("boot.txt", nasm, ("NASM source", "apt install nasm", "boot.txt -o GUEST.bin"))
    gas = b"\t.code16\n\t.globl _start\n_start:\n\tmovb $1, %al\n"
    yield Foreign("guest.gas", gas, ("GNU assembly", "guest.gas GUEST.S"))
    yield Foreign("data.json", b'{"result": "pass"}\n', ("JSON",))
    yield Foreign("page.html", b"<!DOCTYPE html>\n<html></html>\n", ("HTML",))
    yield Foreign("dump.txt", b"00000000: eb3c 9000 0000 0000  .<......\n", ("hex dump", "xxd -r"))
    yield Foreign("digits", b"30 c0 e6 f4 f4\n", ("hex dump",))
    yield Foreign(
        "lfs", b"version https://git-lfs.github.com/spec/v1\n", ("Git LFS", "git lfs pull")
    )
    yield Foreign("read.me", b"Here is how to boot it.\r\nFirst, ...\r\n", ("text",))
    utf8 = "Über den Rand, später, größer; und noch ein Satz, damit es reicht.\n".encode()
    yield Foreign("notes", utf8, ("text",))
    yield Foreign("utf16", "Hello there\n".encode("utf-16"), ("text",))
    yield Foreign("marked", b"\xef\xbb\xbfHello\n", ("text",))


_GCC = (
    ("pie64", ["-nostdlib", "-pie"], ("64-bit ELF PIE",)),
    ("library.so", ["-nostdlib", "-shared"], ("64-bit ELF PIE or shared object",)),
    ("object64.o", ["-c"], ("64-bit ELF object",)),
    ("pie32", ["-m32", "-nostdlib", "-pie"], ("32-bit ELF PIE", "-no-pie", "-Ttext=0x7c00")),
    ("object32.o", ["-m32", "-c"], ("32-bit ELF object", "ld -m elf_i386")),
    ("partial.o", ["-m32", "-nostdlib", "-r"], ("32-bit ELF object",)),
)  # fmt: skip
SOURCE = "\t.globl _start\n_start:\tinc %eax\n\thlt\n"


def by_gcc(folder: Path) -> Iterator[Foreign]:
    """The ELF files that people bring, as gcc makes them; none where gcc is missing."""
    if shutil.which("gcc") is None:
        return
    source = folder / "source.S"
    source.write_text(SOURCE)
    for name, options, words in _GCC:
        command = ["gcc", *options, "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        yield Foreign(name, (folder / name).read_bytes(), words)
