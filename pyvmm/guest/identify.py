"""Whether a file can be a real-mode guest, told by its content; a name only chooses words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pyvmm.errors import GuestError
from pyvmm.guest.boot import RAM_SIZE, START
from pyvmm.guest.elf import is_elf
from pyvmm.guest.elf_kind import elf_kind
from pyvmm.guest.formats import binary_kind
from pyvmm.guest.kind import Kind
from pyvmm.guest.text import MAX_SOURCE, text_of


def kind_of(path: Path, data: bytes, size: int) -> Kind | None:
    """What the file is, from ``data``, its first bytes of ``size``; None if it may be a guest."""
    if is_elf(data):
        return elf_kind(data)
    if len(data) == size and not data.strip(b"\0"):
        return Kind("nothing but zeros", "is it built, or a sparse disk?")
    kind = binary_kind(data, size)
    if kind is None and len(data) <= MAX_SOURCE and (text := text_of(data)) is not None:
        # Slow to import, for its many patterns.
        from pyvmm.guest.languages import language_of

        kind = language_of(text, str(path), path.suffix)
    if kind is not None and size > RAM_SIZE - START:
        return replace(kind, is_loadable=False)
    return kind


def refusal(path: Path, kind: Kind, mode: str = "real") -> GuestError:
    """The error that says what the file is, which is no guest of ``mode``, and what to do."""
    remedies = [kind.remedy, "--mode real runs it all the same" if kind.is_loadable else ""]
    wanted = "real-mode guest" if mode == "real" else f"guest of {mode} mode"
    cause = f"it is {kind.name}, no {wanted}"
    return GuestError(str(path), cause, "; ".join(remedy for remedy in remedies if remedy))
