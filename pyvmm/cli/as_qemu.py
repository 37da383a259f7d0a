"""``pyvmm-as-qemu``: takes the options that kvm-unit-tests' run_tests.sh gives to QEMU.

    QEMU=$PWD/.venv/bin/pyvmm-as-qemu ./run_tests.sh

The exit status is QEMU's: (code << 1) | 1 for a code at the debug exit port, 0 for a reset, a
power off and a triple fault. What pyvmm lacks is named in one line, with status 2.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm import __version__
from pyvmm.cli.standard_streams import open_standard_streams
from pyvmm.errors import ConfigurationError, PyvmmError
from pyvmm.guest.cpu_features import MOST_VCPUS, CpuModel, cpu_model
from pyvmm.guest.options import PlatformOptions
from pyvmm.printable import printable

if TYPE_CHECKING:
    from pyvmm.report import RunReport

# run_tests.sh looks for "QEMU" in the first and takes the version's numbers from the second.
_VERSION = f"QEMU emulator version 7.2.0 (in its place: pyvmm {__version__})"
_USAGE = f"""{_VERSION}
usage: pyvmm-as-qemu -kernel FILE [-append TEXT] [-initrd FILE] [-smp N] [-m SIZE] [-cpu MODEL]
       [-machine accel=kvm] [-device pc-testdev] [-device isa-debug-exit,iobase=0xf4]
"""
_DEVICES = 'name "isa-debug-exit", bus ISA\nname "pc-testdev", bus ISA\n'

#: A test ends by itself, or whoever runs it has a time limit.
_DEADLINE_S = 1_000_000
_CANNOT = 2
# With a word on stderr, by which run_tests.sh tells it from a code of 0.
_FAILED = 1
# By the option: which values mean nothing here that would be different. "" stands for any.
_HARMLESS: dict[str, tuple[str, ...]] = {
    "nodefaults": (),
    "no-reboot": (),
    "enable-kvm": (),
    "nographic": (),
    "display": ("none",),
    "vnc": ("none",),
    "serial": ("stdio", "mon:stdio"),
    "monitor": ("none",),
    "overcommit": ("",),
    "global": ("kvm-pit.lost_tick_policy=discard",),
}
# No PCI device is ever found: tests without one go on.
_KNOWN_DEVICES = ("pc-testdev", "isa-debug-exit,iobase=0xf4,iosize=0x4", "pci-testdev")
_MACHINE = (
    "accel=kvm",
    "pc",
    "pit=on",
    "pit=off",
    "vmport=on",
    "vmport=off",
    "kernel_irqchip=on",
    "kernel-irqchip=on",
)
_SIZES = {"": 1, "m": 1, "M": 1, "g": 1024, "G": 1024}


@dataclass(frozen=True, slots=True)
class Request:
    """What the options ask for."""

    kernel: str = ""
    vcpus: int = 1
    options: PlatformOptions = field(
        default_factory=lambda: PlatformOptions(platform="multiboot", memory=128)
    )
    cpu: CpuModel = field(default_factory=CpuModel)
    has_vmware_port: bool = True


def parse(arguments: Sequence[str]) -> Request:
    """QEMU's options. Raises :class:`ConfigurationError` for what pyvmm lacks."""
    request = Request()
    left = list(arguments)
    while left:
        option = left.pop(0)
        name = option.lstrip("-")
        if not option.startswith("-"):
            name, left = "kernel", [option, *left]
        harmless = _HARMLESS.get(name)
        if harmless == ():
            continue
        if harmless is None and name not in _OPTIONS:
            raise ConfigurationError(option, "pyvmm has nothing like this option of QEMU's")
        if not left:
            raise ConfigurationError(option, "its value is missing")
        value = left.pop(0)
        if harmless is None:
            request = _OPTIONS[name](request, value)
        elif value not in harmless and "" not in harmless:
            raise ConfigurationError(f"{option} {value}", f"pyvmm has {', '.join(harmless)} only")
    if not request.kernel:
        raise ConfigurationError("-kernel", "it is missing", "name a multiboot file")
    if not os.path.exists(request.kernel):
        # run_tests.sh asks for a file that there is not, and looks for these words.
        raise ConfigurationError(f"could not open kernel {request.kernel}", "there is no such file")
    return request


def _kernel(request: Request, value: str) -> Request:
    return replace(request, kernel=value)


def _vcpus(request: Request, value: str) -> Request:
    count = value.partition(",")[0].removeprefix("cpus=")
    if not count.isdecimal():
        raise ConfigurationError(f"-smp {value}", "it is no number of CPUs")
    if not 1 <= int(count) <= MOST_VCPUS:
        # run_tests.sh --probe-maxsmp looks for these words and the number in parentheses.
        cause = f"Number of SMP CPUs requested exceeds the max supported ({MOST_VCPUS})"
        raise ConfigurationError(f"-smp {value}", cause)
    return replace(request, vcpus=int(count))


def _memory(request: Request, value: str) -> Request:
    size = value.partition(",")[0].removeprefix("size=")
    digits = size.rstrip("mMgG")
    if not digits.isdecimal() or size[len(digits) :] not in _SIZES:
        raise ConfigurationError(f"-m {value}", "it is no size in MiB, or in GiB with a G")
    mebibytes = int(digits) * _SIZES[size[len(digits) :]]
    return replace(request, options=replace(request.options, memory=mebibytes))


def _append(request: Request, value: str) -> Request:
    return replace(request, options=replace(request.options, append=value))


def _initrd(request: Request, value: str) -> Request:
    return replace(request, options=replace(request.options, initrd=value))


def _cpu(request: Request, value: str) -> Request:
    return replace(request, cpu=cpu_model(value))


def _device(request: Request, value: str) -> Request:
    if value not in _KNOWN_DEVICES:
        raise ConfigurationError(f"-device {value}", "pyvmm has no such device")
    return request


def _machine(request: Request, value: str) -> Request:
    for part in value.split(","):
        if part.removeprefix("type=") not in _MACHINE:
            raise ConfigurationError(f"-machine {value}", f"pyvmm has no {part}")
        if part.startswith("vmport="):
            request = replace(request, has_vmware_port=part == "vmport=on")
    return request


_OPTIONS: dict[str, Callable[[Request, str], Request]] = {
    "kernel": _kernel,
    "smp": _vcpus,
    "m": _memory,
    "append": _append,
    "initrd": _initrd,
    "cpu": _cpu,
    "device": _device,
    "machine": _machine,
    "M": _machine,
    "accel": lambda request, value: _machine(request, f"accel={value}"),
}


def run(request: Request) -> RunReport:
    """The run, with what the guest sends to COM1 on stdout."""
    # Slow to import: run_tests.sh asks five times before each test, and runs once.
    from pyvmm.guest.image import read_guest_file
    from pyvmm.guest.multiboot import Multiboot
    from pyvmm.machine import Machine

    data = read_guest_file(Path(request.kernel))
    platform = Multiboot(
        request.options,
        cpu=request.cpu,
        show=_show,
        has_vmware_port=request.has_vmware_port,
    )
    image = platform.image(request.kernel, data)
    if image.remark:
        _complain(f"{image.name}: {image.remark}")
    with Machine(image, platform=platform, vcpus=request.vcpus, recording=False) as machine:

        def end(number: int, frame: object) -> None:
            machine.kick()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, end)
        return machine.run(_DEADLINE_S)


def _show(data: bytes) -> None:
    # Unbuffered, so that what was sent before a kill is seen.
    os.write(1, data)


def main() -> int:
    """The command; the exit status that QEMU would have."""
    open_standard_streams()
    arguments = sys.argv[1:]
    if any(each in ("-h", "-help", "--help") for each in arguments):
        print(_USAGE, end="")
        return 0
    if any(each in ("-version", "--version") for each in arguments):
        print(_VERSION)
        return 0
    if arguments[:2] in (["-device", "?"], ["-device", "help"]):
        print(_DEVICES, end="")
        return 0
    try:
        report = run(parse(arguments))
    except PyvmmError as error:
        _complain(str(error))
        return _CANNOT
    except BrokenPipeError:
        return _FAILED
    except OSError as error:
        _complain(f"stdout: {error.strerror or error}")
        return _FAILED
    if report.exit_code is not None:
        from pyvmm.devices.debug_exit import status_of

        return status_of(report.exit_code)
    if report.passed or "triple fault" in report.reason:
        return 0
    _complain(report.reason)
    return _FAILED


def _complain(message: str) -> None:
    with suppress(OSError):
        print(f"pyvmm-as-qemu: {printable(message)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
