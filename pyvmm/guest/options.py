"""What the command line says of the world that a guest is born into."""

from __future__ import annotations

from dataclasses import dataclass, fields

MODES = ("real", "protected", "long")


@dataclass(frozen=True, slots=True)
class PlatformOptions:
    """One field for each option, with what it means when it is not given.

    ``memory`` is in MiB, ``registers`` are (name, value) and ``regions`` (GPA, bytes, GPA of the
    shared view or None).
    """

    platform: str = "auto"
    mode: str | None = None
    memory: int | None = None
    load: int | None = None
    entry: int | None = None
    registers: tuple[tuple[str, int], ...] = ()
    append: str | None = None
    initrd: str | None = None
    regions: tuple[tuple[int, int, int | None], ...] = ()
    hlt: str | None = None
    exit_port: int | None = None

    def given(self) -> list[str]:
        """The fields that were given, but for the platform itself."""
        return [
            each.name
            for each in fields(self)
            if each.name != "platform" and getattr(self, each.name) != each.default
        ]


#: How the command line writes a field.
WORDS = {"registers": "--set", "regions": "--region", "exit_port": "--exit-port"}


def word(field: str) -> str:
    return WORDS.get(field, f"--{field}")
