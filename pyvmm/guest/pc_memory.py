"""How much RAM a PC has, and where: below its devices under 4 GiB, the rest above."""

from __future__ import annotations

from pyvmm.errors import ConfigurationError

MIB = 1 << 20
#: Where the RAM below 4 GiB ends at the latest; behind it are devices.
DEVICES = 0xC000_0000
_4_GIB = 1 << 32


def pc_ram(mebibytes: int) -> tuple[tuple[int, int], ...]:
    """GPA and bytes of each piece. Raises :class:`ConfigurationError` for none."""
    if mebibytes < 1:
        raise ConfigurationError(f"--memory {mebibytes}", "a guest needs RAM", "give it 1 or more")
    size = mebibytes * MIB
    if size <= DEVICES:
        return ((0, size),)
    return ((0, DEVICES), (_4_GIB, size - DEVICES))
