"""The pytest plugin: KVM tests as short functions.

    from pyvmm.pytest_plugin import needs

    @needs("private_memory")
    def test_first_touch(machine, assemble):
        report = machine(assemble('''
            movw $PRIVATE, %ax
            movw %ax, %es
            movb $0x5a, %es:0
            assert_eqb %es:0, $0x5a
            exit_guest $0
        '''))
        assert report.conversions.to_private == 1

Fixtures: ``machine`` runs a guest and fails the test if the guest does not pass;
``assemble`` makes an image from assembly; ``vm`` is a VM and ``vcpu`` a vCPU of it, for
raw ioctls; ``private_region`` is guest memory with a private and a shared side. A test
that needs what the host lacks is skipped, and the reason names it. ``--ktap FILE`` writes
the results as KTAP too.

Loading the plugin imports neither the compiled module nor opens /dev/kvm: pytest loads it
in every project of the environment.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyvmm.guest.image import Image
    from pyvmm.kvm.system import Kvm
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.kvm.vm import Vm
    from pyvmm.report import RunReport
    from pyvmm.validate.kit.memory import Memory
    from pyvmm.validate.kit.toolbox import Toolbox

RunGuest = Callable[..., "RunReport"]
Assemble = Callable[..., "Image"]


class GuestFailed(AssertionError):
    """A guest did not pass, or is none: the text has its file and line, or what it did last."""


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip the test unless the host has these; see :mod:`pyvmm.validate.kit.capabilities`."""
    # The keyword tells this mark from another project's of the same name.
    return pytest.mark.needs(*names, of=__name__)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyvmm")
    group.addoption("--ktap", metavar="FILE", help="write the results to FILE as KTAP version 1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(name, ...): what pyvmm.pytest_plugin.needs marks a test with"
    )
    path = config.getoption("--ktap")
    if path and not hasattr(config, "workerinput"):
        try:
            Path(path).touch()
        except OSError as error:
            raise pytest.UsageError(f"--ktap {path}: {error.strerror}") from None
        config.pluginmanager.register(_KtapWriter(Path(path)), "pyvmm-ktap")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        if mark.kwargs.get("of") == __name__:
            for name in mark.args:
                _skip_unless(name)


def _skip_unless(name: str) -> None:
    from pyvmm.validate.kit.capabilities import CAPABILITIES, missing

    if name not in CAPABILITIES:
        known = ", ".join(sorted(CAPABILITIES))
        pytest.fail(f"needs({name!r}): there is no such capability; use {known}", pytrace=False)
    lack = missing(name)
    if lack:
        pytest.skip(f"{name}: {lack}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # What the guest did counts, not the Python that started it.
    if call.excinfo is not None and isinstance(call.excinfo.value, GuestFailed):
        report.longrepr = str(call.excinfo.value)
    return report


# ---- fixtures ----


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    """An open /dev/kvm; the test is skipped where there is none."""
    from pyvmm.kvm.system import Kvm

    _skip_unless("kvm")
    with Kvm() as opened:
        yield opened


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    """A VM of the default type, without memory."""
    with kvm.create_vm() as created:
        yield created


@pytest.fixture
def vcpu(vm: Vm) -> Iterator[Vcpu]:
    """vCPU 0 of ``vm``."""
    with vm.create_vcpu(0) as created:
        yield created


@pytest.fixture
def assemble() -> Assemble:
    """``assemble(source, **symbols)``: an image from assembly text, for ``machine``.

    The macros of ``pyvmm.inc`` are there. What goes wrong in a guest is reported with the
    file and the line in which its text stands.
    """

    def assemble(source: str, **symbols: int) -> Image:
        from pyvmm.errors import GuestError
        from pyvmm.guest.assembler import assemble as to_image

        caller = sys._getframe(1)
        heading = _heading(Path(caller.f_code.co_filename), caller.f_lineno, source)
        try:
            return to_image(heading + source, symbols)
        except GuestError as error:
            raise GuestFailed(str(error)) from None

    return assemble


def _heading(path: Path, line: int, source: str) -> str:
    """The macros, and for the assembler: the line of the file at which the source begins."""
    macros = "" if ".include" in source else f'.include "pyvmm.inc"\nguest "{path.name}"\n'
    return f'{macros}# {_first_line(path, line, source)} "{path.name}"\n'


def _first_line(path: Path, line: int, source: str) -> int:
    """Where a text stands in a file, nearest to a line; that line if it stands nowhere so."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return line
    begins = [found.start() for found in re.finditer(re.escape(source), text)]
    lines = [text.count("\n", 0, begin) + 1 for begin in begins]
    return min(lines, key=lambda each: abs(each - line), default=line)


@pytest.fixture
def machine(kvm: Kvm) -> RunGuest:
    """``machine(guest, **options)``: run a guest and return its report.

    ``guest`` is an image, the bytes of a flat binary, or the name of a file;
    ``deadline_s`` is for the run, ``passes=False`` returns also the report of a guest that
    failed, all else goes to :class:`pyvmm.machine.Machine`.
    """

    def run(
        guest: Image | bytes | str,
        *,
        deadline_s: float = 10.0,
        passes: bool = True,
        **options: Any,
    ) -> RunReport:
        from pyvmm.errors import UnsupportedError
        from pyvmm.guest.assembler import load_guest
        from pyvmm.machine import Machine

        image = load_guest(guest) if isinstance(guest, str) else guest
        try:
            with Machine(image, kvm=kvm, **options) as built:
                report = built.run(deadline_s)
        except UnsupportedError as error:
            pytest.skip(str(error))
        if passes and not report.passed:
            raise GuestFailed(_told(report))
        return report

    return run


def _told(report: RunReport) -> str:
    from pyvmm.printable import printable, shown

    lines = [f"{report.result}: {report.reason or 'no exit code'}"]
    if report.where is not None:
        lines += report.where.lines()
    if report.console:
        lines += ["console:", *map(printable, shown(report.console).splitlines())]
    return "\n".join(lines)


@pytest.fixture
def tools(request: pytest.FixtureRequest, kvm: Kvm) -> Iterator[Toolbox]:
    """What the cases of ``pyvmm validate`` work with."""
    from pyvmm.validate.kit.toolbox import Toolbox

    with Toolbox(request.node.nodeid) as toolbox:
        yield toolbox


@pytest.fixture
def private_region(tools: Toolbox) -> Memory:
    """64 KiB at 4 GiB in a software-protected VM with one vCPU, all pages shared.

    Its ``vm.cpu`` runs the guest's side: see :mod:`pyvmm.validate.kit.memory`.
    """
    _skip_unless("private_memory")
    return tools.memory(tools.private_vm(), 4 << 30, 16 * 4096)


# ---- KTAP ----


def _why(report: pytest.TestReport) -> str:
    """Why a test failed, without the test's source."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(report.longrepr).strip() if crash is None else str(crash)


class _KtapWriter:
    """Collects one result per test and writes them in the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        state, message = self.results.get(report.nodeid, ("pass", ""))
        if report.failed:
            state, message = "fail", _why(report)
        elif report.skipped and hasattr(report, "wasxfail") and state == "pass":
            state, message = "known", str(report.wasxfail).removeprefix("reason: ")
        elif report.skipped and state == "pass":
            longrepr = report.longrepr
            reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
            state, message = "skip", reason.removeprefix("Skipped: ")
        self.results[report.nodeid] = (state, message)

    def pytest_sessionfinish(self) -> None:
        from pyvmm.validate.results import ktap

        lines = ktap.heading(len(self.results))
        for number, (name, (state, message)) in enumerate(self.results.items(), 1):
            lines += ktap.verdict(number, name, state, message.splitlines())
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
