"""Memory that nothing points to any more: what kmemleak finds in a lab's kernel.

Documentation/dev-tools/kmemleak.rst. A kernel reports nothing by itself: it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pyvmm.lab.errors import LabError
from pyvmm.lab.kernel_log import Splat, running_at
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import Lab

_FILE = "/sys/kernel/debug/kmemleak"
_FORGET = f"echo scan >{_FILE} && echo clear >{_FILE}"
#: What has been there for less than MSECS_MIN_AGE (5 s) is not reported, and an object has to look
#: the same in two searches.
_SEARCH = f"echo scan >{_FILE} && sleep 6 && echo scan >{_FILE} && cat {_FILE}"
_SECONDS = 300.0
_FIRST_LINE = re.compile(r"unreferenced object(?: \(\w+\))? 0x[0-9a-f]+ \(size (\d+)\):")
_JIFFIES = re.compile(r"jiffies (\d+)")
#: Both clocks in one line of the log; the shell does it alone, since a program takes its time.
_CLOCKS = (
    "while read -r word number; do [ $word = jiffies: ] && break; done </proc/timer_list;"
    " echo pyvmm: jiffies $number >/dev/kmsg"
)
_CLOCK_LINE = re.compile(r"\[ *(\d+\.\d+)\] pyvmm: jiffies (\d+)$")
_TICKS = 5  # how well the two are known to each other
_FUNCTION = re.compile(r"\s+(?:\[<[0-9a-f]+>\] )?(\w+)(?:\.\w+)*\+0x")
#: Who allocates for others says nothing of who leaks.
_ALLOCATORS = re.compile(
    r"_*(?:(?:k|v|kv)(?:m|z)?alloc|alloc_|kmem|slab_|pcpu_alloc|v?memdup|kstrdup|kv?asprintf)"
)
_HZ = re.compile(r"^CONFIG_HZ=(\d+)$", re.M)
_UPTIME_AT_WRAP_S = 300  # INITIAL_JIFFIES: so long after boot 32 bits of jiffies are all used
_WRAP = 1 << 32


def looks_for_leaks(kernel: Kernel) -> bool:
    return "kmemleak" in kernel.debug


def forget_leaks(lab: Lab) -> None:
    """What is there now is nobody's leak."""
    _ask(lab, _FORGET)


def find_leaks(lab: Lab, log: Sequence[str]) -> tuple[Splat, ...]:
    """What was left since :func:`forget_leaks`, as trouble at the time of the allocation.

    ``log`` is the kernel's log of that time, which has the cases that ran.
    """
    hz = hz_of(lab.kernel)
    found = parse_leaks(_ask(lab, _SEARCH), hz)
    behind = _behind_the_log(lab, hz)
    return tuple(
        replace(splat, cases=running_at(log, at + behind, _TICKS / hz)) for splat, at in found
    )


def _behind_the_log(lab: Lab, hz: int) -> float:
    """How many seconds more the log's clock shows than jiffies do, which began later."""
    done = lab.run(["sh", "-c", _CLOCKS], timeout=_SECONDS)
    lines = [match for line in done.kernel_log if (match := _CLOCK_LINE.match(line))]
    if not lines:
        raise LabError("kmemleak", "the kernel's clocks cannot be compared (/proc/timer_list)")
    return float(lines[-1][1]) - _seconds(int(lines[-1][2]), hz)


def _ask(lab: Lab, script: str) -> str:
    done = lab.run(["sh", "-c", script], timeout=_SECONDS)
    if done.status != 0:
        said = done.errors.decode(errors="replace").strip()
        raise LabError("kmemleak", done.problem or said or f"status {done.status}")
    return done.output.decode(errors="replace")


def hz_of(kernel: Kernel) -> int:
    """How many jiffies a second of this kernel has."""
    match = _HZ.search((kernel.image.parent / "config").read_text())
    if match is None:
        raise LabError(f"kernel {kernel.name}", "its configuration has no CONFIG_HZ")
    return int(match[1])


def parse_leaks(text: str, hz: int) -> Iterator[tuple[Splat, float]]:
    """Each object of kmemleak's report, and when it was allocated, in seconds of jiffies."""
    blocks = re.split(r"^(?=unreferenced object )", text, flags=re.M)
    for block in blocks:
        first, jiffies = _FIRST_LINE.match(block), _JIFFIES.search(block)
        if first is None or jiffies is None:
            continue
        at = _seconds(int(jiffies[1]), hz)
        trace = block.partition("backtrace")[2].splitlines()[1:]
        names = [match[1] for line in trace if (match := _FUNCTION.match(line))]
        owner = next((name for name in names if not _ALLOCATORS.match(name)), "nobody known")
        title = f"kmemleak: an object of {owner}() is left, {first[1]} bytes"
        lines = block.rstrip().splitlines()
        yield Splat(title, (f"[{at:12.6f}] {lines[0]}", *lines[1:])), at


def _seconds(jiffies: int, hz: int) -> float:
    return (jiffies - _WRAP) / hz + _UPTIME_AT_WRAP_S
