"""What is worth knowing about the host beside a result."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def kernel_release() -> str:
    """``uname -r``."""
    return os.uname().release


def kvm_modules() -> list[str]:
    """The loaded KVM vendor modules, built in or not."""
    return sorted(path.name for path in Path("/sys/module").glob("kvm_*"))


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def host_facts() -> dict[str, object]:
    """A few facts for a report, cheap to get."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": kernel_release(),
        "kvm_modules": kvm_modules(),
        "python": platform.python_version(),
    }
