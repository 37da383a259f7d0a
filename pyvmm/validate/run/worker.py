"""Runs cases in a process of its own, which a case may crash or hang."""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from pyvmm.errors import PyvmmError
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import Case
from pyvmm.validate.kit.check import CheckFailed, Missing
from pyvmm.validate.kit.known import Known, KnownBug
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.beats import Beats

# Whoever waits for the worker kills it when its case has taken the longest that it may. Should
# nobody be left to do so, its own alarm ends it a little later.
_GRACE_S = 30
#: Why a case is skipped that is about what happens at the same time, when nothing did.
NO_RACE = "no race happened here"


def serve(connection: Connection, cases: list[Case], seed: int, beats: Beats) -> None:
    """Run the case whose number comes in, send its result back; until the other end closes.

    ``beats`` counts the parts of their work that cases have done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # A crash is a result: no core file, no dump.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()
    # Whoever reads our output must not wait for a process that the kernel does not let go.
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    # What is here now stays: cases that collect garbage need not go through all modules.
    gc.freeze()
    try:
        while True:
            each = cases[connection.recv()]
            signal.alarm(int(each.longest_s) + _GRACE_S)
            connection.send(run_case(each, seed, beats.add))
            signal.alarm(0)
    except (EOFError, BrokenPipeError):
        pass
    # Threads of a vCPU that spins must not keep the process.
    os._exit(0)


def run_case(each: Case, seed: int, beat: Callable[[], object] = lambda: None) -> CaseResult:
    """Run one case here and now; ``beat`` is called with each part of its work that is done."""
    start = time.monotonic()
    bug: KnownBug | None = None
    tools = Toolbox(f"{seed} {each.name}", each, beat)
    try:
        state, message, detail = _outcome(each, tools)
    except Known as seen:
        state, message, detail, bug = State.KNOWN, str(seen), seen.detail, seen.bug
    duration = time.monotonic() - start
    names = each.name, each.id, each.title, each.subject
    return CaseResult(*names, state, message, detail, duration, bug, tools.scripts)


def _outcome(each: Case, tools: Toolbox) -> tuple[State, str, str]:
    for name in each.needs:
        lack = missing(name)
        if lack:
            return State.SKIP, f"{name}: {lack}", ""
    try:
        with tools:
            each.function(tools, **each.parameters)
        if tools.is_race and not tools.races:
            raise Missing(NO_RACE)
    except CheckFailed as error:
        return State.FAIL, str(error), error.detail
    except Missing as error:
        return State.SKIP, str(error), tools.told
    except Known:
        raise
    except PyvmmError as error:
        return State.FAIL, f"a call that must succeed failed: {error}", ""
    except Exception as error:  # a fault of the case is no reason to stop the others
        return State.FAIL, f"{type(error).__name__}: {error}", _where(error)
    return State.PASS, "", tools.told


def _where(error: BaseException) -> str:
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"
