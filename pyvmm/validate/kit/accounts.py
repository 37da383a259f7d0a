"""What the whole system holds, as the kernel counts it, and whether something was left behind."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyvmm.validate.kit.case import KIB, MIB, PAGE

_REFRESH = Path("/proc/sys/vm/stat_refresh")
_FILES = Path("/proc/sys/fs/file-nr")
_VMS = Path("/sys/kernel/debug/kvm")
_SLABS = Path("/sys/kernel/slab")
# Much is freed only when no CPU can look at it any more (RCU, Documentation/RCU/whatisRCU.rst),
# inodes and directory entries of what was closed among it. It is counted until then.
_REST_S = 1.0
_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Line:
    """One count. ``unit`` is the least that can leak at once; ``noise``, how much more others,
    and what the kernel keeps for later, may make it.

    ``name`` says what is counted, and where. Of /proc/meminfo it is the sum of ``fields`` less
    that of ``without``.
    """

    name: str
    unit: int
    noise: int
    fields: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


VMS = Line("VMs of this process in /sys/kernel/debug/kvm", 1, 0)
FILES = Line("open files in /proc/sys/fs/file-nr", 1, 64)


def _meminfo(noise: int, field: str, unit: int = PAGE) -> Line:
    return Line(f"{field} of /proc/meminfo", unit, noise, (field,))


def lines() -> tuple[Line, ...]:
    """What can be counted here; what says most about a leak comes first."""
    # Root can have the kernel add up what each CPU has counted for itself. Then all pages show
    # but for those that a CPU has not put on a list yet, at most 31.
    exact = 32 * PAGE * (os.cpu_count() or 1) if _refresh() else 2 * MIB
    found = [VMS] if _VMS.is_dir() else []
    found += [FILES] if _FILES.exists() else []
    return (
        *found,
        _meminfo(exact, "Unevictable"),
        _meminfo(max(exact, 256 * KIB), "Shmem"),
        _meminfo(max(exact, 256 * KIB), "SecPageTables"),
        Line(
            "pages of no file that nobody maps: on the lists of /proc/meminfo, not in its "
            "AnonPages or Cached",
            PAGE,
            2 * exact,
            ("Active", "Inactive", "Unevictable"),
            ("AnonPages", "Cached", "SwapCached", "Buffers"),
        ),
        _meminfo(256 * KIB, "PageTables"),
        _meminfo(512 * KIB, "SUnreclaim", unit=64),
        # The nodes of xarrays (what is bound to a file, attributes) are here, beside caches of
        # directories and files.
        _meminfo(64 * KIB, "SReclaimable", unit=512),
        _meminfo(64 * KIB, "Percpu", unit=64),
        _meminfo(256 * KIB, "VmallocUsed"),
        # Not Cached, which others fill all the time: a guest_memfd's pages are in Unevictable,
        # a memfd's in Shmem.
        Line(
            "memory that is not free (MemFree of /proc/meminfo) and nothing else there either",
            4 * PAGE,
            12 * MIB,
            ("MemTotal",),
            ("MemFree", "AnonPages", "Cached", "Slab", "PageTables", "SecPageTables"),
        ),
    )


def _refresh() -> bool:
    with suppress(OSError):
        _REFRESH.read_bytes()
        return True
    return False


def _shrink() -> None:
    """Documentation/ABI/testing/sysfs-kernel-slab. KASAN keeps what was freed, up to 1/32 of all
    memory, and lets go of it then (kasan_cache_shrink() in mm/slab_common.c)."""
    for cache in _SLABS.glob("*/shrink"):
        if cache.parent.is_symlink():  # another name of one
            continue
        with suppress(OSError):
            cache.write_text("1", encoding="ascii")


def look(wanted: Sequence[Line], *, shrink: bool = False) -> dict[Line, int]:
    """What each line says now: bytes, or a number of things. With ``shrink`` the kernel's caches
    give back first what is free in them, where this process may ask for that."""
    # What this process holds and nothing refers to any more is no leak of the kernel's.
    gc.collect()
    if shrink:
        _shrink()
    _refresh()
    memory = meminfo()
    seen = {}
    for line in wanted:
        if line is VMS:
            seen[line] = open_vms()
        elif line is FILES:
            seen[line] = open_files()
        else:
            seen[line] = sum(memory.get(field, 0) for field in line.fields)
            seen[line] -= sum(memory.get(field, 0) for field in line.without)
    return seen


def open_vms(pid: int | None = None) -> int:
    """How many VMs are left that this process made, or ``pid``; 0 where debugfs does not tell."""
    if not _VMS.is_dir():
        return 0
    return sum(path.name.startswith(f"{pid or os.getpid()}-") for path in _VMS.iterdir())


def meminfo() -> dict[str, int]:
    """/proc/meminfo, in bytes (and numbers of huge pages, times 1024)."""
    fields = {}
    for text in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = text.partition(":")
        fields[name] = int(value.split()[0]) << 10
    return fields


def open_files() -> int:
    """How many files are open in the whole system. Raises FileNotFoundError without sysctl."""
    return int(_FILES.read_text(encoding="ascii").split()[0])


def _at_rest(wanted: Sequence[Line], shrink: bool) -> dict[Line, int]:
    """What each line says when none falls any more: what is freed during the work that follows
    would hide as much that is lost."""
    until = time.monotonic() + _REST_S
    seen = look(wanted, shrink=shrink)
    while True:
        time.sleep(_AGAIN_S)
        now = look(wanted, shrink=shrink)
        still = all(seen[line] - now[line] <= line.noise // 4 for line in wanted)
        if still or time.monotonic() > until:
            return now
        seen = now


def _growth(
    wanted: Sequence[Line], work: Callable[[], object], most: Callable[[Line], int], suspected: bool
) -> dict[Line, int]:
    """By how much each line grows while ``work`` is done. If something is ``suspected``, a line
    that grew by more than ``most`` is looked at until it has fallen, or for a second."""
    before = _at_rest(wanted, suspected)
    work()
    until = time.monotonic() + _REST_S
    least = look(wanted, shrink=suspected)
    while suspected and time.monotonic() < until:
        if all(least[line] - before[line] <= most(line) for line in wanted):
            break
        time.sleep(_AGAIN_S)
        now = look(wanted, shrink=True)
        least = {line: min(least[line], now[line]) for line in wanted}
    return {line: least[line] - before[line] for line in wanted}


def left_behind(
    work: Callable[[], object],
    wanted: Sequence[Line],
    most: Callable[[Line], int],
    attempts: int,
    *,
    suspected: bool = False,
) -> dict[Line, list[int]]:
    """The lines that grew by more than ``most`` of them, however often ``work`` is done, and by
    how much each time. Others come and go too: once without is enough, and what grows as much
    while nothing is done is theirs (which one attempt does not ask).

    Caches are asked to shrink, which takes a quarter of a second in a lab, when something has
    grown once, or if it is ``suspected`` from the start.
    """
    grown: dict[Line, list[int]] = {line: [] for line in wanted}
    took_s = 0.0

    def timed() -> None:
        nonlocal took_s
        began = time.monotonic()
        work()
        took_s = time.monotonic() - began

    for _ in range(attempts):
        growth = _growth(list(grown), timed, most, suspected)
        for line, seen in grown.items():
            seen.append(growth[line])
        grown = {line: seen for line, seen in grown.items() if seen[-1] > most(line)}
        if not grown:
            break
        suspected = True
    if grown and attempts > 1:
        growth = _growth(list(grown), lambda: time.sleep(took_s), most, True)
        grown = {line: seen for line, seen in grown.items() if growth[line] <= most(line)}
    return grown
