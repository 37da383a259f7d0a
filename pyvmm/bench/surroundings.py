"""The machine that was measured on, and whether others used it meanwhile."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyvmm.host import cpu_model, is_virtual, kernel_release, kvm_modules

_CPUS = Path("/sys/devices/system/cpu")
_MODULES = Path("/sys/module")
_MUCH_STEAL = 2.0  # percent
_MUCH_OTHER_WORK = 20.0


class Surroundings:
    """Facts at the start; :meth:`end` adds what happened while measuring."""

    def __init__(self, cpu: int) -> None:
        import psutil

        self._psutil = psutil
        self._cpu = cpu
        self._before = psutil.cpu_times(percpu=True)[cpu]
        self._own_before = self._own()
        self.facts: dict[str, Any] = {
            "cpu": cpu_model(),
            "cpus": os.cpu_count(),
            "pinned_to": cpu,
            "smt_siblings": read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list"),
            "smt": read(_CPUS / "smt/control"),
            "governor": read(_CPUS / f"cpu{cpu}/cpufreq/scaling_governor"),
            "clocksource": read(
                Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            ),
            "virtual_machine": is_virtual(),
            "kernel": kernel_release(),
            "kvm_modules": kvm_modules(),
            "kvm_parameters": kvm_parameters(),
            "mitigations": mitigations(),
            "memory_bytes": psutil.virtual_memory().total,
            "transparent_hugepages": read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
            "python": platform.python_version(),
            "load_before": list(os.getloadavg()),
        }

    def _own(self) -> float:
        """CPU seconds of this process, and of those that it started and has seen end."""
        own = self._psutil.Process().cpu_times()
        return float(own.user + own.system + own.children_user + own.children_system)

    def end(self) -> list[str]:
        """Complete the facts; returns warnings about the machine as a whole."""
        after = self._psutil.cpu_times(percpu=True)[self._cpu]
        total = sum(after) - sum(self._before) or 1.0
        steal = 100 * (getattr(after, "steal", 0.0) - getattr(self._before, "steal", 0.0)) / total
        busy = total - (after.idle - self._before.idle) - (after.iowait - self._before.iowait)
        mine = self._own() - self._own_before
        others = max(0.0, 100 * (busy - mine) / total)
        self.facts["load_after"] = list(os.getloadavg())
        self.facts["steal_percent"] = round(steal, 2)
        self.facts["other_work_percent"] = round(others, 1)
        return list(self._warnings(steal, others))

    def _warnings(self, steal: float, others: float) -> Iterator[str]:
        if steal > _MUCH_STEAL:
            yield (
                f"the hypervisor took {steal:.1f} % of CPU {self._cpu} away: "
                "believe ratios and minima, not percentiles above p50"
            )
        if others > _MUCH_OTHER_WORK:
            yield (
                f"others used {others:.0f} % of CPU {self._cpu}: "
                "believe ratios and minima, not percentiles above p50"
            )
        governor = self.facts["governor"]
        if governor and governor != "performance":
            yield f"governor {governor}: the CPU's speed may change; believe ratios, not times"


def read(path: Path) -> str | None:
    """A file's one line, or None where there is no such file."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def kvm_parameters() -> dict[str, str]:
    """``module.parameter`` and its value for KVM and its vendor modules."""
    found = {}
    for module in ("kvm", *kvm_modules()):
        try:
            names = sorted(os.listdir(_MODULES / module / "parameters"))
        except OSError:
            continue
        for name in names:
            value = read(_MODULES / module / "parameters" / name)
            if value is not None:
                found[f"{module}.{name}"] = value
    return found


def mitigations() -> dict[str, str]:
    """What the kernel says about each vulnerability that this CPU has."""
    folder = _CPUS / "vulnerabilities"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    told = {name: read(folder / name) or "" for name in names}
    return {name: value for name, value in told.items() if value != "Not affected"}
