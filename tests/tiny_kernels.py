"""Kernels of a few instructions, in files that speak the Linux boot protocol."""

from __future__ import annotations

import stat
import struct

from pyvmm.guest.assembler import assemble
from pyvmm.lab.initramfs import _member, find_busybox

ORIGIN = 0x100000

#: Sends the bytes from (%rbx) up to a NUL to COM1.
SEND = """
send:   movw $0x3f8, %dx
1:      movb (%rbx), %al
        testb %al, %al
        jz 2f
        outb %al, %dx
        incq %rbx
        jmp 1b
2:      ret
"""
POWER_OFF = "movw $0x604, %dx\n movw $0x2000, %ax\n outw %ax, %dx\n 9: hlt\n jmp 9b\n"


def bzimage(
    code: bytes = b"\x90" * 0x1000,
    *,
    version: int = 0x20F,
    loadflags: int = 1,
    pref_address: int = 16 << 20,
    init_size: int = 4 << 20,
    xloadflags: int = 1,
    initrd_max: int = 0x7FFFFFFF,
    cmdline_size: int = 2047,
    setup_sects: int = 3,
    syssize: int | None = None,
) -> bytes:
    """A kernel's file with this code, whose header says all that."""
    setup = bytearray((1 + setup_sects) * 512)
    setup[0x1F1] = setup_sects
    paragraphs = -(-len(code) // 16) if syssize is None else syssize
    struct.pack_into("<I", setup, 0x1F4, paragraphs)
    setup[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x22C, initrd_max)
    struct.pack_into("<HI", setup, 0x236, xloadflags, cmdline_size)
    struct.pack_into("<QI", setup, 0x258, pref_address, init_size)
    return bytes(setup) + code


def kernel(source: str, *, is_64_bit: bool = True) -> bytes:
    """A kernel of this assembly, whose stack it has to make itself."""
    mode, start = ("long", ".org 0x200\n") if is_64_bit else ("protected", "")
    image = assemble(start + source, mode=mode)
    (code,) = [segment.data for segment in image.segments]
    return bzimage(code, pref_address=ORIGIN, init_size=MIB, xloadflags=int(is_64_bit))


MIB = 1 << 20


def initramfs(script: str) -> bytes:
    """A cpio archive with busybox, whose shell runs ``script`` as the first process."""
    init = f"#!/bin/busybox sh\n{script}".encode()
    members = [_member(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc")]
    members += [
        _member("bin/busybox", stat.S_IFREG | 0o755, find_busybox().read_bytes()),
        _member("init", stat.S_IFREG | 0o755, init),
        _member("TRAILER!!!", 0),
    ]
    return b"".join(members)
