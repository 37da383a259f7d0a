"""The options of ``pyvmm run`` that say into what world a guest is born."""

from __future__ import annotations

import argparse

from pyvmm.guest.options import MODES, PlatformOptions
from pyvmm.guest.platforms import PLATFORMS
from pyvmm.kvm.mapping import PAGE_SIZE

_MOST_MIB = 1 << 20
_ADDRESS_END = 1 << 52  # no x86 CPU has more


def add_to(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the guest's world")
    group.add_argument(
        "--platform",
        choices=["auto", *PLATFORMS],
        default="auto",
        help="what the guest is made for (default: auto, which looks at the file)",
    )
    group.add_argument("--mode", choices=MODES, help="the CPU's mode (default: by the file)")
    group.add_argument(
        "--memory",
        type=_mebibytes,
        metavar="MIB",
        help="where RAM ends (default: 16; 256 for multiboot and linux)",
    )
    group.add_argument("--load", type=_address, metavar="ADDR", help="load GUEST there")
    group.add_argument("--entry", type=_address, metavar="ADDR", help="where vCPUs start")
    group.add_argument(
        "--set",
        type=_register,
        action="append",
        default=[],
        dest="registers",
        metavar="REG=VALUE",
        help="a register at the start; may be given several times",
    )
    group.add_argument("--append", metavar="TEXT", help="the command line for a kernel")
    group.add_argument("--initrd", metavar="FILE", help="a module or an initramfs")
    group.add_argument(
        "--region",
        type=_region,
        action="append",
        default=[],
        dest="regions",
        metavar="GPA,SIZE[,SHARED_GPA]",
        help="one more region; may be given several times",
    )
    group.add_argument("--hlt", choices=("pass", "fail"), help="what an end in HLT means")
    group.add_argument(
        "--exit-port",
        type=_exit_port,
        metavar="PORT[,status]",
        help="a write to it ends the run; with ,status pyvmm's exit status is (code << 1) | 1",
    )


def taken_from(options: argparse.Namespace) -> PlatformOptions:
    return PlatformOptions(
        platform=options.platform,
        mode=options.mode,
        memory=options.memory,
        load=options.load,
        entry=options.entry,
        registers=tuple(options.registers),
        append=options.append,
        initrd=options.initrd,
        regions=tuple(options.regions),
        hlt=options.hlt,
        exit_port=None if options.exit_port is None else options.exit_port[0],
    )


def _number(text: str, end: int, what: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < end:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def _mebibytes(text: str) -> int:
    return _number(text, _MOST_MIB + 1, f"a number of MiB, up to {_MOST_MIB}")


def _address(text: str) -> int:
    return _number(text, _ADDRESS_END, "an address of at most 52 bits")


def _exit_port(text: str) -> tuple[int, bool]:
    """The port, and whether pyvmm's exit status is to be made of the code."""
    port, comma, word = text.partition(",")
    if comma and word != "status":
        raise argparse.ArgumentTypeError(f"{text!r} is not PORT or PORT,status")
    return _number(port, 1 << 16, "a port, from 0 to 0xffff"), bool(comma)


def _register(text: str) -> tuple[str, int]:
    name, is_there, value = text.partition("=")
    if not name.isidentifier() or not is_there:
        raise argparse.ArgumentTypeError(f"{text!r} is not REG=VALUE")
    return name.lower(), _number(value, 1 << 64, "REG=VALUE with a number of 64 bits")


def _region(text: str) -> tuple[int, int, int | None]:
    parts = text.split(",")
    if not 2 <= len(parts) <= 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not GPA,SIZE[,SHARED_GPA]")
    what = f"a multiple of {PAGE_SIZE} below 2^52"
    numbers = [_number(part, _ADDRESS_END, what) for part in parts]
    if any(number % PAGE_SIZE for number in numbers) or not numbers[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: GPA and SIZE are multiples of {PAGE_SIZE}")
    gpa, size, *shared = numbers
    return gpa, size, shared[0] if shared else None
