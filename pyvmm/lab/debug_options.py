"""Kernels that watch themselves: what they can watch for. Each has a fragment in debug/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyvmm.lab.errors import LabUsageError

_FOLDER = Path(__file__).with_name("debug")
#: Combinations that make sense. KASAN and KCSAN exclude each other.
TOGETHER = {
    "light": ("lockdep", "list", "rcu", "vm"),
    "heavy": ("kasan", "kmemleak", "ubsan", "list", "vm"),
}
#: How many times as long the whole catalogue takes, where that was measured.
_TIMES = {frozenset(TOGETHER["light"]): 5.0}
#: What a kernel is told at boot, so that what comes after the first report is seen, too.
_PARAMETERS = {"kasan": ("kasan_multi_shot",)}
_EXCLUSIVE = ("kasan", "kcsan")
#: The catalogue on a kernel that watches nothing, on two CPUs.
_CATALOGUE_S = 250


def debug_names() -> list[str]:
    """Everything that a kernel can watch for."""
    return sorted(path.stem for path in _FOLDER.glob("*.config"))


def parse_debug(text: str) -> tuple[str, ...]:
    """The names in ``lockdep,list`` or ``light``. A LabUsageError for one that is unknown."""
    known = debug_names()
    found: list[str] = []
    for word in filter(None, text.split(",")):
        if word not in known and word not in TOGETHER:
            raise LabUsageError(
                f"--debug {word}", f"want {', '.join(known)}, or {' or '.join(TOGETHER)}"
            )
        found += TOGETHER.get(word, (word,))
    if not found:
        raise LabUsageError(f"--debug {text!r}", f"it names none of {', '.join(known)}")
    if set(_EXCLUSIVE) <= set(found):
        raise LabUsageError(f"--debug {text}", f"{' and '.join(_EXCLUSIVE)} exclude each other")
    return tuple(dict.fromkeys(found))


def debug_fragment(names: Sequence[str]) -> str:
    """The configuration that makes a kernel watch for these."""
    return "".join((_FOLDER / f"{name}.config").read_text() for name in names)


def debug_parameters(names: Sequence[str]) -> tuple[str, ...]:
    """What a kernel that watches for these is told at boot."""
    return tuple(word for name in names for word in _PARAMETERS.get(name, ()))


def expected_time(names: Sequence[str]) -> str:
    """What a person is told before a run."""
    minutes = _CATALOGUE_S / 60
    times = _TIMES.get(frozenset(names))
    if times is None:
        usual = f"the {minutes:.0f} minutes that it takes on 2 CPUs"
        return f"the whole catalogue takes longer than {usual} without; how much was not measured"
    return (
        f"the whole catalogue takes {times:.0f} times as long, {times * minutes:.0f} minutes "
        "on 2 CPUs"
    )
