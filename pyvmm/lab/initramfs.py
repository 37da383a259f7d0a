"""The lab's first file system: busybox, the init script and the agent, as a cpio archive.

The format is "newc" of the kernel's Documentation/driver-api/early-userspace/
buffer-format.rst, uncompressed: QEMU hands it over faster than the kernel could unpack it.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pyvmm.lab.errors import LabError
from pyvmm.lab.programs import remedy

_FOLDERS = ("bin", "dev", "proc", "host", "upper", "root")
_HERE = Path(__file__).parent


def find_busybox() -> Path:
    """The host's statically linked busybox; a LabError when there is none."""
    found = shutil.which("busybox", path=os.environ.get("PATH", "") + ":/bin:/usr/bin")
    if found is None:
        raise LabError("busybox", "not found", remedy("busybox"))
    if _has_interpreter(Path(found)):
        raise LabError(found, "not statically linked", remedy("busybox"))
    return Path(found)


def build_initramfs(python: str, results: str | None) -> bytes:
    """The archive for one boot.

    `python` is the interpreter that runs the agent and `results` the folder to be mounted
    writable, both as paths on the host, which are the paths inside too.
    """
    archive = [_member(folder, stat.S_IFDIR | 0o755) for folder in _FOLDERS]
    archive += [
        _member("bin/busybox", stat.S_IFREG | 0o755, find_busybox().read_bytes()),
        _member("init", stat.S_IFREG | 0o755, (_HERE / "init").read_bytes()),
        _member("agent.py", stat.S_IFREG | 0o644, (_HERE / "agent.py").read_bytes()),
        _member("python", stat.S_IFREG | 0o644, os.fsencode(python) + b"\n"),
    ]
    if results is not None:
        archive.append(_member("results", stat.S_IFREG | 0o644, os.fsencode(results) + b"\n"))
    archive.append(_member("TRAILER!!!", 0))
    return b"".join(archive)


def _member(name: str, mode: int, content: bytes = b"") -> bytes:
    encoded = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, size, four device numbers, name's size, checksum
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _has_interpreter(program: Path) -> bool:
    """Whether an ELF file asks for a dynamic linker (it has a PT_INTERP header)."""
    content = program.read_bytes()
    table = int.from_bytes(content[32:40], "little")  # e_phoff of elf(5), 64-bit
    size = int.from_bytes(content[54:56], "little")
    count = int.from_bytes(content[56:58], "little")
    headers = (content[table + index * size :][:4] for index in range(count))
    return any(int.from_bytes(kind, "little") == 3 for kind in headers)
