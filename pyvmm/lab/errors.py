"""The lab's errors: each names the thing, the cause and the remedy, as all of pyvmm's do."""

from __future__ import annotations

from pyvmm.errors import PyvmmError


class LabError(PyvmmError):
    """The lab could not do it: no QEMU, a kernel that does not build or boot, no room.

    `status` is what a command line should exit with; 125 tells `git bisect run` to skip.
    """

    status = 125


class LabUsageError(LabError):
    """The request itself is wrong: an unknown kernel, a file that is not a kernel, no CPUs."""

    status = 2


class PatchRefused(LabError):
    """A patch does not apply to the source."""
