"""What of KVM each case executes, where the kernel counts it: gcov's counters in debugfs.

Documentation/dev-tools/gcov.rst. The counters are the whole kernel's, so cases must run one by
one. This process itself executes nothing of KVM between a reset and a case.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from pyvmm.errors import UnsupportedError
from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.result import CaseResult
from pyvmm.validate.run.observer import Observer, Passing

_TOP = Path("/sys/kernel/debug/gcov")
_FOLDERS = ("arch/x86/kvm/", "virt/kvm/")
#: What `Counting` keeps of the time before the first case.
BEFORE = "before.zip"


class Counters:
    """The counters of KVM's objects. Raises :class:`UnsupportedError` where there are none."""

    def __init__(self, top: Path = _TOP) -> None:
        self._reset = top / "reset"
        self._files = dict(_counters(top)) if self._reset.exists() else {}
        if not self._files:
            raise UnsupportedError(
                "coverage",
                "this kernel does not count what KVM executes",
                "pyvmm lab build --coverage makes one",
            )
        self._nothing: dict[str, bytes] = {}

    def reset(self) -> None:
        self._reset.write_text("0")
        self._nothing = self._nothing or self._read()

    def executed(self) -> dict[str, bytes]:
        """The counters of the objects that executed something since :meth:`reset`, by name.

        Before the first reset, those of all objects.
        """
        nothing = self._nothing
        return {name: now for name, now in self._read().items() if now != nothing.get(name)}

    def packed(self) -> bytes:
        """What :meth:`executed` gives as a zip file; to compress it would take half of the time.

        Objects that executed nothing are in it, too, and empty: they are what was never tested.
        """
        content = BytesIO()
        executed = self.executed()
        with zipfile.ZipFile(content, "w") as kept:
            for name in self._files:
                kept.writestr(name, executed.get(name, b""))
        return content.getvalue()

    def _read(self) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in self._files.items()}


def _counters(top: Path) -> Iterator[tuple[str, Path]]:
    """Names from the build folder, as ``virt/kvm/guest_memfd.gcda``, and paths."""
    for folder, _, names in os.walk(top):
        for name in names:
            path = f"{folder}/{name}"
            place = max(path.rfind(f"/{each}") for each in _FOLDERS)
            if name.endswith(".gcda") and place >= 0:
                yield path[place + 1 :], Path(path)


class Counting(Passing):
    """Passes on to ``observer``, and keeps the counters of each case in ``folder``.

    Each case gets a file ``NUMBER.zip``; numbers are those of the cases that are to run. What was
    executed before, as KVM began, is in BEFORE.
    """

    def __init__(self, observer: Observer, folder: Path, counters: Counters | None = None) -> None:
        super().__init__(observer)
        self._folder = folder
        self._counters = Counters() if counters is None else counters
        (folder / BEFORE).write_bytes(self._counters.packed())
        self._counters.reset()  # learns what nothing looks like
        self._numbers: dict[str, int] = {}

    def begins(self, cases: Sequence[Case], seed: int) -> None:
        self._numbers = {each.name: number for number, each in enumerate(cases)}
        super().begins(cases, seed)

    def started(self, each: Case) -> None:
        super().started(each)
        self._counters.reset()

    def ended(self, number: int, result: CaseResult) -> None:
        (self._folder / f"{self._numbers[result.name]}.zip").write_bytes(self._counters.packed())
        super().ended(number, result)
