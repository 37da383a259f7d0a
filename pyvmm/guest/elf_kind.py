"""ELF files that are no real-mode guests, and what they are."""

from __future__ import annotations

from pyvmm.errors import GuestError
from pyvmm.guest.boot import RAM_SIZE, START
from pyvmm.guest.elf import (
    EM_386,
    EM_X86_64,
    ET_CORE,
    ET_DYN,
    ET_EXEC,
    ET_REL,
    Elf,
    order_and_machine,
    read_elf,
)
from pyvmm.guest.formats import MULTIBOOT_1, MULTIBOOT_2_REMEDY, has_multiboot_header
from pyvmm.guest.kind import Kind
from pyvmm.guest.layout import LONG

# The first address that real mode cannot form while A20 is masked.
REAL_MODE_END = 1 << 20
_LINK = f"ld -m elf_i386 -N -Ttext {START:#x} -e _start -o guest.elf"
_RELINK = (
    "link it again with gcc -m32 -nostdlib -static -no-pie "
    f"-Wl,-N,-Ttext={START:#x} (C code: -m16 -ffreestanding -fno-pic, too)"
)
_LINK_64 = f"ld -m elf_x86_64 -N -Ttext {LONG.origin:#x} -e _start -o guest.elf"
_RELINK_64 = f"link it again with gcc -nostdlib -static -no-pie -Wl,-N,-Ttext={LONG.origin:#x}"
_MACHINES = {
    2: "SPARC",
    4: "m68k",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "s390",
    40: "ARM",
    43: "SPARC",
    83: "AVR",
    94: "Xtensa",
    183: "AArch64",
    243: "RISC-V",
    247: "BPF",
    258: "LoongArch",
}


def elf_kind(data: bytes) -> Kind | None:
    """What an ELF file is; None for one that may be a real-mode guest or is broken."""
    found = order_and_machine(data)
    if found is None:
        return None
    order, machine = found
    if machine not in (EM_386, EM_X86_64) or order == "big":
        name = _MACHINES.get(machine, f"machine {machine}")
        endian = f", {order}-endian" if order == "big" else ""
        return Kind(f"an ELF file for {name}{endian}", "build it for x86", is_loadable=False)
    try:
        elf = read_elf("", data)
    except GuestError:
        return None
    what = {ET_EXEC: "executable", ET_REL: "object (.o)", ET_CORE: "core dump"}.get(elf.kind)
    if elf.kind == ET_DYN:
        what = "PIE or shared object"
    if what is None:
        return Kind(f"an ELF file of type {elf.kind}", "link an executable", is_loadable=False)
    name = f"{elf.bits}-bit ELF {what}"
    if machine == EM_X86_64 and elf.bits == 32:
        name = f"x32 (64-bit code) ELF {what}"
    is_fixed = elf.kind == ET_EXEC
    fits = (
        is_fixed
        and elf.entry <= 0xFFFF
        and all(load.end <= RAM_SIZE or elf.is_notes(load) for load in elf.loads)
    )
    if is_fixed and (multiboot := has_multiboot_header(data)):
        # In an ELF file of 64 bits, too, which is just a container.
        return _multiboot(name, multiboot, fits)
    if elf.bits == 64 or machine == EM_X86_64:
        return _long_mode(elf, name, fits, _is_linux(elf, data))
    if elf.kind == ET_REL:
        return Kind(f"a {name}", f"link it: {_LINK} FILE", is_loadable=False)
    if not is_fixed:
        return Kind(f"a {name}", _RELINK, is_loadable=False)
    return _protected_mode(elf, name, fits)


def _multiboot(name: str, version: str, fits: bool) -> Kind:
    what = f"a {name} with a {version} header, which starts in protected mode"
    if version == MULTIBOOT_1:
        return Kind(what, "use --platform multiboot", fits, "multiboot")
    return Kind(what, MULTIBOOT_2_REMEDY, fits, "protocol")


def _long_mode(elf: Elf, name: str, fits: bool, is_linux: bool) -> Kind:
    if elf.kind == ET_REL:
        return Kind(f"a {name}", f"link it: {_LINK_64} FILE", is_loadable=False)
    if elf.kind != ET_EXEC:
        return Kind(f"a {name}", _RELINK_64, is_loadable=False)
    if is_linux:
        return Kind(f"a Linux kernel (vmlinux), a {name}", "run its bzImage", fits)
    if elf.has_interpreter:
        return Kind(f"a dynamically linked {name} of an operating system", _RELINK_64, fits)
    article = "an" if name.startswith("x32") else "a"
    return Kind(f"{article} {name}", "", fits, "protocol", "long")


def is_of_64_bits(data: bytes) -> bool:
    """Whether an ELF file is made for x86-64."""
    found = order_and_machine(data)
    return found is not None and found[1] == EM_X86_64


def check_code(name: str, data: bytes, mode: str) -> None:
    """Refuse an ELF file whose code is of another width than the mode's.

    Real mode may have any: the file's class says nothing of its code. Raises :class:`GuestError`.
    """
    found = order_and_machine(data)
    wanted = {"protected": EM_386, "long": EM_X86_64}.get(mode)
    if wanted is None or found is None or found[1] == wanted or found[1] not in (EM_386, EM_X86_64):
        return
    bits, right = (64, "long") if found[1] == EM_X86_64 else (32, "protected or real")
    cause = f"its code is of {bits} bits, which {mode} mode does not run"
    raise GuestError(name, cause, f"use --mode {right}")


def _is_linux(elf: Elf, data: bytes) -> bool:
    """Linked in the last 2 GiB, as kernels are, with the banner that x86-64's vmlinux has."""
    is_kernel = any(load.address >= 0xFFFFFFFF80000000 > load.gpa for load in elf.loads)
    return is_kernel and b"Linux version " in data


def _protected_mode(elf: Elf, name: str, fits: bool) -> Kind | None:
    if elf.has_interpreter:
        return Kind(f"a dynamically linked {name} of an operating system", _RELINK, fits)
    code = [load.gpa for load in elf.loads if not elf.is_notes(load)]
    beyond = [address for address in (elf.entry, *code) if address >= REAL_MODE_END]
    if beyond:
        what = f"a {name} for protected mode, linked at {min(beyond):#x}"
        return Kind(what, _RELINK, fits, "protocol", "protected")
    return None
