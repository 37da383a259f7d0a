"""The platforms that the command line has, and which of them a guest's file asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pyvmm.errors import ConfigurationError
from pyvmm.guest.flat_modes import LongMode, ProtectedMode
from pyvmm.guest.kind import Kind
from pyvmm.guest.options import PlatformOptions, word
from pyvmm.guest.platform import Platform
from pyvmm.guest.real_mode import RealMode

PROTOCOL = "protocol"


def _protocol(options: PlatformOptions) -> Platform:
    if options.mode == ProtectedMode.mode:
        return ProtectedMode(options)
    return LongMode(options) if options.mode == LongMode.mode else RealMode()


def _bare(options: PlatformOptions) -> Platform:
    from pyvmm.guest.bare import Bare

    return Bare(options)


def _multiboot(options: PlatformOptions) -> Platform:
    from pyvmm.guest.multiboot import Multiboot

    return Multiboot(options)


def _linux(options: PlatformOptions) -> Platform:
    from pyvmm.guest.initrd import read_initrd
    from pyvmm.guest.linux import MEMORY, Linux

    memory = MEMORY if options.memory is None else options.memory
    initrd = None if options.initrd is None else read_initrd(options.initrd, memory << 20)
    return Linux(memory=memory, append=options.append or "", initrd=initrd)


#: What makes each, by its name. A factory is given options of which it has said that it
#: has a use for them, by the class attribute ``options`` of what it returns.
PLATFORMS: dict[str, Callable[[PlatformOptions], Platform]] = {
    PROTOCOL: _protocol,
    "bare": _bare,
    "multiboot": _multiboot,
    "linux": _linux,
}


def protocol_platform(mode: str | None = None) -> Platform:
    """The guest protocol's world in a mode, by default real."""
    if mode is None or mode == RealMode.mode:
        return RealMode()
    return _protocol(PlatformOptions(platform=PROTOCOL, mode=mode))


def make_platform(options: PlatformOptions) -> Platform:
    """The platform that ``options.platform`` names, which is not "auto".

    Raises :class:`ConfigurationError` for an option that it has no use for.
    """
    if options.platform not in PLATFORMS:
        known = ", ".join(["auto", *PLATFORMS])
        raise ConfigurationError(
            f"platform {options.platform}", "there is no such platform", f"use {known}"
        )
    platform = PLATFORMS[options.platform](options)
    for field in options.given():
        if field not in platform.options:
            mode = f" in {platform.mode} mode" if platform.name == PROTOCOL else ""
            raise ConfigurationError(
                word(field), f"the platform {platform.name}{mode} has no use for it", "drop it"
            )
    return platform


def choose_platform(options: PlatformOptions, kind: Kind | None) -> Platform:
    """The platform that the command line asks for; with "auto", that of the guest's file.

    ``kind`` is what the file is. Raises :class:`ConfigurationError`.
    """
    name, mode = options.platform, options.mode
    if name == "auto":
        named = kind.platform if kind is not None and mode is None else ""
        name = named if named in PLATFORMS else PROTOCOL
    if name == PROTOCOL and mode is None and kind is not None:
        mode = kind.mode or None
    return make_platform(replace(options, platform=name, mode=mode))
