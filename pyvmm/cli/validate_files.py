"""``--junit FILE`` and ``--kcidb FILE``: opened before the run, written at its end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyvmm.cli.arguments import refuse_to_share
from pyvmm.closing import Closing
from pyvmm.errors import ConfigurationError
from pyvmm.trace.output_file import OutputFile
from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.report import Report
from pyvmm.validate.run.observer import Observer, Passing

if TYPE_CHECKING:
    from pyvmm.validate.results.kcidb import Build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--junit", metavar="FILE", help="write the results there as JUnit XML, too")
    parser.add_argument("--kcidb", metavar="FILE", help="and there as KCIDB takes them (JSON)")
    parser.add_argument(
        "--kcidb-origin",
        metavar="NAME",
        help="who sends them, as KCIDB knows you; --kcidb wants it",
    )


def add_build_argument(parser: argparse.ArgumentParser) -> None:
    """For what has one kernel."""
    parser.add_argument(
        "--kcidb-build",
        metavar="ORIGIN:ID",
        help="the build of this kernel that KCIDB knows; otherwise the kernel is described",
    )


class ResultFiles(Closing):
    """The open files. Raises :class:`ConfigurationError` for what cannot be opened or written."""

    def __init__(self, options: argparse.Namespace, *, strict: bool = False) -> None:
        self._strict = strict
        self._origin: str = options.kcidb_origin or ""
        self._build: str = getattr(options, "kcidb_build", None) or ""
        self._started: dict[str, float] = {}
        self._files: dict[str, OutputFile] = {}
        _check_kcidb(options)
        refuse_to_share(
            *(
                (f"--{name}", getattr(options, name, None))
                for name in ("baseline", "replay", "junit", "kcidb")
            )
        )
        with ExitStack() as stack:
            for option, name in (("--junit", options.junit), ("--kcidb", options.kcidb)):
                if name is not None:
                    file = OutputFile(name, f"{option} {name}")
                    self._files[option] = stack.enter_context(file)
            self._stack = stack.pop_all()

    def watch(self, observer: Observer) -> Observer:
        """The observer, with a note of when each case begins."""
        return _Starts(observer, self._started) if "--kcidb" in self._files else observer

    def write(self, reports: Mapping[str, Report]) -> None:
        """What came out, by the names that tell reports apart; call it once."""
        if file := self._files.get("--junit"):
            from pyvmm.validate.results import junit

            file.write(junit.to_xml(reports, strict=self._strict))
        if file := self._files.get("--kcidb"):
            import uuid

            from pyvmm.validate.results import kcidb

            run = uuid.uuid4().hex
            parts = [
                kcidb.to_json(report, build, f"{run}.{number}", self._started)
                for number, (name, report) in enumerate(reports.items(), 1)
                if (build := self._kernel(name, report))
            ]
            file.write(json.dumps(kcidb.put_together(parts), indent=1).encode() + b"\n")

    def _kernel(self, name: str, report: Report) -> Build | None:
        """The kernel of a report, None for one that died before it said which it is."""
        from pyvmm.validate.results import kcidb

        if self._build:
            return kcidb.Build(self._origin, self._build)
        if not report.machine:
            called = name or "the kernel"
            print(f"pyvmm: --kcidb leaves out {called}: it says no build ID", file=sys.stderr)
            return None
        build_id: str = report.machine.get("build_id", "")
        return kcidb.described(self._origin, build_id, report.machine["kernel"])

    def close(self) -> None:
        self._stack.close()


class _Starts(Passing):
    def __init__(self, observer: Observer, started: dict[str, float]) -> None:
        super().__init__(observer)
        self._started = started

    def started(self, each: Case) -> None:
        self._started[each.name] = time.time()
        super().started(each)


def _check_kcidb(options: argparse.Namespace) -> None:
    """Say what is wrong with the request before anything runs."""
    from pyvmm.validate.results import kcidb

    build: str | None = getattr(options, "kcidb_build", None)
    if options.kcidb is None:
        for option, value in (("origin", options.kcidb_origin), ("build", build)):
            if value is not None:
                raise ConfigurationError(f"--kcidb-{option}", "there is no --kcidb FILE to write")
        return
    if options.kcidb_origin is None:
        raise ConfigurationError(
            f"--kcidb {options.kcidb}",
            "nobody knows who sends it",
            "--kcidb-origin NAME is who you are for KCIDB",
        )
    kcidb.Build(options.kcidb_origin, build or "", "" if build else "told later")


def check_running_kernel(options: argparse.Namespace) -> None:
    """Say before a run on it that this kernel cannot be described to KCIDB."""
    from pyvmm.host import kernel_build_id, kernel_release
    from pyvmm.validate.results import kcidb

    if options.kcidb and options.kcidb_origin and not options.kcidb_build:
        kcidb.described(options.kcidb_origin, kernel_build_id(), kernel_release())
