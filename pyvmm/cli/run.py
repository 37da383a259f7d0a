"""``pyvmm run``: run a guest and say what happened."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import FrameType
from typing import IO, Any, NoReturn

from pyvmm.cli import main as status
from pyvmm.errors import ConfigurationError, PyvmmError, UnsupportedError
from pyvmm.guest.assembler import load_guest
from pyvmm.host import host_facts, kernel_release
from pyvmm.machine import Machine
from pyvmm.memory.backends import BACKENDS
from pyvmm.report import Result, RunReport
from pyvmm.vcpu_loop import ExitRecord

_STATUS = {
    Result.PASS: status.PASSED,
    Result.FAIL: status.FAILED,
    Result.DEADLINE: status.DEADLINE,
    Result.ERROR: status.CANNOT_START,
    Result.SKIP: status.SKIPPED,
    Result.INTERRUPTED: status.INTERRUPTED,
}


class _Terminated(BaseException):
    """SIGTERM came."""


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
    parser.add_argument("--views", type=int, choices=(1, 2), default=2)
    parser.add_argument("--vcpus", type=int, default=1, metavar="N")
    parser.add_argument("--irqchip", action="store_true", help="in-kernel PIC, LAPIC and PIT")
    parser.add_argument(
        "--deadline", type=_seconds, default=30.0, metavar="S", help="seconds (default: 30)"
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
    parser.set_defaults(func=run)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError("more than 0 and at most 1000000 seconds")
    return value


def _parameter(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    try:
        if not equals or not name:
            raise ValueError
        return name, int(value, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER") from None


def run(options: argparse.Namespace) -> int:
    code: int | None = None
    complaint = ""
    try:
        with _termination_raises(), ExitStack() as stack:
            image = load_guest(options.guest, dict(options.param))
            log = stack.enter_context(_open_log(options.log)) if options.log else None
            machine = stack.enter_context(
                Machine(
                    image,
                    backend=options.backend,
                    views=options.views,
                    vcpus=options.vcpus,
                    irqchip=options.irqchip,
                )
            )
            if log is not None:
                _write_log(machine, log)
            try:
                report = machine.run(options.deadline)
            except KeyboardInterrupt:
                report = machine.report()
            except _Terminated:
                report, code = machine.report(), status.TERMINATED
    except KeyboardInterrupt:
        report = RunReport(Result.INTERRUPTED, reason="interrupted before the guest ran")
    except _Terminated:
        report, code = RunReport(Result.INTERRUPTED, reason="terminated"), status.TERMINATED
    except UnsupportedError as error:
        report, complaint = RunReport(Result.SKIP, reason=str(error)), str(error)
    except (PyvmmError, OSError) as error:
        report, complaint = RunReport(Result.ERROR, reason=str(error)), str(error)
    if options.json:
        print(json.dumps(to_json(report)))
    elif not complaint:
        from pyvmm.cli.run_text import render

        render(report, sys.stdout)
    if complaint:
        print(f"pyvmm: {complaint}", file=sys.stderr)
    return _STATUS[report.result] if code is None else code


@contextmanager
def _termination_raises() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does."""

    def on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _open_log(name: str) -> IO[str]:
    try:
        return open(name, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--log {name}", error.strerror or str(error)) from None


def _write_log(machine: Machine, log: IO[str]) -> None:
    def write(index: int, record: ExitRecord) -> None:
        line = {"vcpu": index, **record._asdict()}
        if record.conversion is not None:
            line["conversion"] = record.conversion.name.lower()
        # One write per line: vCPUs log from their own threads.
        log.write(json.dumps(line) + "\n")

    machine.log_exits(write)


def to_json(report: RunReport) -> dict[str, Any]:
    """The object of ``--json``."""
    return {
        "result": report.result.value,
        "exit_code": report.exit_code,
        "reason": report.reason,
        "backend": report.backend,
        "mechanism": report.mechanism,
        "kernel": kernel_release(),
        "console": report.console,
        "exits": report.exits,
        "conversions": asdict(report.conversions),
        "latency_ns": {
            "exit": asdict(report.exit_latency),
            "conversion": asdict(report.conversion_latency),
        },
        "measures": list(report.measures),
        "memory": [
            {"gpa": region.gpa, "size": region.size, "private": [list(r) for r in region.private]}
            for region in report.memory
        ],
        "host": host_facts(),
    }
