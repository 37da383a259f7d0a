"""The lab's errors: each names the thing, the cause and the remedy, as all of pyvmm's do."""

from __future__ import annotations

from pyvmm.errors import ConfigurationError, PyvmmError

#: The remedy for a folder that cannot be made or written.
NAME_A_FOLDER = "name a folder that can be written"


class LabError(PyvmmError):
    """The lab could not do it: no QEMU, a kernel that does not build or boot, no room.

    `status` is what a command line should exit with; 125 tells `git bisect run` to skip.
    """

    status = 125


class LabUsageError(LabError):
    """The request itself is wrong: an unknown kernel, a file that is not a kernel, no CPUs."""

    status = 2


class KernelFailed(LabError):
    """A kernel does not boot, or the command does not begin in it."""


class NotBuilt(LabError):
    """A kernel does not compile or link."""


class PatchRefused(LabError):
    """A patch does not apply to the source."""


def plain(error: PyvmmError) -> PyvmmError:
    """The error as one of the classes that a pipe to another process can carry."""
    classes = (LabUsageError, KernelFailed, NotBuilt, LabError, ConfigurationError)
    kind = next((each for each in classes if isinstance(error, each)), PyvmmError)
    return kind(error.thing, error.cause, error.remedy)
