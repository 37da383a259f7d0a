"""What a worker of a cluster does: tells what it is, takes a kernel, runs a job.

Synchronization: each function is called in a thread of the worker's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyvmm import __version__
from pyvmm.errors import PyvmmError
from pyvmm.json_file import read_own
from pyvmm.lab.cache import (
    cache_folder,
    check_room,
    made_and_locked,
    make_folder,
    remove_unless_locked,
    unusable_cache,
    write_whole,
)
from pyvmm.lab.errors import LabError, plain
from pyvmm.lab.initramfs import find_busybox
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.qemu import find_qemu
from pyvmm.validate.jobs import result as results
from pyvmm.validate.jobs.code import own_code
from pyvmm.validate.jobs.job import from_text
from pyvmm.validate.jobs.run import forget_old_jobs, own_cache, run_job, sha256_of

#: What run() answers where the kernel has not come yet, and put_together() where it has.
NO_KERNEL = "no kernel"
KERNEL_HAS_COME = "the kernel has come"
#: Room for kernels that come from elsewhere, in MiB.
_KERNEL_MIB = 128
#: How many of them are kept: those that were used last.
MOST_KERNELS = 32
#: How many jobs' results are kept; a hundred MiB or two.
MOST_JOBS = 1000
#: Which comes within that time or not at all, in seconds.
LONGEST_WAY_S = 24 * 3600
_COMING = "coming-"


def about() -> dict[str, str]:
    """What this worker is."""
    try:
        find_qemu()
        find_busybox()
        own_cache()
        problem = ""
    except LabError as error:
        problem = str(error)
    return {"pyvmm": __version__, "code": own_code(), "problem": problem}


def problem_with(told: object) -> str:
    """Why the worker that says this of itself cannot be used, "" if it can."""
    if not isinstance(told, dict) or told.keys() != {"pyvmm", "code", "problem"}:
        return "it has another pyvmm than this: it does not say which"
    if told["pyvmm"] != __version__:
        return f"it has pyvmm {told['pyvmm']}, and this is {__version__}"
    if told["code"] != own_code():
        return f"it has another pyvmm {__version__} than this: their files differ"
    return str(told["problem"])


def facts_of(kernel: Kernel) -> dict[str, Any]:
    """What is known of a kernel beside its image."""
    return {**asdict(kernel), "image": ""}


def take(token: str, at: int, piece: bytes) -> int:
    """A piece of an image; those of one image have one token.

    What has come is removed where one does not fit, such as beyond a quota.
    """
    folder = _images() / f"{_COMING}{token}"
    try:
        check_room(make_folder(folder), _KERNEL_MIB)
        (folder / f"{at:012}").write_bytes(piece)
    except (PyvmmError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        known = error if isinstance(error, PyvmmError) else unusable_cache(folder.parent, error)
        raise plain(known) from None
    return at


def put_together(pieces: Sequence[int], token: str, facts: Mapping[str, Any], sha256: str) -> str:
    """Make a kernel of its pieces, which have come.

    A scheduler keeps the pieces until this is done, so that the job's run is no part of it.
    """
    coming, folder = _images() / f"{_COMING}{token}", _images() / sha256
    whole = folder / f"{token}.new"
    with _in_use(folder):
        try:
            with open(whole, "wb") as file:
                for at in sorted(pieces):
                    file.write((coming / f"{at:012}").read_bytes())
            if sha256_of(whole) != sha256:
                raise LabError(f"kernel {facts['name']}", "it was damaged on its way here")
            whole.replace(folder / "bzImage")
            write_whole(folder / "kernel.json", json.dumps(facts))
        except OSError as error:
            raise unusable_cache(folder.parent, error) from None
        finally:
            whole.unlink(missing_ok=True)
            shutil.rmtree(coming, ignore_errors=True)
        _forget_old_kernels()
    return KERNEL_HAS_COME


def _images() -> Path:
    """Where kernels from elsewhere are."""
    return cache_folder() / "images"


def _in_use(folder: Path) -> AbstractContextManager[int]:
    """Nobody removes the folder of a kernel meanwhile: QEMU may want it once more."""
    return made_and_locked(folder, lambda line: None, shared=True)


def _forget_old_kernels() -> None:
    """Remove all but those used last, and what has come in part and is not awaited any more; but
    nothing that is in use."""
    used: list[tuple[float, Path]] = []
    for folder in _images().iterdir():
        with suppress(FileNotFoundError):  # another job's thread does the same
            used.append((folder.stat().st_mtime, folder))
    whole = [each for each in sorted(used) if not each[1].name.startswith(_COMING)]
    late = time.time() - LONGEST_WAY_S
    given_up = [each for each in used if each[0] < late and each not in whole]
    for _, folder in (*whole[:-MOST_KERNELS], *given_up):
        remove_unless_locked(folder)


def run(job: str, sha256: str, again: bool) -> str:
    """What came of a job as JSON, or :data:`NO_KERNEL`."""
    if not (_images() / sha256).exists():
        return NO_KERNEL
    with _in_use(_images() / sha256):
        return _run(job, sha256, again)


def _run(job: str, sha256: str, again: bool) -> str:
    kernel = _kernel(sha256)
    if kernel is None:
        return NO_KERNEL
    try:
        done = run_job(from_text(job), lambda line: None, again=again, kernel=kernel, digest=sha256)
        with suppress(OSError):
            forget_old_jobs(MOST_JOBS)
    except PyvmmError as error:
        raise plain(error) from None
    return results.to_text(done)


def _kernel(sha256: str) -> Kernel | None:
    """The kernel with this digest, None where it has not come, or is damaged."""
    folder = _images() / sha256

    def make(facts: dict[str, Any]) -> Kernel:
        os.utime(folder)  # it is used now
        return Kernel(
            facts["name"],
            folder / "bzImage",
            facts["release"],
            facts["source"],
            tuple(facts["patches"]),
            facts["counts"],
            tuple(facts["debug"]),
        )

    kernel = read_own(folder / "kernel.json", make)
    with suppress(LabError):  # there is no image
        if kernel and sha256_of(kernel.image) == sha256:
            return kernel
    return None
