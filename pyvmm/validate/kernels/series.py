"""A series of patches on kernels of the lab: each patch built, and the catalogue on what they make.

The catalogue runs on the source without the series and with all of it, or after every patch.
Whatever differs from the kernel before is run again on both, as for any two kernels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyvmm.lab.build import Recipe, build, compile_only
from pyvmm.lab.compiler_warnings import CompilerWarning, warnings_of_patch
from pyvmm.lab.errors import LabError, PatchRefused
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.make import Progress
from pyvmm.lab.series import Patch
from pyvmm.printable import printable
from pyvmm.validate.kernels.lab_run import LabRun, Machine, run_in_lab
from pyvmm.validate.kernels.side_by_side import Run, run_side_by_side
from pyvmm.validate.kernels.two_kernels import Announce, TwoKernels, Variant
from pyvmm.validate.results.baseline import Change

#: Laid over the lab's configuration: a warning in KVM ends the build, as it does upstream.
STRICT = "CONFIG_KVM_WERROR=y\n"
#: What a kernel that is built and not booted is made to: all objects, linked, and modules.
_GOALS = ("vmlinux", "modules")
_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Step:
    """The source after one more patch; of the source alone, ``patch`` is None.

    ``problem`` says why it is no kernel, "" if it is one. ``configs`` has the same for each
    further configuration by name. ``variants`` compare it with ``compared_with``, the last step
    before it on which the catalogue ran; they are empty where it did not run on this one.
    """

    number: int
    patch: Patch | None = None
    kernel: Kernel | None = None
    problem: str = ""
    refused: bool = False
    warnings: tuple[CompilerWarning, ...] = ()
    configs: Mapping[str, str] = field(default_factory=dict)
    compared_with: int = 0
    variants: tuple[Variant, ...] = ()

    def of(self, change: Change) -> list[str]:
        """The names of the cases that did this against the step before, with any parameters."""
        return list(
            dict.fromkeys(each.name for variant in self.variants for each in variant.of(change))
        )

    @property
    def worse(self) -> bool:
        return any(variant.worse for variant in self.variants)


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
        self._config = config + STRICT
        self._debug = debug
        self._configs = configs or {}
        self._announce = announce
        self._progress = progress

    def steps(self) -> Iterator[Step]:
        """The source and then each patch. Raises :class:`LabError` when the source does not build.

        After a patch that does not apply nothing comes any more.
        """
        kernel = build(self._recipe(0), None, self._announce, self._progress)
        before = self._problems(0)
        yield Step(0, kernel=kernel, configs=before)
        for number, patch in enumerate(self._patches, 1):
            self._announce(f"patch {number}/{len(self._patches)}: {printable(patch.subject)}")
            step = self._step(number, patch)
            # What did not build without the series is nothing that a patch of it did.
            new = {name: "" if before[name] else why for name, why in step.configs.items()}
            yield replace(step, configs=new)
            if step.refused:
                return

    def _recipe(self, number: int) -> Recipe:
        return Recipe(self._source, tuple(self._paths[:number]), self._config, debug=self._debug)

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
            recipe = replace(self._recipe(number), config=self._config + config)
            try:
                compile_only(recipe, _GOALS, self._announce, self._progress)
                found[name] = ""
            except LabError as error:
                found[name] = str(error)
        return found


class SeriesRun:
    """Runs the catalogue on the steps of a series: iterate over :meth:`steps`.

    ``each`` says whether on every step or on the first and the last. Everything else is as for
    :class:`TwoKernels`.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        machine: Machine,
        folder: Path,
        *,
        seed: int,
        each: bool,
        expression: str = "",
        words: Sequence[str] = (),
        vary: Sequence[Sequence[str]] = (),
        announce: Announce = lambda line: None,
        watch: Announce = lambda line: None,
    ) -> None:
        self._steps = steps
        self._machine = machine
        self._folder = folder
        self._seed = seed
        self._expression = expression
        self._words = list(words)
        self._vary = vary
        self._announce = announce
        self._watch = watch
        self._choices = [tuple(each) for each in itertools.product(*vary)]
        built = [step for step in steps if step.kernel is not None]
        self._chosen = (
            built if each else [built[0], *(step for step in built[1:] if step is steps[-1])]
        )

    def steps(self) -> Iterator[Step]:
        """All steps, with the variants of those on which the catalogue ran."""
        runs = self._first_runs()
        numbers = {step.number for step in self._chosen}
        before = self._chosen[0]
        for step in self._steps:
            if step.number not in numbers or step.number == before.number:
                yield step
                continue
            variants = tuple(self._compare(before, step, runs))
            yield replace(step, variants=variants, compared_with=before.number)
            before = step

    def _compare(
        self, before: Step, now: Step, runs: Mapping[tuple[str, tuple[str, ...]], LabRun]
    ) -> Iterator[Variant]:
        assert before.kernel is not None and now.kernel is not None
        pair = (_digest(before.kernel), _digest(now.kernel))
        check = TwoKernels(
            before.kernel,
            now.kernel,
            self._machine,
            self._folder / f"{before.number}-{now.number}",
            seed=self._seed,
            expression=self._expression,
            words=self._words,
            vary=self._vary,
            first={choice: [runs[each, choice] for each in pair] for choice in self._choices},
            announce=self._announce,
            watch=self._watch,
        )
        yield from check.variants()

    def _first_runs(self) -> dict[tuple[str, tuple[str, ...]], LabRun]:
        """The catalogue once on every kernel with every choice of parameters.

        A patch that changes nothing of what is compiled makes the same kernel: it runs once.
        """
        wanted: dict[tuple[str, tuple[str, ...]], tuple[Kernel, int]] = {}
        for step in self._chosen:
            assert step.kernel is not None
            for choice in self._choices:
                wanted.setdefault((_digest(step.kernel), choice), (step.kernel, step.number))
        keys = list(wanted)
        done: dict[tuple[str, tuple[str, ...]], LabRun] = {}
        for at in range(0, len(keys), _AT_ONCE):
            together = keys[at : at + _AT_ONCE]
            titles = [f"patch {wanted[key][1]}" for key in together]
            self._announce(f"the catalogue on {' and '.join(titles)} ({at}/{len(keys)} done)")
            lines = [""] * len(together)

            def watch(number: int, line: str, lines: list[str] = lines) -> None:
                lines[number] = line
                self._watch(", ".join(lines))

            runs = [self._run(wanted[key][0], key[1], wanted[key][1]) for key in together]
            done.update(zip(together, run_side_by_side(runs, watch), strict=True))
        return done

    def _run(self, kernel: Kernel, choice: tuple[str, ...], number: int) -> Run:
        machine = replace(self._machine, parameters=(*self._machine.parameters, *choice))
        folder = self._folder / str(number) / "_".join(choice).replace("/", "_")
        words = ["--seed", str(self._seed), *self._words]
        if self._expression:
            words += ["-k", self._expression]

        def run(tell: Callable[[str], None]) -> LabRun:
            try:
                return run_in_lab(kernel, machine, words, folder, self._announce, tell)
            except LabError as error:  # it does not boot: that is this patch's, not the end
                return LabRun((), (), self._seed, 0.0, problem=str(error))

        return run


def _digest(kernel: Kernel) -> str:
    return hashlib.sha256(kernel.image.read_bytes()).hexdigest()
