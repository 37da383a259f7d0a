"""``pyvmm run``: run a guest and say what happened."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pyvmm.cli import arguments, platform_options
from pyvmm.cli import main as status
from pyvmm.cli.arguments import refuse_to_share
from pyvmm.cli.interruption import Interrupted, Interruption
from pyvmm.cli.run_text import ConsoleText, render
from pyvmm.devices.debug_exit import status_of
from pyvmm.errors import PyvmmError, UnsupportedError
from pyvmm.guest.assembler import GuestFile, check_kind, image_of, read_guest
from pyvmm.guest.image import Image
from pyvmm.guest.platform import Platform
from pyvmm.guest.platforms import PROTOCOL, choose_platform
from pyvmm.loop.vcpu_loop import ExitRecord
from pyvmm.machine import CONTENTS, Machine
from pyvmm.memory.backends import BACKENDS
from pyvmm.report import Result, RunReport, to_json
from pyvmm.running import LogFunction

if TYPE_CHECKING:
    from pyvmm.trace.timeline import TimelineFile

_STATUS = {
    Result.PASS: status.PASSED,
    Result.FAIL: status.FAILED,
    Result.DEADLINE: status.DEADLINE,
    Result.ERROR: status.CANNOT_START,
    Result.SKIP: status.SKIPPED,
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="run a guest",
        description="Run a guest (assembly, flat binary or ELF) and report its exits and "
        "conversions. Exit status: 0 passed, 1 failed, 2 cannot start, 3 deadline, "
        "4 this host lacks what was asked, 130/143 interrupted.",
    )
    parser.add_argument("guest", metavar="GUEST", help="a file, or the name of a shipped guest")
    parser.add_argument("--backend", choices=["auto", *BACKENDS], default="auto")
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 2),
        help="how many GPAs a page of the guest protocol's regions has (default: 2)",
    )
    parser.add_argument(
        "--contents",
        choices=CONTENTS,
        default="zero",
        help="of a page after a conversion: zero, or what it was (default: zero)",
    )
    parser.add_argument("--vcpus", type=int, default=1, metavar="N", help="how many (default: 1)")
    platform_options.add_to(parser)
    parser.add_argument("--irqchip", action="store_true", help="in-kernel PIC, LAPIC and PIT")
    parser.add_argument(
        "--deadline",
        type=arguments.seconds,
        default=30.0,
        metavar="S",
        help="seconds (default: 30)",
    )
    parser.add_argument(
        "--param",
        type=_parameter,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a symbol for the assembler; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--log", metavar="FILE", help="write a JSON line for each exit")
    parser.add_argument(
        "--timeline", metavar="FILE", help="write a timeline for ui.perfetto.dev (JSON)"
    )
    parser.set_defaults(func=run, unblocks_signals=True)


def _parameter(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    try:
        number = int(value, 0)
        is_symbol = re.fullmatch(r"[A-Za-z_.$][\w.$]*", name, re.ASCII)
        if not is_symbol or not -1 << 31 <= number < 1 << 32:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=VALUE, a symbol and a number of 32 bits"
        ) from None
    return name, number


def run(options: argparse.Namespace) -> int:
    console = None if options.json else ConsoleText(sys.stdout)
    started = time.monotonic()
    with Interruption() as interruption:
        try:
            interruption.unblock()
            report = _report(options, interruption, console)
            interruption.hold()
        except Interrupted:
            report = replace(_without_a_run(options), result=Result.INTERRUPTED)
        if report.result is Result.INTERRUPTED:
            report = replace(report, reason=f"{interruption.name} ended the run")
        seconds = time.monotonic() - started
        try:
            if options.json:
                found = {**to_json(report), "guest": options.guest, "seconds": round(seconds, 3)}
                print(json.dumps(found))
            elif console is not None and (report.backend or not _is_complaint(report)):
                render(report, console, options.guest, seconds)
            sys.stdout.flush()
        except BrokenPipeError:
            # As with `| head`: who reads has seen enough, and the run was what it was.
            status.forget_stdout()
    if _is_complaint(report):
        status.complain(report.reason)
    if report.result is Result.INTERRUPTED:
        return 128 + (interruption.number or 2)
    if options.exit_port is not None and options.exit_port[1] and report.exit_code is not None:
        return status_of(report.exit_code)
    return _STATUS[report.result]


def _is_complaint(report: RunReport) -> bool:
    return report.result in (Result.ERROR, Result.SKIP)


def _report(
    options: argparse.Namespace, interruption: Interruption, console: ConsoleText | None
) -> RunReport:
    """The report of the run, or of why there was none."""
    report = _without_a_run(options)
    try:
        with ExitStack() as stack:
            # Both may wait for somebody (an assembler, a FIFO), so a signal ends them at once.
            file = read_guest(options.guest)
            platform = choose_platform(platform_options.taken_from(options), file.kind())
            report = replace(report, platform=platform.name, mode=platform.mode)
            image = _image_of(file, platform, options)
            if image.remark:
                status.complain(f"{image.name}: {image.remark}")
            files = _ExitFiles(options, stack)
            # A machine is built too quickly for that, and what a signal raises in a destructor
            # would be lost.
            interruption.hold()
            machine = stack.enter_context(
                Machine(
                    image,
                    platform=platform,
                    backend=options.backend,
                    views=options.views,
                    vcpus=options.vcpus,
                    irqchip=options.irqchip,
                    contents=options.contents,
                )
            )
            files.attach(machine, stack)
            if console is not None and console.is_live:
                machine.on_tick = lambda: _show_live(machine, console)
            interruption.then(machine.kick)
            try:
                machine.run(options.deadline)
                files.finish()
            finally:
                report = machine.report()
                if console is not None:
                    console.take(_printed(machine))
        return report
    except UnsupportedError as error:
        return replace(report, result=Result.SKIP, reason=str(error))
    except PyvmmError as error:
        return replace(report, result=Result.ERROR, reason=str(error))
    except MemoryError:
        return replace(report, result=Result.ERROR, reason=status.OUT_OF_MEMORY)


def _without_a_run(options: argparse.Namespace) -> RunReport:
    """The report of a guest that is not there yet: its world is what was asked for."""
    report = RunReport(Result.ERROR)
    if options.platform != "auto":
        report = replace(report, platform=options.platform)
    return replace(report, mode=options.mode) if options.mode is not None else report


def _image_of(file: GuestFile, platform: Platform, options: argparse.Namespace) -> Image:
    is_asked = options.platform != "auto" or options.mode is not None
    if platform.name == PROTOCOL:
        check_kind(file, platform.mode, is_asked=is_asked)
    make = None if platform.name == PROTOCOL else platform.image
    return image_of(file, platform.layout, dict(options.param), is_asked=is_asked, make=make)


class _ExitFiles:
    """What --log and --timeline name: opened before there is a machine, written during its run."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self._takers: list[LogFunction] = []
        self._timeline: TimelineFile | None = None
        self.finish: Callable[[], None] = _nothing
        refuse_to_share(
            ("--log", options.log),
            ("--timeline", options.timeline),
            inputs=[("GUEST", options.guest), *_initrds(options.initrd)],
        )
        if options.log is not None:
            from pyvmm.cli.exit_log import ExitLogFile

            self._takers.append(stack.enter_context(ExitLogFile(options.log)).take)
        if options.timeline is not None:
            from pyvmm.trace.timeline import TimelineFile

            called = f"--timeline {options.timeline}"
            self._timeline = stack.enter_context(TimelineFile(options.timeline, called))
            self._takers.append(self._timeline.exit)

    def attach(self, machine: Machine, stack: ExitStack) -> None:
        """Take all exits of the machine; :attr:`finish` is to be called after its run."""
        if not self._takers:
            return
        machine.log_exits(self._take)
        if self._timeline is None:
            return
        from pyvmm.trace.tracefs import KernelTrace

        try:
            trace = stack.enter_context(KernelTrace())
        except UnsupportedError as error:
            status.complain(f"the timeline has no tracepoints of the kernel: {error}")
            self.finish = partial(self._timeline.finish, machine, tuple)
        else:
            self.finish = partial(self._timeline.finish, machine, trace.stop)

    def _take(self, vcpu: int, record: ExitRecord) -> None:
        for each in self._takers:
            each(vcpu, record)


def _initrds(text: str | None) -> list[tuple[str, str]]:
    """The files that --initrd names: one, or several as the platform multiboot has them."""
    if text is None:
        return []
    from pyvmm.guest.initrd import split_modules

    names = [text, *(part.partition(" ")[0] for part in split_modules(text))]
    return [("--initrd", name) for name in names]


def _nothing() -> None:
    pass


def _show_live(machine: Machine, console: ConsoleText) -> None:
    console.take(_printed(machine))
    console.show()


def _printed(machine: Machine) -> bytes:
    """What the guest has printed: on the protocol's console, or where there is none on COM1."""
    return machine.console() if machine.platform.has_protocol else machine.serial()
