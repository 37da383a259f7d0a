"""What an exploration has found so far, in a folder: it ends and goes on there.

``corpus.json`` has ``pyvmm-corpus`` (1), ``seed`` and ``next`` (with the jobs from number 0 on to
that one, and with those in ``beyond``, it is done), ``scripts`` (played), ``seconds`` (of labs),
and ``kinds`` of failures: {``kind``, ``message``, ``case``, ``kernel``, ``seed``, ``times``,
``files``}. Of each kind there is one script, the shortest that was seen, for ``pyvmm validate
--replay``. Where a kernel died these are all that were being played.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pyvmm.json_file import read_own
from pyvmm.lab.cache import write_whole
from pyvmm.lab.errors import NAME_A_FOLDER, LabUsageError
from pyvmm.validate.jobs.result import JobResult
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.model import files
from pyvmm.validate.results.result import State

FORMAT = 1
_FILE = "corpus.json"
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(frozen=True, slots=True)
class Kind:
    """Failures that say the same: where that was first, how often, and scripts that show it."""

    kind: str
    message: str
    case: str
    kernel: str
    seed: int
    times: int = 1
    files: tuple[str, ...] = ()


class Corpus:
    """The corpus in ``folder``, begun there if there is none. One process may have it at a time.

    Raises :class:`LabUsageError` for a folder that cannot be one.
    """

    def __init__(self, folder: Path, seed: int | None = None) -> None:
        self.folder = folder
        self.seed = random.randrange(1 << 32) if seed is None else seed
        self.scripts = 0
        self.seconds = 0.0
        self.kinds: dict[str, Kind] = {}
        self._next = 0
        self._beyond: set[int] = set()
        try:
            self._load(seed)
            self._save()
        except OSError as error:
            cause = error.strerror or str(error)
            raise LabUsageError(f"corpus {folder}", cause, NAME_A_FOLDER) from None

    def numbers(self) -> Iterator[int]:
        """Those of the jobs that are to do, without end."""
        number = self._next
        while True:
            if number not in self._beyond:
                yield number
            number += 1

    def take(self, number: int, done: JobResult) -> list[Kind]:
        """What a job found; gives the kinds that are new."""
        new = []
        for found, scripts in _failures(done):
            known = self.kinds.get(found.kind)
            names = self._keep(found.kind, scripts, known)
            if known is None:
                new.append(found.kind)
                self.kinds[found.kind] = replace(found, files=names)
            else:
                self.kinds[found.kind] = replace(known, times=known.times + 1, files=names)
        self.scripts += sum(each.scripts for each in done.run.results)
        self.seconds += done.run.duration_s
        self.leave(number)
        return [self.kinds[kind] for kind in new]

    def leave(self, number: int) -> None:
        """This job is done with, or cannot be done: there is no end of others."""
        self._beyond.add(number)
        while self._next in self._beyond:
            self._beyond.remove(self._next)
            self._next += 1
        self._save()

    def _keep(self, kind: str, scripts: Sequence[str], known: Kind | None) -> tuple[str, ...]:
        """The scripts of a kind, unless shorter ones are there."""
        before = known.files if known else ()
        length = self._length_of(before)
        if not scripts or 0 < length <= sum(map(len, scripts)):
            return before
        names = [f"{kind}.json"] + [f"{kind}-{more}.json" for more in range(2, len(scripts) + 1)]
        for name, text in zip(names, scripts, strict=True):
            write_whole(self.folder / name, text)
        return tuple(names)

    def _length_of(self, names: Sequence[str]) -> int:
        """Of the texts in these files, 0 unless all are there."""
        try:
            lengths = [len((self.folder / name).read_text()) for name in names]
        except (OSError, ValueError):
            return 0
        return sum(lengths) if all(lengths) else 0

    def _load(self, seed: int | None) -> None:
        path = self.folder / _FILE
        if not path.exists():
            if any(self.folder.iterdir()):
                raise LabUsageError(
                    f"corpus {self.folder}", "there are other files", "name another"
                )
            return
        if not read_own(path, self._take_over):
            raise LabUsageError(
                f"corpus {path}", "it is damaged, or of another pyvmm", "name another folder"
            )
        if seed not in (None, self.seed):
            raise LabUsageError(
                f"corpus {self.folder}", f"it has seed {self.seed}", "name another folder"
            )

    def _take_over(self, data: dict[str, Any]) -> bool:
        if data["pyvmm-corpus"] != FORMAT:
            raise ValueError
        self.seed, self._next = int(data["seed"]), int(data["next"])
        self._beyond = set(map(int, data["beyond"]))
        self.scripts, self.seconds = int(data["scripts"]), float(data["seconds"])
        kinds = list(map(_kind_of, data["kinds"]))
        self.kinds = {each.kind: each for each in kinds}
        return True

    def _save(self) -> None:
        data: dict[str, Any] = {
            "pyvmm-corpus": FORMAT,
            "seed": self.seed,
            "next": self._next,
            "beyond": sorted(self._beyond),
            "scripts": self.scripts,
            "seconds": round(self.seconds, 1),
            "kinds": [asdict(each) for each in self.kinds.values()],
        }
        write_whole(self.folder / _FILE, json.dumps(data, indent=1))


def _kind_of(data: dict[str, Any]) -> Kind:
    """A kind as it is kept. For anything else it raises what taking it apart does, or TypeError."""
    kind = Kind(**{**data, "files": tuple(data["files"])})
    texts = (kind.kind, kind.message, kind.case, kind.kernel, *kind.files)
    if not all(isinstance(each, str) for each in texts) or any("/" in each for each in kind.files):
        raise TypeError("a text")
    if type(kind.seed) is not int or type(kind.times) is not int:
        raise TypeError("a number")
    return kind


def _failures(done: JobResult) -> Iterator[tuple[Kind, list[str]]]:
    """What went wrong in a job, each with its scripts."""
    for each in done.run.results:
        if each.state.bad:
            start = f"pyvmm-replay-{files.word(each.name)}-"
            scripts = [text for name, text in done.files.items() if name.startswith(start)]
            about = "" if each.state is State.FAIL else f"{each.state}: "
            yield _kind(f"{about}{each.message}", each.name, done), scripts[:1]
    running = [text for name, text in done.files.items() if name.startswith("pyvmm-running-")]
    for title in _trouble_of(done.run):
        yield _kind(title, "", done), running


def _trouble_of(run: LabRun) -> list[str]:
    """The kernel's own: splats of each kind once, or else that it died."""
    kinds = dict.fromkeys(each.splat.kind for each in run.trouble)
    return list(kinds) or ([run.problem] if run.problem and not run.out_of_time else [])


def _kind(message: str, case: str, done: JobResult) -> Kind:
    # The same bug may show in memory of another layout, but not on another ABI.
    abi = _abi(case)
    why, _, playing = message.partition("; in the middle of ")
    abis = sorted(set(map(_abi, playing.split(", ")))) if playing else []
    plain = _NUMBERS.sub("*", "; ".join([why, *abis]))
    kind = hashlib.sha256(f"{abi}\0{plain}".encode(errors="replace")).hexdigest()[:12]
    return Kind(kind, message, case, done.kernel.release, done.run.seed)


def _abi(case: str) -> str:
    return case.partition("[")[0]
