"""The folder that the lab keeps kernels in: room, locks, names.

trees/     kernel sources, each with a build folder per configuration
kernels/   what was built, one folder per combination of source, patches and configuration
names/     symbolic links into kernels/
images/    kernels that came from elsewhere, by the SHA-256 of their images
jobs/      what came of jobs, one folder per job; durations.json has how long each case took
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyvmm.lab.errors import LabError


def cache_folder() -> Path:
    """Where the lab keeps its things: $XDG_CACHE_HOME/pyvmm, or ~/.cache/pyvmm."""
    try:
        given = os.environ.get("XDG_CACHE_HOME")
        return (Path(given).absolute() if given else Path.home() / ".cache") / "pyvmm"
    except RuntimeError:
        raise LabError(
            "cache folder", "this user has no home folder", "XDG_CACHE_HOME names another place"
        ) from None


def make_folder(path: Path) -> Path:
    """`path`, made if need be; a LabError when that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_cache(path, error) from None
    return path


def unusable_cache(path: Path, error: OSError) -> LabError:
    """What is said of a part of the cache that cannot be read, made or written."""
    cause = error.strerror or str(error)
    return LabError(f"cache folder {path}", cause, "XDG_CACHE_HOME names another place")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever looks finds the old text or the new, and never a part.

    Several may do so at the same time. What cannot be written whole leaves nothing, and the
    OSError names ``path``.
    """
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        new.write_text(text)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def check_room(folder: Path, needed_mib: int) -> None:
    """A LabError unless the file system of `folder` has `needed_mib` MiB left."""
    if shutil.disk_usage(folder).free >> 20 < needed_mib:
        # Not how much is free: it changes, and what many jobs lack is said once.
        raise LabError(
            f"no room in the cache {folder}",
            f"fewer than {needed_mib} MiB are free",
            "XDG_CACHE_HOME names another place",
        )


@contextmanager
def locked(
    folder: Path,
    announce: Callable[[str], None],
    another: str = "another build",
    *,
    shared: bool = False,
) -> Iterator[int]:
    """Hold the lock of `folder`, which exists, saying so when `another` process has it.

    `shared` is for those that may hold it together, against who wants it alone.
    Gives the lock as a file descriptor: a child that inherits it keeps the lock with it.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            announce(f"waiting for {another} in {folder}")
            fcntl.flock(lock, how)
        yield lock
    finally:
        os.close(lock)


@contextmanager
def made_and_locked(
    folder: Path,
    announce: Callable[[str], None],
    another: str = "another build",
    *,
    shared: bool = False,
) -> Iterator[int]:
    """As :func:`locked`, of a folder that is made if need be; also where who had the lock before
    has removed it."""
    while True:
        make_folder(folder)
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(locked(folder, announce, another, shared=shared))
                is_there = os.path.samestat(os.fstat(lock), os.stat(folder))
            except FileNotFoundError:
                continue
            if is_there:
                yield lock
                return


def remove_unless_locked(folder: Path) -> None:
    """Remove a folder that nobody has locked, as far as that is possible."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # it is gone
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
