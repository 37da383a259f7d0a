"""Two kernels compared: the catalogue on both, and what differs run again.

A case that differs is run again on both kernels, with the same seed, until it is clear
whether the kernels differ or the case changes on one and the same kernel: then it is
unsteady, and no proof of anything.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pyvmm.errors import ConfigurationError
from pyvmm.lab.errors import KernelFailed
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import Lab
from pyvmm.printable import counted
from pyvmm.validate.kernels.lab_run import LabMachine, LabRun, Trouble
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results import baseline, report
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.result import CaseResult, State

Announce = Callable[[str], None]
#: Parameters of the kernel's command line.
Choice = tuple[str, ...]
#: A kernel by its number, and the parameters that it is booted with.
Place = tuple[int, Choice]
#: What came of a run, or why the kernel does not even begin one.
Came = LabRun | KernelFailed

#: Files that a run leaves.
RESULTS, LOG = "validate.json", "kernel.log"
#: How often a case that differs runs at most, and how many such cases run again.
_RUNS = 3
_MOST_AGAIN = 50
#: Time for that, if the first runs did not take longer. A case that does not come to its end
#: in it keeps what was seen before.
_AGAIN_S = 240.0


@dataclass(frozen=True, slots=True)
class Compared:
    """A case on both kernels; its results in the order of the runs, none if it never ended."""

    name: str
    change: Change
    before: tuple[CaseResult, ...]
    now: tuple[CaseResult, ...]

    @property
    def worse(self) -> bool:
        return baseline.is_worse(self.change, self.before[0].state if self.before else State.SKIP)

    @property
    def times(self) -> tuple[int, int]:
        """How often the case failed before and now."""
        return (
            sum(each.state.wrong for each in self.before),
            sum(each.state.wrong for each in self.now),
        )


@dataclass(frozen=True, slots=True)
class Variant:
    """Both kernels with one choice of parameters; the first run of each is the whole catalogue."""

    parameters: tuple[str, ...]
    before: tuple[LabRun, ...]
    now: tuple[LabRun, ...]
    cases: tuple[Compared, ...]

    @property
    def label(self) -> str:
        return " ".join(self.parameters)

    def of(self, change: Change) -> list[Compared]:
        return [each for each in self.cases if each.change is change]

    @property
    def trouble_before(self) -> list[Trouble]:
        return _one_of_each_kind(self.before)

    @property
    def trouble_now(self) -> list[Trouble]:
        return _one_of_each_kind(self.now)

    @property
    def new_trouble(self) -> list[Trouble]:
        """What the kernel's log has now and had not before."""
        known = {each.splat.kind for each in self.trouble_before}
        return [each for each in self.trouble_now if each.splat.kind not in known]

    def problem(self, when: str) -> str:
        """Why a run "before" or "now" did not come to its end, "" if all did."""
        runs = self.now if when == "now" else self.before
        return next((run.problem for run in runs if run.problem), "")

    @property
    def new_problem(self) -> str:
        """Why a run did not come to its end now, "" if that happened before too."""
        return "" if self.problem("before") else self.problem("now")

    @property
    def worse(self) -> bool:
        return (
            any(each.worse for each in self.cases)
            or bool(self.new_trouble)
            or bool(self.new_problem)
        )

    @property
    def nothing_ran(self) -> bool:
        """Whether no case could run on either kernel."""
        results = itertools.chain(self.before[0].results, self.now[0].results)
        return all(each.state is State.SKIP for each in results)

    @property
    def notes(self) -> list[str]:
        """Parameters that a kernel has set to something else than was asked for."""
        return [
            note
            for word in self.parameters
            for when, run in (("before", self.before[0]), ("now", self.now[0]))
            if (note := _other_value(word, when, run))
        ]


def _one_of_each_kind(runs: Sequence[LabRun]) -> list[Trouble]:
    found: dict[str, Trouble] = {}
    for run in runs:
        for each in run.trouble:
            first = found.setdefault(each.splat.kind, each)
            if first is not each:
                cases = tuple(dict.fromkeys((*first.cases, *each.cases)))
                found[each.splat.kind] = replace(first, cases=cases, times=first.times + 1)
    return list(found.values())


_YES, _NO = ("1", "y", "on", "true"), ("0", "n", "off", "false")


def _other_value(word: str, when: str, run: LabRun) -> str:
    name, _, asked = word.partition("=")
    known: Mapping[str, str] = run.machine.get("parameters") or {}
    if not any(each.startswith(name.partition(".")[0] + ".") for each in known):
        return ""
    value = known.get(name)
    if value is None:
        return f"{name} is unknown to the kernel {when}"
    for same in (_YES, _NO):
        if asked.lower() in same and value.lower() in same:
            return ""
    return "" if asked == value else f"{name}={asked} was asked for, the kernel {when} has {value}"


def judge(
    before: Sequence[CaseResult], now: Sequence[CaseResult], both: Set[KnownBug] = frozenset()
) -> Change:
    """What a case's results on two kernels say, by one or more runs on each.

    One failure among several runs is unsteady; two, with none on the other kernel, are not.
    ``both`` are known bugs that some case has seen on each kernel: they are no difference.
    """
    if not now:
        return Change.DID_NOT_RUN if before else Change.SAME
    if not before:
        return Change.BROKEN if now[0].state.wrong else Change.NO_LONGER_SKIPPED
    if baseline.only_known((*before, *now), both):
        return Change.SAME_KNOWN
    kinds_before, kinds_now = set(map(_outcome, before)), set(map(_outcome, now))
    if len(kinds_before) == len(kinds_now) == 1:
        return baseline.change(before[0], now[0])
    failed_before = sum(each.state.wrong for each in before)
    failed_now = sum(each.state.wrong for each in now)
    if failed_before == 0 and failed_now > 1:
        return Change.BROKEN
    if failed_now == 0 and failed_before > 1:
        return Change.FIXED
    always = failed_before == len(before) and failed_now == len(now)
    return Change.SAME_FAILURE if always and kinds_before & kinds_now else Change.UNSTEADY


def _outcome(result: CaseResult) -> tuple[State, str]:
    return result.state, result.message if result.state.wrong else ""


def compare(before: Sequence[LabRun], now: Sequence[LabRun]) -> tuple[Compared, ...]:
    """Every case that was to run, in the catalogue's order."""
    both = _bugs_in(before) & _bugs_in(now)
    compared = []
    for name in dict.fromkeys((*before[0].planned, *now[0].planned)):
        earlier, later = _results_of(name, before), _results_of(name, now)
        compared.append(Compared(name, judge(earlier, later, both), earlier, later))
    return tuple(compared)


def _bugs_in(runs: Sequence[LabRun]) -> frozenset[KnownBug]:
    return baseline.bugs_in(result for run in runs for result in run.results)


def _results_of(name: str, runs: Sequence[LabRun]) -> tuple[CaseResult, ...]:
    return tuple(each for run in runs for each in run.results if each.name == name)


def _to_run_again(cases: Sequence[Compared], runs: int) -> list[str]:
    """Names of the cases that are not clear after so many runs, the worst first."""
    unclear = [
        each
        for each in cases
        if (each.change is Change.UNSTEADY if runs > 1 else not each.change.alike)
    ]
    order = list(Change)
    unclear.sort(key=lambda each: order.index(each.change))
    return [each.name for each in unclear[:_MOST_AGAIN]]


class CatalogueRuns(Protocol):
    """Runs cases on kernels; each run leaves what it has in the folder that is named for it."""

    def again(
        self, folders: Mapping[Place, Path], cases: Sequence[str], number: int, limit_s: float
    ) -> list[LabRun]:
        """These cases for the ``number``-th time, in the order of ``folders``."""
        ...


def variants(
    first: Mapping[Place, Came],
    pair: tuple[int, int],
    runs: CatalogueRuns,
    folder: Path,
    announce: Announce = lambda line: None,
) -> Iterator[Variant]:
    """Compare two kernels, by their numbers, with each choice of parameters in ``first``.

    What differs between their ``first`` runs is run again.
    """
    choices = list(dict.fromkeys(choice for _, choice in first))
    for at, choice in enumerate(choices, 1):
        title = f"{at}/{len(choices)} {' '.join(choice)}".rstrip()
        pairs = [[as_run(first[number, choice], 0) for number in pair]]
        cases = compare(*zip(*pairs, strict=True))
        for ran in range(1, _RUNS):
            names = _to_run_again(cases, ran)
            if not names or not all(run.planned for run in pairs[0]):
                break  # a kernel on which nothing began would not begin now
            several = counted(len(names), "case that differs", "cases that differ")
            announce(f"{title}: running {several} again on both")
            limit = max(_AGAIN_S, *(run.duration_s for run in pairs[0]))
            place = place_of(folder, choice)
            folders = {
                (number, choice): place / f"{when}-{ran + 1}"
                for number, when in zip(pair, ("before", "now"), strict=True)
            }
            again = runs.again(folders, names, ran, limit)
            pairs.append([_without_haste(run) for run in again])
            cases = compare(*zip(*pairs, strict=True))
        before, now = zip(*pairs, strict=True)
        yield Variant(choice, before, now, cases)


def as_run(came: Came, seed: int) -> LabRun:
    """A run, of a kernel that does not boot one of nothing."""
    if isinstance(came, LabRun):
        return came
    return LabRun((), (), seed, 0.0, problem=str(came))


def check_parameters(
    kernels: Sequence[Kernel], machine: LabMachine, choice: Choice, announce: Announce
) -> None:
    """Raise :class:`ConfigurationError` if no kernel has a parameter that is varied.

    A kernel ignores module parameters that it does not know, and nothing would vary.
    """
    unknown = {word.partition("=")[0] for word in choice if "." in word.partition("=")[0]}
    for kernel in kernels:
        if not unknown:
            return
        with Lab(kernel, params=[*machine.parameters, *choice], announce=announce) as lab:
            unknown -= {name for name in unknown if _has_parameter(lab, name)}
    if unknown:
        raise ConfigurationError(
            f"--vary {sorted(unknown)[0]}",
            "neither kernel has such a module parameter",
            "/sys/module/*/parameters/ in `pyvmm lab shell` has all",
        )


def _without_haste(run: LabRun) -> LabRun:
    """A limit on time that is ours is nothing that the kernel did."""
    return replace(run, problem="") if run.out_of_time else run


def place_of(folder: Path, parameters: Sequence[str]) -> Path:
    """Where the runs with these parameters leave what they have."""
    return folder / "_".join(parameters).replace("/", "_")


def keep(run: LabRun, folder: Path) -> None:
    """What there is of a run: RESULTS and LOG."""
    saved = report.Report(run.machine, run.seed, run.duration_s, run.results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(report.to_json(saved)), encoding="utf-8")
    log = "\n".join([*run.kernel_log, ""])
    (folder / LOG).write_text(log, encoding="utf-8", errors="backslashreplace")


def _has_parameter(lab: Lab, name: str) -> bool:
    module, _, parameter = name.partition(".")
    path = f"/sys/module/{module.replace('-', '_')}/parameters/{parameter}"
    return lab.run(["test", "-e", path], timeout=60).status == 0
