"""What is worth knowing about the host beside a result."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_MODULES = Path("/sys/module")


def kernel_release() -> str:
    """``uname -r``."""
    return os.uname().release


def kvm_modules() -> list[str]:
    """The loaded KVM vendor modules, built in or not."""
    try:
        return sorted(name for name in os.listdir(_MODULES) if name.startswith("kvm_"))
    except OSError:
        return []


def nested_modules() -> dict[str, bool]:
    """For each vendor module that tells: whether its guests may use KVM themselves."""
    nested = {}
    for name in kvm_modules():
        try:
            value = (_MODULES / name / "parameters" / "nested").read_text().strip()
        except OSError:
            continue
        nested[name] = value in ("Y", "1")
    return nested


def nested_paging_off() -> str:
    """The module parameter that keeps two-dimensional paging off, such as ``kvm_amd.npt=0``,
    or "". Without it KVM has no private memory, whatever its configuration."""
    for module, parameter in (("kvm_amd", "npt"), ("kvm_intel", "ept"), ("kvm", "tdp_mmu")):
        try:
            value = (_MODULES / module / "parameters" / parameter).read_text().strip()
        except OSError:
            continue
        if value in ("N", "0"):
            return f"{module}.{parameter}=0"
    return ""


def cpu_model() -> str:
    """The CPU's name from /proc/cpuinfo."""
    return _cpuinfo("model name") or platform.machine()


def is_virtual() -> bool:
    """Whether this host is itself a guest: it then has KVM only as far as it was given it."""
    return "hypervisor" in _cpuinfo("flags").split()


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
