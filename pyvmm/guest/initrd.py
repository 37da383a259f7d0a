"""The files that ``--initrd`` names."""

from __future__ import annotations

import os
import stat

from pyvmm.errors import GuestError
from pyvmm.guest.image import read_to_end


def read_initrd(name: str, most: int) -> bytes:
    """The file's bytes, ``most`` of them at most. Raises :class:`GuestError`, in one line."""
    thing = f"initrd {name}"
    try:
        with open(name, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise GuestError(thing, "it is no regular file")
            data = read_to_end(file, most + 1)
    except OSError as error:
        raise GuestError(thing, error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the name
        raise GuestError(thing, str(error)) from None
    if not data:
        raise GuestError(thing, "it is empty", "drop --initrd for none")
    if len(data) > most:
        raise GuestError(thing, f"it has more bytes than RAM ({most})", "raise --memory")
    return data


def split_modules(text: str) -> list[str]:
    """FILE[ STRING][,FILE[ STRING]]…, with ",," for a comma: each FILE with its string."""
    kept = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    return [part for part in kept if part]


def _open_at_once(name: str, flags: int) -> int:
    """A FIFO without a writer must not keep anybody waiting."""
    return os.open(name, flags | os.O_NONBLOCK)
