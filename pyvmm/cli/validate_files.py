"""``validate --junit FILE`` and ``--kcidb FILE``: opened before the run, written at its end."""

from __future__ import annotations

import argparse
import json
import time
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
    parser.add_argument(
        "--kcidb-build",
        metavar="ORIGIN:ID",
        help="the build of this kernel that KCIDB knows; otherwise the running kernel is described",
    )


class ResultFiles(Closing):
    """The open files. Raises :class:`ConfigurationError` for what cannot be opened or written."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._strict: bool = options.strict
        self._build = _build(options)
        self._started: dict[str, float] = {}
        self._files: dict[str, OutputFile] = {}
        refuse_to_share(
            ("--baseline", options.baseline),
            ("--replay", options.replay),
            ("--junit", options.junit),
            ("--kcidb", options.kcidb),
        )
        with ExitStack() as stack:
            for option, name in (("--junit", options.junit), ("--kcidb", options.kcidb)):
                if name is not None:
                    file = OutputFile(name, f"{option} {name}")
                    self._files[option] = stack.enter_context(file)
            self._stack = stack.pop_all()

    def watch(self, observer: Observer) -> Observer:
        """The observer, with a note of when each case begins."""
        return _Starts(observer, self._started) if self._build else observer

    def write(self, now: Report) -> None:
        """What came out; call it once."""
        if file := self._files.get("--junit"):
            from pyvmm.validate.results import junit

            file.write(junit.to_xml(now, strict=self._strict))
        if (file := self._files.get("--kcidb")) and self._build:
            import uuid

            from pyvmm.validate.results import kcidb

            data = kcidb.to_json(now, self._build, uuid.uuid4().hex, self._started)
            file.write(json.dumps(data, indent=1).encode() + b"\n")

    def close(self) -> None:
        self._stack.close()


class _Starts(Passing):
    def __init__(self, observer: Observer, started: dict[str, float]) -> None:
        super().__init__(observer)
        self._started = started

    def started(self, each: Case) -> None:
        self._started[each.name] = time.time()
        super().started(each)


def _build(options: argparse.Namespace) -> Build | None:
    """The kernel as KCIDB is told of it, None where that is not asked for."""
    from pyvmm.validate.results import kcidb

    if options.kcidb is None:
        for option in ("origin", "build"):
            if getattr(options, f"kcidb_{option}") is not None:
                raise ConfigurationError(f"--kcidb-{option}", "there is no --kcidb FILE to write")
        return None
    if options.kcidb_origin is None:
        raise ConfigurationError(
            f"--kcidb {options.kcidb}",
            "nobody knows who sends it",
            "--kcidb-origin NAME is who you are for KCIDB",
        )
    if options.kcidb_build is None:
        return kcidb.running_kernel(options.kcidb_origin)
    return kcidb.Build(options.kcidb_origin, options.kcidb_build)
