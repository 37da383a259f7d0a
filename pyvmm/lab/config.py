"""Kernel configurations: fragments laid over each other, and what became of them."""

from __future__ import annotations

import re
from pathlib import Path

from pyvmm.lab.errors import LabError, LabUsageError

_LINE = re.compile(r"(?:(CONFIG_\w+)=(.+)|# (CONFIG_\w+) is not set)\s*")

#: Without these a kernel is no lab; Kconfig drops an option silently when it is unknown or
#: something that it depends on is off.
_NEEDED = (
    "CONFIG_KVM_AMD",
    "CONFIG_KVM_SW_PROTECTED_VM",
    "CONFIG_9P_FS",
    "CONFIG_NET_9P_VIRTIO",
    "CONFIG_OVERLAY_FS",
    "CONFIG_VIRTIO_CONSOLE",
    "CONFIG_SERIAL_8250_CONSOLE",
)
#: How many lost options an error names.
_NAMED = 8


def own_fragment() -> str:
    """The lab's own configuration."""
    return Path(__file__).with_name("kernel.config").read_text()


def parse_config(text: str) -> dict[str, str]:
    """Option to value, "n" for what is not set; the last line counts, as for Kconfig."""
    options = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            name, value, unset = match.groups()
            options[name or unset] = value if name else "n"
    return options


def read_fragment(path: Path) -> str:
    """A fragment's text; a LabUsageError for a line that is no configuration."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no text"
        remedy = "name a fragment of a kernel's .config"
        raise LabUsageError(f"configuration {path}", cause, remedy) from None
    said: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        where = f"configuration {path}, line {number}"
        if stripped and not stripped.startswith("#") and not _LINE.fullmatch(line):
            raise LabUsageError(where, "want CONFIG_NAME=VALUE")
        for name, value in parse_config(line).items():
            before, first = said.setdefault(name, (value, number))
            if before != value:
                raise LabUsageError(where, f"{name}={value}, and line {first} has {name}={before}")
    return text


def check_config(final: str, own: str, extra: str) -> None:
    """A LabError naming what the final configuration lacks: of what the lab needs, or of what
    the person asked for in `extra`."""
    got = parse_config(final)
    asked = parse_config(extra)
    wanted = {name: value for name, value in parse_config(own).items() if name in _NEEDED} | asked
    lost = [f"{name}={value}" for name, value in wanted.items() if got.get(name, "n") != value]
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise LabError(
            f"{', '.join(lost[:_NAMED])}{more} did not stick",
            "this kernel does not know the option, or something that it depends on is off",
        )
