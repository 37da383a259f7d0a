"""A Linux kernel's file: what its setup header says (Documentation/arch/x86/boot.rst).

memtest86+ and other programs that boot loaders start as if they were Linux have one, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.errors import GuestError

# Where in the file's first KiB, and in the zero page, things are.
SETUP_SECTS, SYSSIZE, BOOT_FLAG, JUMP, MAGIC, VERSION = 0x1F1, 0x1F4, 0x1FE, 0x201, 0x202, 0x206
LOADFLAGS, INITRD_MAX, XLOADFLAGS, CMDLINE_SIZE = 0x211, 0x22C, 0x236, 0x238
PREF_ADDRESS, INIT_SIZE, _HEADER_END = 0x258, 0x260, 0x264

_SECTOR = 512
_MAGIC = b"HdrS"
# Linux 2.6.22, the first that says how long its command line may be.
_OLDEST = 0x206
_HAS_PREF_ADDRESS, _HAS_XLOADFLAGS = 0x20A, 0x20C
_LOADED_HIGH = 0x01
_XLF_KERNEL_64 = 0x0001
_ENTRY_64 = 0x200  # behind where the kernel is loaded
_MIB = 1 << 20
_4G = 1 << 32


@dataclass(frozen=True, slots=True)
class BzImage:
    """A kernel. ``header`` is the setup header, which begins at 0x1F1 of the file.

    It is loaded at ``gpa`` and needs ``memory`` bytes there. ``is_64_bit``: it can be entered
    in 64-bit mode, and otherwise in protected mode. The command line may have
    ``most_command_line`` bytes, and an initrd must end at or below ``initrd_end``.
    """

    name: str
    header: bytes
    code: bytes
    gpa: int
    memory: int
    is_64_bit: bool
    most_command_line: int
    initrd_end: int

    @property
    def entry(self) -> int:
        return self.gpa + _ENTRY_64 if self.is_64_bit else self.gpa


def is_bzimage(data: bytes) -> bool:
    """Whether a file begins as one that speaks the Linux boot protocol."""
    return data[MAGIC : MAGIC + 4] == _MAGIC and data[BOOT_FLAG : BOOT_FLAG + 2] == b"\x55\xaa"


def read_bzimage(name: str, data: bytes) -> BzImage:
    """The kernel in a file's bytes. Raises :class:`GuestError` for what cannot be loaded."""
    if not is_bzimage(data):
        raise GuestError(
            name,
            "it has no Linux boot header (0xAA55 at 0x1fe, HdrS at 0x202)",
            "give a bzImage: vmlinux is not one, /boot/vmlinuz-* and arch/x86/boot/bzImage are",
        )
    if len(data) < _HEADER_END:
        raise GuestError(name, f"the file is cut short: {len(data)} bytes, in its header")
    version = _number(data, VERSION, 2)
    if version < _OLDEST:
        raise GuestError(
            name,
            f"its boot protocol is {version >> 8}.{version & 0xFF:02d}, of before Linux 2.6.22",
            "2.06 is the oldest that can be booted here",
        )
    if not data[LOADFLAGS] & _LOADED_HIGH:
        raise GuestError(name, "it is a zImage, which is loaded below 1 MiB", "make bzImage")
    start = (1 + (data[SETUP_SECTS] or 4)) * _SECTOR
    code = data[start:]
    paragraphs = _number(data, SYSSIZE, 4)
    if not code or -(-len(code) // 16) < paragraphs:
        raise GuestError(
            name,
            f"the file is cut short: {len(data)} bytes, and its header says "
            f"{start + paragraphs * 16}",
        )
    gpa, memory = _MIB, len(code)
    if version >= _HAS_PREF_ADDRESS:
        gpa, memory = _number(data, PREF_ADDRESS, 8), max(memory, _number(data, INIT_SIZE, 4))
        if not _MIB <= gpa < _4G:
            raise GuestError(name, f"it wants to be loaded at {gpa:#x}, not from 1 MiB to 4 GiB")
    end = min(MAGIC + data[JUMP], start)
    return BzImage(
        name,
        data[SETUP_SECTS:end],
        code,
        gpa,
        memory,
        version >= _HAS_XLOADFLAGS and bool(_number(data, XLOADFLAGS, 2) & _XLF_KERNEL_64),
        _number(data, CMDLINE_SIZE, 4),
        min(_number(data, INITRD_MAX, 4) + 1, _4G),
    )


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
