"""Runs a job, once: what came of it is kept in the cache, and is the answer from then on.

What is kept counts only for the kernel, and for the code of pyvmm, that it came from: a name may
stand for another kernel later.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyvmm.json_file import read_own
from pyvmm.lab.build import Recipe, build, find_or_build
from pyvmm.lab.cache import (
    cache_folder,
    check_room,
    made_and_locked,
    make_folder,
    remove_unless_locked,
    unusable_cache,
    write_whole,
)
from pyvmm.lab.config import read_fragment
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.initramfs import find_busybox
from pyvmm.lab.kernels import Kernel, read_image
from pyvmm.lab.lab import Lab
from pyvmm.lab.qemu import find_qemu
from pyvmm.lab.sources import source_path
from pyvmm.validate.jobs import durations
from pyvmm.validate.jobs import result as results
from pyvmm.validate.jobs.code import code_now, own_code
from pyvmm.validate.jobs.job import Built, Image, Job, Named, to_text
from pyvmm.validate.jobs.result import JobResult, KernelFacts, scripts_in
from pyvmm.validate.kernels.coverage_run import packed_counters
from pyvmm.validate.kernels.lab_run import LabMachine, run_in_lab

#: Room for a job's results, its console and the kernel's initramfs, in MiB.
_JOB_MIB = 64
#: A run says something for each case; a minute longer than the slowest may take is too long.
_SILENCE_S = 60.0
#: What a job's folder is called.
_JOB = re.compile(r"[0-9a-f]{16}")

Announce = Callable[[str], None]


def run_job(
    job: Job,
    announce: Announce,
    tell: Announce = lambda line: None,
    *,
    again: bool = False,
    kernel: Kernel | None = None,
    digest: str = "",
) -> JobResult:
    """What came of a job, which runs unless that is known; ``again`` runs it all the same.

    ``kernel`` is the job's, where it was had elsewhere, and ``digest`` that of its image.

    A run that only its time limit ended is not kept. ``announce`` is given a line for each thing
    worth knowing, ``tell`` one on how far it is. Raises :class:`LabError` where it cannot run
    here: no QEMU, no kernel, no room, another's cache.
    """
    find_qemu()  # before a build that takes minutes
    find_busybox()
    folder = _folder(job)
    with made_and_locked(folder, announce, "another run of this job"):
        kernel = kernel or _kernel(job.kernel, folder, announce)
        digest = digest or sha256_of(kernel.image)
        code = code_now()
        kept = None if again else _kept(job, folder, digest, code)
        if kept is not None:
            with suppress(OSError):
                os.utime(folder)  # it is used now
            return kept
        check_room(cache_folder(), _JOB_MIB)
        _write(folder / "job.json", to_text(job))
        files = folder / "files"
        shutil.rmtree(files, ignore_errors=True)
        machine = LabMachine(
            job.cpus, job.memory_mib, job.parameters, job.timeout_s, job.longest_s + _SILENCE_S
        )
        counters: list[bytes] = []

        def count(lab: Lab) -> None:
            if lab.kernel.counts:
                counters.append(packed_counters(lab))

        try:
            run = run_in_lab(kernel, machine, _words(job), files, announce, tell, count)
            scripts = scripts_in(files)
        finally:
            shutil.rmtree(files, ignore_errors=True)  # it may have grown to a GiB
        facts = KernelFacts(kernel.name, kernel.release, digest)
        done = JobResult(job.name, facts, run, scripts, code, tuple(counters))
        if code_now() == code:
            keep_result(job, done, announce)
        else:  # whoever edited them wants to know what comes of the new ones
            announce(f"the result of job {job.name} is not kept: pyvmm's files changed meanwhile")
        if not job.model_examples:
            durations.record(job, run.results)
        return done


def kernel_of_job(job: Job, announce: Announce) -> Kernel:
    """The job's kernel, built here if need be. Raises :class:`LabError` where it cannot be."""
    return _kernel(job.kernel, _folder(job), announce)


def for_a_job(kernel: Kernel) -> Named | Image:
    """What a job calls a kernel that is here already: by its name, if it has one."""
    if "/" not in kernel.name:
        return Named(kernel.name)
    return Image(str(kernel.image), sha256_of(kernel.image))


def kept_result(job: Job, digest: str) -> JobResult | None:
    """What came of a job on the kernel with this digest, if that is kept here.

    Nothing is written: to look takes no room, and nobody who removes the job is in the way.
    """
    return _kept(job, _folder(job), digest, own_code())


def keep_result(job: Job, done: JobResult, announce: Announce) -> None:
    """Keep what came of a job, here or elsewhere. One that cannot be kept is a result all the same,
    and a line says so."""
    if done.run.out_of_time:
        return
    try:
        folder = _own_folder(job)
        try:
            write_whole(folder / "result.json", results.to_text(done))
        except OSError as error:
            raise unusable_cache(folder.parent, error) from None  # the same for all jobs
    except LabError as error:
        announce(f"a result is not kept: {error}")


def forget_job(job: Job) -> None:
    """Remove what came of a job: it was taken over elsewhere."""
    remove_unless_locked(cache_folder() / "jobs" / job.name)


def forget_old_jobs(most: int) -> None:
    """Remove what came of jobs, but for so many that ran or were asked for last, and none that is
    under way. What cannot be removed is no reason to fail."""
    used: list[tuple[float, Path]] = []
    for name in os.listdir(cache_folder() / "jobs"):
        folder = cache_folder() / "jobs" / name
        with suppress(OSError):  # somebody else does the same
            if _JOB.fullmatch(name):
                used.append((folder.stat().st_mtime, folder))
    for _, folder in sorted(used)[:-most]:
        remove_unless_locked(folder)


def sha256_of(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LabError(f"kernel {path}", error.strerror or str(error)) from None


def own_cache() -> Path:
    """The cache. Raises :class:`LabError` where it is another's, or cannot be."""
    cache = make_folder(cache_folder())
    if cache.stat().st_uid != os.geteuid():
        # What runs there would be this user's, and what lies there the other's.
        raise LabError(
            f"cache folder {cache}",
            "it belongs to another user",
            "XDG_CACHE_HOME names another place",
        )
    return cache


def _folder(job: Job) -> Path:
    """The job's folder in the cache, which need not be there."""
    return own_cache() / "jobs" / job.name


def _own_folder(job: Job) -> Path:
    """The job's folder in the cache, with the job in it."""
    folder = _folder(job)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_cache(folder.parent, error) from None
    _write(folder / "job.json", to_text(job), folder.parent)
    return folder


def _kernel(wanted: Named | Image | Built, folder: Path, announce: Announce) -> Kernel:
    """The job's kernel, built first if need be; what is wrong with it is no fault of the job.

    What does not compile is tried once, however many jobs want it.
    """
    try:
        if isinstance(wanted, Named):
            return find_or_build(wanted.name, announce, once=True)
        if isinstance(wanted, Image):
            kernel = read_image(Path(wanted.image))
            if sha256_of(kernel.image) != wanted.sha256:
                raise LabError(
                    f"kernel {wanted.image}", "it is another one than the job's", "cut new jobs"
                )
            return kernel
        return build(_recipe(wanted, folder / "kernel"), None, announce, once=True)
    except LabUsageError as error:
        raise LabError(error.thing, error.cause, error.remedy) from None


def _recipe(wanted: Built, folder: Path) -> Recipe:
    """What the lab builds from, with the job's texts as files in ``folder``."""
    patches = []
    for number, patch in enumerate(wanted.patches):
        path = make_folder(folder / f"{number:04}") / patch.name
        _write(path, patch.text)
        patches.append(path)
    config = make_folder(folder) / "config"
    _write(config, wanted.config)
    source = source_path(Path(wanted.source))
    return Recipe(source, tuple(patches), read_fragment(config), debug=wanted.debug)


def _words(job: Job) -> list[str]:
    """What ``pyvmm validate`` is told."""
    words = ["--seed", str(job.seed), "-k", job.expression, "-j", str(job.beside)]
    return [*words, "--model-examples", str(job.model_examples)] if job.model_examples else words


def _kept(job: Job, folder: Path, digest: str, code: str) -> JobResult | None:
    """What came of the job on this kernel by this pyvmm, None where that is not known."""
    kept = read_own(folder / "result.json", results.from_json)
    if kept is None:
        return None
    return kept if is_of(kept, job, digest, code) else None


def is_of(done: JobResult, job: Job, digest: str, code: str) -> bool:
    """Whether this came of the job, on the kernel with this digest, by this pyvmm."""
    return (done.job, done.kernel.sha256, done.code) == (job.name, digest, code)


def _write(path: Path, text: str, called: Path | None = None) -> None:
    """Write a file, unless it has this text: what is kept is of use though there is no room.

    An error names ``called``, if that is given.
    """
    content = text.encode("utf-8", "surrogateescape")
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise unusable_cache(called or path, error) from None
