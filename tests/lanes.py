"""Lanes: where a test runs, and what became of each lane.

A test's lane is its folder. ``unit`` needs nothing; ``host`` needs a usable /dev/kvm; ``lab``
needs a kernel with private memory. Tests of the lab lane run inside the lab: pytest collects
them here, boots one lab per kernel, runs pytest in there for exactly those tests, and hands
their results on as if they had run here. A test says which kernel it wants by
``@pytest.mark.lab(kernel="memory-error")``; one that boots labs itself, or needs no more than the
programs that ``pyvmm lab setup`` installs, is marked ``boots`` and runs here. Booting takes its
time, so the lab lane runs only when it is asked for: required, or named on the command line.

pytest-xdist's ``-n 3`` shares the other lanes between three processes; the lab lane is for one.

At the end of a run each lane gets a line. ``--require-lanes unit,host`` makes a lane that ran
nothing, or that could not run, a failure.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

TESTS = Path(__file__).resolve().parent
LANES = ("unit", "host", "lab")

_INSIDE = "PYVMM_TESTS_INSIDE_LAB"
# Reports come out of the lab on stdout, between whatever else is printed there.
_MARK = "\x1epyvmm-report "
_SECONDS_PER_LAB_TEST = 300

_lane_key = pytest.StashKey[str]()
_kernel_key = pytest.StashKey[str]()
_unavailable_key = pytest.StashKey[str]()
# What a report of a test has that could not run, and why: it comes with it from a worker process.
_UNAVAILABLE = "lane_unavailable"


def lane_of(path: Path) -> str | None:
    """The lane of a test file; None for one outside the lanes' folders."""
    try:
        folder = path.resolve().relative_to(TESTS).parts[0]
    except (ValueError, IndexError):
        return None
    return folder if folder in LANES else None


def inside_lab() -> bool:
    return _INSIDE in os.environ


@cache
def why_no_kvm() -> str:
    """Why the host lane cannot run, or ""."""
    try:
        from pyvmm import Kvm, PyvmmError
    except ImportError as error:
        return str(error)
    try:
        Kvm().close()
    except PyvmmError as error:
        return str(error)
    return ""


def why_no_lab(kernel: str, config: pytest.Config) -> str:
    """Why tests for this kernel cannot run, or "". Only a required lane builds kernels."""
    if not _asks_for_lab(config):
        return "the lab was not asked for (name tests/lab, or --require-lanes lab)"
    from pyvmm.lab.errors import LabError
    from pyvmm.lab.kernels import find_built
    from pyvmm.lab.qemu import find_qemu

    try:
        find_qemu()
        if "lab" not in required_lanes(config) and find_built(kernel) is None:
            return f"the lab's kernel {kernel!r} is not built (pyvmm lab build --name {kernel})"
    except LabError as error:
        return str(error)
    return ""


def _asks_for_lab(config: pytest.Config) -> bool:
    named = (lane_of(Path(word.partition("::")[0])) for word in config.args)
    return "lab" in required_lanes(config) or "lab" in named


# ---- options and order ----


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-lanes",
        default="",
        metavar="LANES",
        help="fail unless these lanes (unit,host,lab) ran",
    )
    parser.addoption(
        "--lab-kernel",
        default="default",
        metavar="NAME",
        help="the kernel of lab tests that do not ask for another one",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(1 << 32))
    wanted = required_lanes(config)
    if unknown := wanted - set(LANES):
        raise pytest.UsageError(f"--require-lanes: {', '.join(sorted(unknown))}: no such lane")
    if getattr(config.option, "numprocesses", None) and _asks_for_lab(config):
        raise pytest.UsageError("-n: one process boots the labs for all tests of the lab lane")
    config.addinivalue_line("markers", 'lab(kernel="default"): the kernel of a lab lane test')
    config.addinivalue_line("markers", "boots: a lab lane test that boots labs itself")
    config.pluginmanager.register(LaneRunner(config), "lane-runner")
    if inside_lab():
        config.pluginmanager.register(InnerReporter(config), "inner-reporter")


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.option.hypothesis_seed
    return f"seed: {seed} (repeat this run's choices with --hypothesis-seed={seed})"


def required_lanes(config: pytest.Config) -> set[str]:
    return {name for name in config.getoption("--require-lanes").split(",") if name}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    usual = config.getoption("--lab-kernel")
    for item in items:
        item.stash[_lane_key] = lane_of(item.path) or "unit"
        if item.stash[_lane_key] == "lab":
            mark = item.get_closest_marker("lab") or item.get_closest_marker("boots")
            item.stash[_kernel_key] = mark.kwargs.get("kernel", usual) if mark else usual
    # What is quick and needs least comes first; one boot serves all tests of a kernel.
    items.sort(key=lambda item: (LANES.index(item.stash[_lane_key]), _boot_order(item)))
    for item in items:
        if _runs_inside(item):
            # Inside, the time limit is the test's own; out here the first waits for all.
            item.add_marker(pytest.mark.timeout(0), append=False)


def _boot_order(item: pytest.Item) -> tuple[bool, str]:
    return (_runs_inside(item), item.stash.get(_kernel_key, ""))


def _runs_inside(item: pytest.Item) -> bool:
    """Whether a test must be handed to a lab."""
    return (
        item.stash[_lane_key] == "lab"
        and item.get_closest_marker("boots") is None
        and not inside_lab()
    )


def _seconds_for(item: pytest.Item) -> float:
    """How long a test may take in the lab: the usual, or what it says itself if that is more."""
    own = (float(mark.args[0]) for mark in item.iter_markers("timeout") if mark.args)
    return max(_SECONDS_PER_LAB_TEST, *own, 0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    lane = item.stash[_lane_key]
    reason = ""
    if lane == "host" or (lane == "lab" and inside_lab()):
        reason = why_no_kvm()
    elif lane == "lab":
        reason = why_no_lab(item.stash[_kernel_key], item.config)
    if reason:
        item.stash[_unavailable_key] = reason
        pytest.skip(reason)


# ---- running and counting ----


class LaneRunner:
    """Runs the lab's tests in the lab, and counts what became of every test."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.outcomes: dict[str, Counter[str]] = {lane: Counter() for lane in LANES}
        self.reasons: dict[str, Counter[str]] = {lane: Counter() for lane in LANES}
        self.unavailable: dict[str, str] = {}
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._done: set[str] = set()
        self._missing: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not _runs_inside(item):
            return None
        kernel = item.stash[_kernel_key]
        if kernel not in self._done:
            self._done.add(kernel)
            group = [
                other
                for other in item.session.items
                if _runs_inside(other) and other.stash[_kernel_key] == kernel
            ]
            self._run_group(kernel, group)
        if item.nodeid not in self._ended:
            self._hand_on(self._no_report(item))
        return True

    def _hand_on(self, report: pytest.TestReport) -> None:
        """Let everybody know of a report as if its test had run here."""
        hook = self.config.hook
        if report.nodeid not in self._started:
            self._started.add(report.nodeid)
            hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
        hook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            self._ended.add(report.nodeid)
            hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)

    def _run_group(self, kernel: str, items: list[pytest.Item]) -> None:
        """Boot a lab and run the tests in it; hands their reports on as they come."""
        required = "lab" in required_lanes(self.config)
        reason = why_no_lab(kernel, self.config)
        if reason:
            self._missing[kernel] = "skip " + reason
            return
        from pyvmm.lab.errors import LabError
        from pyvmm.lab.kernels import find_built
        from pyvmm.lab.lab import Lab

        # By its name a kernel is brought up to date first; a required lane wants that.
        chosen = kernel if required else find_built(kernel) or kernel
        self._say(f"booting the lab's kernel {kernel!r} for {len(items)} tests")
        output = _Output(self._take)
        try:
            with Lab(chosen, tcg="multi", announce=self._say) as lab:
                if lab.lacks_private_memory:
                    self._missing[kernel] = f"skip no private memory: {lab.lacks_private_memory}"
                    return
                result = lab.run(
                    self._inner_command([item.nodeid for item in items]),
                    cwd=self.config.rootpath,
                    env=_inner_environment(),
                    timeout=sum(map(_seconds_for, items)),
                    stdout=output.feed,
                    stderr=output.feed,
                )
        except LabError as error:
            self._missing[kernel] = f"skip {error}"
            return
        said = "\n".join(output.lines[-60:])
        if result.status is None:
            log = "\n".join(result.kernel_log[-40:])
            self._missing[kernel] = f"fail {result.problem}\n{said}\nkernel log:\n{log}"
        else:
            self._missing[kernel] = f"fail pytest in the lab ended with {result.status}\n{said}"
        for splat in result.splats:
            self._fail_last(items, f"the lab's kernel complained: {splat}")

    def _inner_command(self, nodeids: list[str]) -> list[str]:
        options = ["-q", "-p", "no:cacheprovider", f"--rootdir={self.config.rootpath}"]
        if self.config.option.maxfail:
            options.append(f"--maxfail={self.config.option.maxfail}")
        options.append(f"--hypothesis-seed={self.config.option.hypothesis_seed}")
        return [sys.executable, "-m", "pytest", *options, *nodeids]

    def _take(self, line: str) -> None:
        data = json.loads(line)
        if isinstance(data.get("longrepr"), list):
            data["longrepr"] = tuple(data["longrepr"])
        self._hand_on(
            self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
        )

    def _no_report(self, item: pytest.Item) -> pytest.TestReport:
        """For a test that never came to its end in there."""
        kind, _, text = self._missing[item.stash[_kernel_key]].partition(" ")
        longrepr: Any = text
        if kind == "skip":
            longrepr = (str(item.path), 0, f"Skipped: {text}")
            self.unavailable["lab"] = text
        outcome: Literal["skipped", "failed"] = "skipped" if kind == "skip" else "failed"
        return pytest.TestReport(
            item.nodeid, item.location, {}, outcome, longrepr, "call" if kind == "fail" else "setup"
        )

    def _fail_last(self, items: list[pytest.Item], text: str) -> None:
        """Nobody knows which test made the kernel complain: the last one carries it."""
        item = items[-1]
        self._hand_on(pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "teardown"))

    def _say(self, line: str) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"lab: {line}")

    # ---- what became of every test ----

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        lane = lane_of(self.config.rootpath / report.nodeid.partition("::")[0]) or "unit"
        if reason := getattr(report, _UNAVAILABLE, ""):
            self.unavailable[lane] = reason
        if report.when == "call" or report.skipped:
            outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            self.outcomes[lane][outcome] += 1
            if report.skipped and not hasattr(report, "wasxfail"):
                self.reasons[lane][_skip_reason(report)] += 1
        elif report.failed:
            self.outcomes[lane]["errors"] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        setattr(report, _UNAVAILABLE, item.stash.get(_unavailable_key, ""))
        return report

    def _complaints(self) -> Iterator[str]:
        for lane in sorted(required_lanes(self.config), key=LANES.index):
            outcomes = self.outcomes[lane]
            if lane in self.unavailable:
                yield f"lane {lane} is required and could not run: {self.unavailable[lane]}"
            elif not outcomes.total() - outcomes["skipped"]:
                yield f"lane {lane} is required and ran no tests"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        collected_only = self.config.option.collectonly
        fine = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if session.exitstatus in fine and not collected_only and any(self._complaints()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.config.option.collectonly:
            return
        terminalreporter.section("lanes")
        for lane in LANES:
            terminalreporter.write_line(self._line(lane))
        for complaint in self._complaints():
            terminalreporter.write_line(complaint, red=True)

    def _line(self, lane: str) -> str:
        outcomes, reasons = self.outcomes[lane], self.reasons[lane]
        ran = outcomes.total() - outcomes["skipped"] - outcomes["errors"]
        line = f"{lane}: {ran} ran, {outcomes['passed']} passed, {outcomes['failed']} failed"
        if outcomes["errors"]:
            line += f", {outcomes['errors']} errors"
        if outcomes["xfailed"]:
            line += f", {outcomes['xfailed']} failed as expected"
        line += f"; {outcomes['skipped']} did not run"
        for reason, count in reasons.most_common():
            line += f"\n    {count}: {reason}"
        return line


def _skip_reason(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


class _Output:
    """Splits what pytest prints in the lab into reports and everything else."""

    def __init__(self, take: Any) -> None:
        self.lines: list[str] = []
        self._take = take
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            before, mark, report = text.partition(_MARK)
            if mark:
                self._take(report)
            if before:
                self.lines.append(before)


def _inner_environment() -> dict[str, str]:
    environment = {**os.environ, _INSIDE: "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    environment.pop("PYTEST_CURRENT_TEST", None)
    return environment


class InnerReporter:
    """Inside the lab: prints each report for the pytest outside."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        capture = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            self._stream = os.fdopen(os.dup(1), "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        # A line of its own, whatever was printed before it.
        print(f"\n{_MARK}{json.dumps(data)}", file=self._stream, flush=True)
