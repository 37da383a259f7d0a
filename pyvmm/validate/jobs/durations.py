"""How long cases took here: recorded as jobs end, so that later ones can be made of equal length.

``durations.json`` in the cache has seconds by the names of cases. Kernels differ, but what takes
long on one takes long on all, and only that matters for a balance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from pyvmm.json_file import read_own
from pyvmm.lab.cache import cache_folder, locked, make_folder, write_whole
from pyvmm.validate.jobs.job import Job
from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.session import WORKERS

_FILE = "durations.json"
#: Of a case that never ran here, on an emulated CPU; the model's play for part of their deadline.
_UNKNOWN_S = 0.5
_UNKNOWN_MODEL = 0.2
#: No case takes longer.
_LONGEST_S = 1e6
#: What a job takes besides: the boot, and the first look at the machine.
START_S = 10.0


def known() -> dict[str, float]:
    """Seconds by the names of cases; empty where nothing was recorded, or it is damaged."""
    return read_own(cache_folder() / _FILE, _seconds) or {}


def _seconds(data: dict[str, Any]) -> dict[str, float]:
    found = {str(name): float(seconds) for name, seconds in data.items()}
    if not all(0 <= each <= _LONGEST_S for each in found.values()):
        raise ValueError
    return found


def record(results: Iterable[CaseResult]) -> None:
    """Keep how long these took. A figure that cannot be kept is no reason to fail.

    A case that is skipped takes no time, as long as no kernel is known on which it runs.
    """
    skipped: dict[str, float] = {}
    took: dict[str, float] = {}
    for each in results:
        kept = skipped if each.state is State.SKIP else took
        kept[each.name] = round(each.duration_s, 3)
    with suppress(OSError):
        folder = make_folder(cache_folder() / "jobs")
        with locked(folder, lambda line: None):
            text = json.dumps({**skipped, **known(), **took})
            write_whole(cache_folder() / _FILE, text)


def weight_of(each: Case, durations: Mapping[str, float]) -> float:
    """Seconds of a run that a case takes: beside others, unless it must be alone."""
    seconds = durations.get(each.name)
    if seconds is None:
        seconds = _UNKNOWN_MODEL * each.deadline_s if each.examples else _UNKNOWN_S
    return seconds if each.alone else seconds / WORKERS


def expected_s(job: Job, durations: Mapping[str, float]) -> float:
    """How long a job will take, as far as that is known."""
    return START_S + sum(weight_of(each, durations) for each in job.chosen)
