"""JSON from a file that somebody names: whatever is in it, what is wrong with it is one line."""

from __future__ import annotations

from typing import Any

from pyvmm.errors import ConfigurationError


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
