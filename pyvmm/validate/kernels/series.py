"""A series of patches on kernels of the lab: each patch built, and the catalogue on what they make.

The catalogue runs on the source without the series and with all of it, or after every patch.
Whatever differs from the kernel before is run again on both, as for any two kernels.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyvmm.lab.build import Recipe, build, compile_only
from pyvmm.lab.compiler_warnings import CompilerWarning, warnings_of_patch
from pyvmm.lab.config import parse_config
from pyvmm.lab.debug_options import debug_fragment
from pyvmm.lab.errors import LabError, LabUsageError, PatchRefused
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.make import Progress
from pyvmm.lab.series import Patch
from pyvmm.printable import printable
from pyvmm.validate.kernels.two_kernels import (
    LOG,
    RESULTS,
    Announce,
    Came,
    CatalogueRuns,
    Choice,
    Place,
    Variant,
    place_of,
    variants,
)
from pyvmm.validate.results.baseline import Change

#: Laid over the lab's configuration: a warning in KVM ends the build, as it does upstream.
STRICT = "CONFIG_KVM_WERROR=y\n"
#: What a check leaves in its results folder: patches, folders of runs, and what is said of all.
_PATCHES = "[0-9][0-9][0-9][0-9]-*.patch"
_RUN = re.compile(r"\d+(?:-\d+)?")
_SUMMARIES = ("check.txt", "check.json", "coverage.html", "coverage.info")
#: What a kernel that is built and not booted is made to: all objects, linked, and modules.
_GOALS = ("vmlinux", "modules")


@dataclass(frozen=True, slots=True)
class Step:
    """The source after one more patch; of the source alone, ``patch`` is None.

    ``problem`` says why it is no kernel, "" if it is one. ``configs`` has the same for each
    further configuration by name. ``broken_before`` has what did not build before this patch
    either: names of these, and "" for the kernel. ``variants`` compare it with ``compared_with``,
    the last step before it on which the catalogue ran; they are empty where it did not run.
    """

    number: int
    patch: Patch | None = None
    kernel: Kernel | None = None
    problem: str = ""
    refused: bool = False
    warnings: tuple[CompilerWarning, ...] = ()
    configs: Mapping[str, str] = field(default_factory=dict)
    broken_before: frozenset[str] = frozenset()
    compared_with: int = 0
    variants: tuple[Variant, ...] = ()

    def of(self, change: Change) -> list[str]:
        """The names of the cases that did this against the step before, with any parameters."""
        return list(
            dict.fromkeys(each.name for variant in self.variants for each in variant.of(change))
        )

    @property
    def broken(self) -> dict[str, str]:
        """What no longer builds, and why: configurations by name, and "" for the kernel."""
        return {
            name: why
            for name, why in {"": self.problem, **self.configs}.items()
            if why and (self.refused or name not in self.broken_before)
        }

    @property
    def worse(self) -> bool:
        return any(variant.worse for variant in self.variants)

    @property
    def patches_compared(self) -> tuple[int, int]:
        """The first and the last of the patches that lie between the kernels that are compared."""
        return self.compared_with + 1, self.number


def clear_results(folder: Path, series: Path | None = None) -> None:
    """Remove what the check of a series left in its results folder; what others have is theirs.

    Raises :class:`LabUsageError` where mails, or the ``series`` itself, are in the patches' place.
    """
    kept = folder / "patches"
    if series is not None and series.resolve().is_relative_to(kept.resolve()):
        cause = f"the series {series} is where a check keeps the patches"
        raise LabUsageError(f"results folder {folder}", cause, "name another folder")
    patches = sorted(kept.glob(_PATCHES))
    for path in patches:
        if not path.read_bytes().startswith((b"diff --git ", b"--- ")):
            cause = f"{path.name} in {kept} is a mail, and none that a check left"
            raise LabUsageError(f"results folder {folder}", cause, "name another folder")
    runs = [path for path in folder.iterdir() if _RUN.fullmatch(path.name) and path.is_dir()]
    left = [path for run in runs for name in (RESULTS, LOG) for path in run.rglob(name)]
    for path in [*patches, *left, *(folder / name for name in _SUMMARIES)]:
        path.unlink(missing_ok=True)
    for run in runs:
        for top, _, _ in os.walk(run, topdown=False):
            with suppress(OSError):  # something else is in it
                os.rmdir(top)


def write_patches(patches: Sequence[Patch], folder: Path) -> list[Path]:
    """Each patch as a file of its own, as the builds want them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, patch in enumerate(patches, 1):
        path = folder / f"{number:04}-{patch.file_name}"
        path.write_bytes(patch.text.encode("utf-8", "surrogateescape"))
        paths.append(path)
    return paths


class SeriesBuild:
    """Builds the source and every patch of a series: iterate over :meth:`steps`.

    ``configs`` has a configuration for each name, laid over the lab's; what it makes is not
    booted.
    """

    def __init__(
        self,
        source: Path,
        patches: Sequence[Patch],
        paths: Sequence[Path],
        *,
        config: str = "",
        debug: tuple[str, ...] = (),
        configs: Mapping[str, str] | None = None,
        announce: Announce = lambda line: None,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._patches = patches
        self._paths = paths
        self._config = config
        self._debug = debug
        self._configs = configs or {}
        self._announce = announce
        self._progress = progress

    def steps(self) -> Iterator[Step]:
        """The source and then each patch. Raises :class:`LabError` when the source does not build.

        After a patch that does not apply nothing comes any more.
        """
        if not _strictness(self._recipe(0).fragment):
            self._announce(
                "with KASAN a warning in KVM ends no build: Kconfig has one or the other"
            )
        kernel = build(self._recipe(0), None, self._announce, self._progress)
        step = Step(0, kernel=kernel, configs=self._problems(0))
        yield step
        for number, patch in enumerate(self._patches, 1):
            self._announce(f"patch {number}/{len(self._patches)}: {printable(patch.subject)}")
            # What did not build without a patch is nothing that it did.
            before = {"": step.problem, **step.configs}
            broken = frozenset(name for name, why in before.items() if why)
            step = replace(self._step(number, patch), broken_before=broken)
            yield step
            if step.refused:
                return

    def _recipe(self, number: int) -> Recipe:
        strictness = _strictness(debug_fragment(self._debug) + self._config)
        config = self._config + strictness
        return Recipe(self._source, tuple(self._paths[:number]), config, debug=self._debug)

    def _step(self, number: int, patch: Patch) -> Step:
        recipe = self._recipe(number)
        try:
            kernel = build(recipe, None, self._announce, self._progress)
        except PatchRefused as error:
            return Step(number, patch, problem=str(error), refused=True)
        except LabError as error:
            return Step(number, patch, problem=str(error), configs=self._problems(number))
        warnings = warnings_of_patch(recipe, patch.text, self._announce, self._progress)
        return Step(number, patch, kernel, warnings=tuple(warnings), configs=self._problems(number))

    def _problems(self, number: int) -> dict[str, str]:
        """Why the further configurations do not build, by name; "" for one that does."""
        found = {}
        for name, config in self._configs.items():
            whole = self._config + _strictness(self._config + config) + config
            recipe = replace(self._recipe(number), config=whole)
            try:
                compile_only(recipe, _GOALS, self._announce, self._progress)
                found[name] = ""
            except LabError as error:
                found[name] = str(error)
        return found


def _strictness(config: str) -> str:
    """STRICT where arch/x86/kvm/Kconfig lets a configuration have it."""
    options = parse_config(config)
    has_kasan = options.get("CONFIG_KASAN") == "y" and options.get("CONFIG_WERROR") != "y"
    return "" if has_kasan or options.get("CONFIG_KVM") == "n" else STRICT


class SeriesRun:
    """The steps of a series on which the catalogue runs, and what comes of it.

    ``each`` says whether on every step or on the first and the last. A patch that changes nothing
    of what is compiled makes the same kernel: ``kernels`` has it once.
    """

    def __init__(self, steps: Sequence[Step], *, each: bool) -> None:
        built = [step for step in steps if step.kernel is not None]
        self._steps = steps
        self._chosen = (
            built if each else [built[0], *(step for step in built[1:] if step is steps[-1])]
        )
        self.kernels: list[Kernel] = []
        self._first_step: list[int] = []
        self._number: dict[int, int] = {}
        seen: dict[str, int] = {}
        for step in self._chosen:
            assert step.kernel is not None
            number = seen.setdefault(_digest(step.kernel), len(self.kernels))
            if number == len(self.kernels):
                self.kernels.append(step.kernel)
                self._first_step.append(step.number)
            self._number[step.number] = number

    def folders(self, folder: Path, choices: Sequence[Choice]) -> dict[Place, Path]:
        """Where the first runs leave what they have."""
        return {
            (number, choice): place_of(folder / str(step), choice)
            for choice in choices
            for number, step in enumerate(self._first_step)
        }

    def steps(
        self,
        first: Mapping[Place, Came],
        runs: CatalogueRuns,
        folder: Path,
        announce: Announce = lambda line: None,
    ) -> Iterator[Step]:
        """All steps, with the variants of those on which the catalogue ran."""
        before = self._chosen[0]
        for step in self._steps:
            if step.number not in self._number or step.number == before.number:
                yield step
                continue
            pair = self._number[before.number], self._number[step.number]
            place = folder / f"{before.number}-{step.number}"
            found = tuple(variants(first, pair, runs, place, announce))
            yield replace(step, variants=found, compared_with=before.number)
            before = step


def _digest(kernel: Kernel) -> str:
    return hashlib.sha256(kernel.image.read_bytes()).hexdigest()
