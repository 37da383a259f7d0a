"""What is worth knowing about the host beside a result."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_MODULES = Path("/sys/module")
#: The kernel's ELF notes; one of them has the build ID that the linker made of all its contents.
_NOTES = Path("/sys/kernel/notes")
_NT_GNU_BUILD_ID = 3  # elf.h


def kernel_release() -> str:
    """``uname -r``."""
    return os.uname().release


def kernel_build_id() -> str:
    """The GNU build ID of the kernel that runs here, in hexadecimal, or ""."""
    try:
        return build_id(_NOTES.read_bytes())
    except OSError:
        return ""


def build_id(notes: bytes) -> str:
    """The GNU build ID among ELF notes, in hexadecimal, or ""."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = (
            int.from_bytes(notes[start : start + 4], "little") for start in range(at, at + 12, 4)
        )
        name = at + 12
        value = name + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[value : value + size].hex()
        at = value + (size + 3 & ~3)
    return ""


def kvm_modules() -> list[str]:
    """The loaded KVM vendor modules, built in or not."""
    try:
        return sorted(name for name in os.listdir(_MODULES) if name.startswith("kvm_"))
    except OSError:
        return []


def nested_modules() -> dict[str, bool]:
    """For each vendor module that tells: whether its guests may use KVM themselves."""
    found = {name: _is_on(name, "nested") for name in kvm_modules()}
    return {name: on for name, on in found.items() if on is not None}


def nested_paging_off() -> str:
    """The module parameter that keeps two-dimensional paging off, such as ``kvm_amd.npt=0``,
    or "". Without it KVM has no private memory, whatever its configuration."""
    hardware = [_is_on("kvm_amd", "npt"), _is_on("kvm_intel", "ept")]
    if hardware[0] is False:
        return "kvm_amd.npt=0"
    if hardware[1] is False:
        return "kvm_intel.ept=0"
    # KVM also reports it as off where there is no such hardware: nothing to load it with.
    if True in hardware and _is_on("kvm", "tdp_mmu") is False:
        return "kvm.tdp_mmu=0"
    return ""


def in_place_conversion() -> bool | None:
    """The parameter kvm.gmem_in_place_conversion; None on a kernel that has none."""
    return _is_on("kvm", "gmem_in_place_conversion")


def _is_on(module: str, parameter: str) -> bool | None:
    """None where there is no such parameter."""
    try:
        return (_MODULES / module / "parameters" / parameter).read_text().strip() in ("Y", "1")
    except OSError:
        return None


def cpu_model() -> str:
    """The CPU's name from /proc/cpuinfo."""
    return _cpuinfo("model name") or platform.machine()


def is_virtual() -> bool:
    """Whether this host is itself a guest: it then has KVM only as far as it was given it."""
    return "hypervisor" in _cpuinfo("flags").split()


def address_bits() -> int:
    """How many bits a physical address has on this CPU; 0 where /proc/cpuinfo does not say."""
    bits = _cpuinfo("address sizes").split(" ")[0]
    return int(bits) if bits.isdigit() else 0


def _cpuinfo(field: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == field:
                    return value.strip()
    except OSError:
        pass
    return ""


def host_facts() -> dict[str, object]:
    """A few facts for a report, cheap to get."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": kernel_release(),
        "kvm_modules": kvm_modules(),
        "python": platform.python_version(),
    }
