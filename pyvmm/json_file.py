"""JSON from files: those that somebody names, where what is wrong is one line, and pyvmm's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyvmm.errors import ConfigurationError

Made = TypeVar("Made")
#: What reading and parsing raise, and what taking apart does where the JSON has another shape.
_DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def read_own(path: Path, make: Callable[[Any], Made]) -> Made | None:
    """What ``make`` makes of JSON that pyvmm keeps in a file; None where there is none that can be
    read, or it is damaged.

    ``make`` takes it apart as if it were whole, and raises ValueError for what cannot be.
    """
    import json

    try:
        return make(json.loads(path.read_text()))
    except (*_DAMAGE, RecursionError):
        return None


def read_json(path: str, most_mib: int, remedy: str) -> Any:
    """What the file has, of ``most_mib`` MiB at most.

    Raises :class:`ConfigurationError` for anything else, with ``remedy``. A device without an end
    is read up to that limit.
    """
    import json

    try:
        with open(path, "rb") as file:
            text = file.read((most_mib << 20) + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(path or "a file without a name", cause, remedy) from None
    if len(text) > most_mib << 20:
        raise ConfigurationError(path, f"it has more than {most_mib} MiB", remedy)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigurationError(path, "it is not JSON", remedy) from None
