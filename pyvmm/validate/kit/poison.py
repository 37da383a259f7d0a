"""A page of a file poisoned as if its memory had failed (Documentation/mm/hwpoison.rst).

A guest_memfd that nobody can map has no address for MADV_HWPOISON. Its page is the one of those
that came into use meanwhile which belongs to the file's device: hwpoison-inject looks itself.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from pyvmm.closing import Closing
from pyvmm.validate.kit.case import PAGE
from pyvmm.validate.kit.check import Missing

_FOLDER = Path("/sys/kernel/debug/hwpoison")
# A number for each page frame (Documentation/admin-guide/mm/pagemap.rst).
_FLAGS = Path("/proc/kpageflags")
_UNEVICTABLE, _HWPOISON = 1 << 18, 1 << 19


class Poison(Closing):
    """Poisons a page of the file ``fd``; it is whole again when this is closed. A context manager.

    Raises :class:`Missing` where the kernel cannot do it, or this process may not ask it to.

    Synchronization: one for the whole system.
    """

    def __init__(self, fd: int) -> None:
        device = os.fstat(fd).st_dev
        self._settings = ExitStack()
        self._poisoned: list[int] = []
        try:
            self._set("corrupt-filter-dev-major", os.major(device))
            self._set("corrupt-filter-dev-minor", os.minor(device))
            self._set("corrupt-filter-enable", 1)
            _FLAGS.open("rb").close()
        except OSError as error:
            self._settings.close()
            raise Missing(
                f"{error.filename} ({error.strerror}): CONFIG_HWPOISON_INJECT, debugfs, and root "
                "(pyvmm lab build --debug faults)"
            ) from None

    def page_of(self, use: Callable[[], object]) -> None:
        """Poison the page that the file gets while ``use`` runs, which gives it one.

        Raises :class:`Missing` if no such page is found.
        """
        before = _all_flags()
        use()
        after = _all_flags()
        for frame in _new(before, after):
            with suppress(OSError):  # EBUSY: it is poisoned, and a page of its file still
                (_FOLDER / "corrupt-pfn").write_text(str(frame))
            if _flags(frame) & _HWPOISON:
                self._poisoned.append(frame)
                return
        raise Missing("the page frame of a page in a guest_memfd: it was not found")

    def close(self) -> None:
        for frame in self._poisoned:
            with suppress(OSError):  # whoever has its page still
                (_FOLDER / "unpoison-pfn").write_text(str(frame))
        self._poisoned.clear()
        self._settings.close()

    def _set(self, name: str, value: int) -> None:
        path = _FOLDER / name
        before = path.read_text()
        path.write_text(str(value))
        self._settings.callback(path.write_text, before)


def _new(before: bytes, after: bytes) -> list[int]:
    """The frames that have got a page meanwhile that is never written out."""
    found = []
    for start in range(0, len(after), PAGE):
        old, new = before[start : start + PAGE], after[start : start + PAGE]
        if old == new:
            continue
        pairs = zip(array("Q", old), array("Q", new), strict=True)
        found += [
            start // 8 + at for at, (was, now) in enumerate(pairs) if now & ~was & _UNEVICTABLE
        ]
    return found


def _all_flags() -> bytes:
    """Of every frame, what each CPU keeps to itself included."""
    with suppress(OSError):  # before it looks at a frame, even one of nobody's, it lets that go
        (_FOLDER / "corrupt-pfn").write_text("0")
    with _FLAGS.open("rb", buffering=0) as file:  # it is read in whole numbers only
        return b"".join(iter(lambda: file.read(1 << 20), b""))


def _flags(frame: int) -> int:
    with _FLAGS.open("rb", buffering=0) as file:
        file.seek(8 * frame)
        return int.from_bytes(file.read(8), "little")
