"""The catalogue on a kernel of the lab: one boot, one run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyvmm.errors import ConfigurationError
from pyvmm.lab.errors import KernelFailed, LabError
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import Lab, RunResult
from pyvmm.lab.leaks import find_leaks, forget_leaks, looks_for_leaks
from pyvmm.printable import counted
from pyvmm.validate.results.lines import Transcript
from pyvmm.validate.results.result import CaseResult

#: pyvmm as it runs here, wherever it is installed and whatever the working folder has.
_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from pyvmm.cli.main import main; "
    "sys.exit(main(sys.argv[1:]))"
)
PACKAGES = str(Path(__file__).resolve().parents[2])
_STAMP = re.compile(r"\[ *(\d+\.\d+)\]")
#: The reports of lockdep that switch it off: kernel/locking/lockdep.c.
_LOCKDEP = re.compile(
    r"possible (?:circular|recursive|irq|interrupt)|inconsistent lock state|bad (?:un)?lock"
    r"|bad contention|held lock|lock held when|Invalid wait context|[Nn]ested lock|lock order"
    r"|still has locks held|non-static key|kernel/locking/lockdep\.c|BUG: MAX_|BUG: key "
)
#: What the kernel's log has where lockdep ends for another reason than a report of its own.
_SILENCED = re.compile(
    r"Disabling lock debugging|turning off the locking correctness|lockdep is turned off"
)
_MOST_BOOTS_AGAIN = 3
#: The kernel's log and CLOCK_MONOTONIC run apart by so much, in seconds.
_SLACK_S = 0.2


@dataclass(frozen=True, slots=True)
class LabMachine:
    """The lab's machine, and for how long a run may take or say nothing on it (s)."""

    cpus: int = 2
    memory_mib: int = 2048
    parameters: Sequence[str] = ()
    timeout_s: float = 1800.0
    silence_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A splat in the kernel's log, and the cases in the middle of which it came.

    ``times`` is how often it came, where those of one kind are told together.
    """

    splat: Splat
    cases: tuple[str, ...] = ()
    times: int = 1


@dataclass(frozen=True, slots=True)
class LabRun:
    """What came out. ``problem`` says why the run is not whole, "" if it is, and
    ``out_of_time`` whether that is only the limit on the whole run.

    ``planned`` are the names of all cases that were to run. ``machine`` is as in a report.
    """

    planned: tuple[str, ...]
    results: tuple[CaseResult, ...]
    seed: int
    duration_s: float
    machine: dict[str, Any] = field(default_factory=dict)
    trouble: tuple[Trouble, ...] = ()
    problem: str = ""
    out_of_time: bool = False
    kernel_log: tuple[str, ...] = ()


def run_in_lab(
    kernel: Kernel,
    machine: LabMachine,
    words: Sequence[str],
    folder: Path,
    announce: Callable[[str], None],
    tell: Callable[[str], None] = lambda line: None,
    at_end: Callable[[Lab], None] = lambda lab: None,
) -> LabRun:
    """Boot ``kernel`` and run ``pyvmm validate`` with these words in it.

    What the cases leave for people, such as the model's scripts, comes into ``folder``.
    ``tell`` is given a line on how far it is, and ``at_end`` each lab whose kernel still lives.
    Lockdep is silent after its first report, and after some others: the cases that began after that
    run again in another boot, for what the kernel says of them, and for whether it survives them.
    Raises :class:`LabError` when the kernel does not boot or the command does not begin.
    """
    run, unseen = _one_boot(kernel, machine, words, folder, announce, tell, at_end)
    for _ in range(_MOST_BOOTS_AGAIN):
        if not unseen:
            break
        again = counted(len(unseen), "case")
        announce(f"lockdep was silent after a report: {again} in another boot")
        chosen = [*words, "-k", " or ".join(unseen)]
        try:
            more, unseen = _one_boot(kernel, machine, chosen, folder, announce, tell, at_end)
        except KernelFailed as error:  # what came of the boot before is known all the same
            more, unseen = LabRun((), (), run.seed, 0.0, problem=str(error)), []
        run = _with_another_boot(run, more)
    return run


def _with_another_boot(run: LabRun, more: LabRun) -> LabRun:
    """A run with what the kernel said in another boot; its cases ended in the first one."""
    if more.problem and (not run.problem or run.out_of_time):
        problem = f"in another boot, as lockdep was silent: {more.problem}"
        run = replace(run, problem=problem, out_of_time=more.out_of_time)
    return replace(
        run,
        trouble=(*run.trouble, *more.trouble),
        duration_s=run.duration_s + more.duration_s,
        kernel_log=(*run.kernel_log, *more.kernel_log),
    )


def _one_boot(
    kernel: Kernel,
    machine: LabMachine,
    words: Sequence[str],
    folder: Path,
    announce: Callable[[str], None],
    tell: Callable[[str], None],
    at_end: Callable[[Lab], None],
) -> tuple[LabRun, list[str]]:
    """The run, and the cases that began when lockdep was silent already."""
    transcript = Transcript()

    def take(data: bytes) -> None:
        try:
            transcript.feed(data)
        except ConfigurationError as error:
            raise LabError(f"kernel {kernel.name}", str(error)) from None
        done = f"{len(transcript.results)}/{len(transcript.planned)}"
        tell(f"{done} {', '.join(transcript.running)}")

    with Lab(
        kernel,
        cpus=machine.cpus,
        memory_mib=machine.memory_mib,
        params=machine.parameters,
        results=folder,
        tcg="multi",
        announce=announce,
    ) as lab:
        if looks_for_leaks(kernel):
            forget_leaks(lab)
        command = [sys.executable, "-P", "-c", _COMMAND, PACKAGES, "validate", "--json-lines"]
        done = lab.run(
            [*command, *words],
            timeout=machine.timeout_s,
            silence=machine.silence_s,
            stdout=take,
        )
        leaks: tuple[Splat, ...] = ()
        if looks_for_leaks(kernel) and done.status is not None:
            leaks = find_leaks(lab, done.kernel_log)
        silent = done.status is not None and _lockdep_is_silent(lab)
        if done.status is not None:
            at_end(lab)
    _check_began(kernel, done, transcript)
    run = LabRun(
        transcript.planned,
        tuple(transcript.results),
        transcript.seed,
        done.seconds,
        transcript.machine,
        tuple(Trouble(splat, _cases_during(splat, transcript)) for splat in (*done.splats, *leaks)),
        _problem(done, transcript),
        done.timed_out and done.seconds >= machine.timeout_s,
        done.kernel_log,
    )
    if not silent:
        return run, []
    return run, _begun_after_lockdep(done.splats, done.kernel_log, transcript)


def _check_began(kernel: Kernel, done: RunResult, transcript: Transcript) -> None:
    if not transcript.planned and done.status is not None:
        said = done.errors.decode(errors="replace").strip().splitlines()
        raise KernelFailed(
            f"kernel {kernel.name}",
            f"pyvmm validate did not begin in it: {said[-1] if said else done.status}",
        )


def _lockdep_is_silent(lab: Lab) -> bool:
    if not {"lockdep", "rcu"} & set(lab.kernel.debug):
        return False
    return lab.run(["grep", "-q", "debug_locks: *0$", "/proc/lockdep_stats"]).status == 0


def _begun_after_lockdep(
    splats: Sequence[Splat], log: Sequence[str], transcript: Transcript
) -> list[str]:
    """The cases that began when lockdep had ended: after a report of its own, or another one.

    Where the kernel is no longer to be trusted, as after a report of KASAN's, it ends, too. None
    where it had ended before the first case: so it would in another boot.
    """
    lines = [each.lines[0] for each in splats if _LOCKDEP.search(each.title)]
    lines += [line for line in log if _SILENCED.search(line)]
    stamps = [_STAMP.search(line) for line in lines]
    at = min((float(stamp[1]) for stamp in stamps if stamp), default=float("inf"))
    unseen = [name for name, (began, _) in transcript.times.items() if began > at]
    return unseen if len(unseen) < len(transcript.times) else []


def _problem(done: RunResult, transcript: Transcript) -> str:
    if transcript.whole:
        return ""
    why = done.problem or f"pyvmm validate ended with status {done.status}"
    running = ", ".join(transcript.running)
    return f"{why}; in the middle of {running}" if running else why


def _cases_during(splat: Splat, transcript: Transcript) -> tuple[str, ...]:
    """The cases that ran when a splat was printed."""
    stamp = _STAMP.search(splat.lines[0])
    if stamp is None:
        return ()
    at = float(stamp.group(1))
    times = {
        **{name: (began, float("inf")) for name, began in transcript.running.items()},
        **transcript.times,
    }
    return tuple(
        name for name, (began, ended) in times.items() if began - _SLACK_S <= at <= ended + _SLACK_S
    )
