"""Builds kernels for the lab, and keeps what it built."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pyvmm.json_file import read_own
from pyvmm.lab import coverage
from pyvmm.lab.cache import cache_folder, check_room, locked, make_folder, write_whole
from pyvmm.lab.config import check_config, own_fragment
from pyvmm.lab.debug_options import debug_fragment
from pyvmm.lab.errors import LabError, LabUsageError, NotBuilt
from pyvmm.lab.kernels import Kernel, check_name, find_built, give_name, load_built, read_image
from pyvmm.lab.make import Make, Progress
from pyvmm.lab.programs import OF_A_BUILD, require
from pyvmm.lab.sources import Tree, default_tarball, open_source

DEFAULT_VERSION = "6.12"
#: Patches that belong to the lab; each is the name of the kernel that it makes.
_OWN_PATCHES = Path(__file__).parent / "patches"
#: Those that are for another source than the default one.
_PATCHED_VERSIONS = {"in-place": "7.3"}
#: Room for the objects of one configuration, in MiB.
_BUILD_MIB = 600
_UNBUILDABLE = re.compile(r"[\s:]")
_VERSION = re.compile(r"\d+\.\d+")
#: This process and those that it forks, to tell failures that they know of from older ones.
_THESE_PROCESSES = uuid.uuid4().hex
_LOG, _FAILED = "build.log", "failed.json"
#: What need not be so the next time.
_PASSING = re.compile(r"No space left|Killed|[Oo]ut of memory|[Mm]emory exhausted|allocate memory")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a kernel is built from: a source tarball or folder, patches applied in order with
    -p1, and configuration laid over the lab's own. With `coverage` KVM counts what it executes,
    and `debug` names what the kernel watches itself for."""

    source: Path
    patches: tuple[Path, ...] = ()
    config: str = ""
    coverage: bool = False
    debug: tuple[str, ...] = ()

    @property
    def fragment(self) -> str:
        """All that is laid over the lab's own configuration."""
        return debug_fragment(self.debug) + self.config + coverage.CONFIG * self.coverage


class Compiled(NamedTuple):
    """What make and the compiler said, and each patch as Tree.placed() has it."""

    said: str
    patches: tuple[str, ...]


def known_recipe(name: str) -> Recipe | None:
    """How a kernel is built that has this name unless somebody gave it to another: "default",
    a version such as "7.3", or one of the lab's own patches such as "memory-error"."""
    if name == "default":
        return Recipe(default_tarball(DEFAULT_VERSION))
    if _VERSION.fullmatch(name):
        return Recipe(default_tarball(name))
    patch = _OWN_PATCHES / f"{name}.patch"
    if not os.path.exists(patch):  # False for a name that no file can have, too
        return None
    config = patch.with_suffix(".config")
    return Recipe(
        default_tarball(_PATCHED_VERSIONS.get(name, DEFAULT_VERSION)),
        (patch,),
        config.read_text() if config.exists() else "",
    )


def known_names() -> list[str]:
    """Names that `known_recipe` has a recipe for, versions apart."""
    return ["default", *sorted(patch.stem for patch in _OWN_PATCHES.glob("*.patch"))]


def check_known(name: str) -> None:
    """A LabUsageError unless `find_or_build` finds a kernel of that name, or can build it."""
    if "/" not in name and (known_recipe(name) or find_built(name)):
        return
    if "/" not in name and not os.path.isfile(name):
        raise LabUsageError(
            f"kernel {name!r}",
            "there is none of this name",
            f"'pyvmm lab list' shows them, 'pyvmm lab build --name {name} ...' makes one",
        )
    read_image(Path(name))


def check_patches(patches: Iterable[Path]) -> None:
    """A LabUsageError for one that cannot be read."""
    for patch in patches:
        if not os.path.isfile(patch) or not os.access(patch, os.R_OK):
            raise LabUsageError(f"patch {patch}", "want a file that can be read")


def check_can_count(path: Path) -> None:
    """A LabError where kernels of this source cannot count with this compiler.

    Of a tarball that was never unpacked only the programs are known.
    """
    source = open_source(path)
    require("gcc", "gcov")
    files = source.path if source.is_folder else Tree(source).files
    if files.is_dir():
        coverage.check_compiler(files)


def find_or_build(
    name: str,
    announce: Callable[[str], None],
    progress: Progress | None = None,
    *,
    once: bool = False,
) -> Kernel:
    """The kernel of that name or path, built first if it is one that the lab knows how to.

    ``once`` is as in :func:`build`.
    """
    check_known(name)
    recipe = known_recipe(name) if "/" not in name else None
    built = find_built(name) if "/" not in name else None
    if recipe is None:
        return built or read_image(Path(name))
    if built and not recipe.source.exists():
        return built
    if built is None:
        open_source(recipe.source)
        require(*OF_A_BUILD)
        announce(f"kernel {name!r} was never built: building it now, which takes minutes")
    return build(recipe, name, announce, progress, once=once)


def build(
    recipe: Recipe,
    name: str | None,
    announce: Callable[[str], None],
    progress: Progress | None = None,
    *,
    once: bool = False,
) -> Kernel:
    """Build a kernel unless exactly this was built before, and give it a name.

    Without a name it gets one that says what it was built from. `announce` gets one line per
    step; `progress` is called with the number of files made so far and the last one's name.
    With `once` what did not compile for this process, or for one that it forked, or that forked it,
    is not tried again: the error is the same.
    Raises LabError when it does not build; the message has the log's path.
    """
    if name is not None:
        own = known_recipe(check_name(name))
        if own is not None and own != recipe:
            raise LabUsageError(f"kernel name {name!r}", "it is the lab's own", "choose another")
    check_patches(recipe.patches)
    source = open_source(recipe.source)
    tree = Tree(source)
    if not source.is_folder and (folder := _kept(recipe, tree)):
        return give_name(name or _default_name(recipe, tree), folder)
    require(*OF_A_BUILD)
    if _UNBUILDABLE.search(str(tree.folder)):
        raise LabError(
            f"cache folder {cache_folder()}",
            "the kernel's make takes no spaces and colons in its path",
            "XDG_CACHE_HOME names another place",
        )
    make_folder(tree.folder)
    with locked(tree.folder, announce) as lock:
        tree.bring_up_to_date(announce, lock)
        folder = _kept(recipe, tree) or _build_once(recipe, tree, announce, progress, lock, once)
    return give_name(name or _default_name(recipe, tree), folder)


def compile_only(
    recipe: Recipe,
    goals: Sequence[str],
    announce: Callable[[str], None],
    progress: Progress | None = None,
    words: Sequence[str] = (),
    again: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Compiled:
    """Make goals of a kernel that is not to be booted.

    Its configuration need not be one of the lab: ``recipe.config`` is all that is asked for.
    ``words`` are settings for make. Objects are kept, so that the next of a series is quick;
    ``again`` names sources that are compiled anew all the same, because of what is then said.
    ``optional`` are goals that need not build: the configuration may lack them.
    Raises :class:`LabError` when it does not build; the message has the log's path.
    """
    check_patches(recipe.patches)
    tree = Tree(open_source(recipe.source))
    require(*OF_A_BUILD)
    make_folder(tree.folder)
    log = make_folder(cache_folder() / "compiled") / f"{_key(recipe, tree)[:16]}.log"
    with locked(tree.folder, announce) as lock:
        tree.bring_up_to_date(announce, lock)
        log.unlink(missing_ok=True)
        placed = tree.patch(recipe.patches, log)
        # Objects of another compiler call than a kernel's own are others.
        objects = _objects_folder(tree, own_fragment() + recipe.config + "".join(words))
        fragment = objects / "lab.config"
        fragment.write_text(own_fragment() + recipe.config)
        make = Make(tree.files, objects, log, lock)
        make.run([f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"])
        check_config((objects / ".config").read_text(), "", recipe.config)
        for name in again:
            _forget(objects, name)
        make.run([*words, *goals], progress)
        if optional:
            with suppress(LabError):
                make.run(["-k", *words, *optional], progress)
    return Compiled(log.read_text(errors="replace"), tuple(placed))


def placed_patches(recipe: Recipe, announce: Callable[[str], None]) -> list[str]:
    """The diffs of a recipe's patches, with the line numbers that they have in its source."""
    tree = Tree(open_source(recipe.source))
    make_folder(tree.folder)
    log = make_folder(cache_folder() / "compiled") / "placed.log"
    with locked(tree.folder, announce) as lock:
        tree.bring_up_to_date(announce, lock)
        log.unlink(missing_ok=True)
        return tree.placed(recipe.patches, log)


def _forget(objects: Path, source: str) -> None:
    """Remove the object of a C file; of a header, one of those that are made with it."""
    if source.endswith(".c"):
        (objects / source).with_suffix(".o").unlink(missing_ok=True)
        return
    for folder in ("virt/kvm", "arch/x86/kvm"):
        for command in sorted((objects / folder).rglob(".*.o.cmd")):
            if source in command.read_text(errors="replace"):
                (command.parent / command.name[1:-4]).unlink(missing_ok=True)
                return


def _key(recipe: Recipe, tree: Tree) -> str:
    """What tells one kernel from another: source, patches and configuration."""
    patches = [patch.read_bytes() for patch in recipe.patches]
    parts = [tree.state().encode(), own_fragment().encode(), recipe.fragment.encode(), *patches]
    if recipe.coverage:
        parts += map(str.encode, coverage.APPENDED.values())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _default_name(recipe: Recipe, tree: Tree) -> str:
    for name in known_names():
        if known_recipe(name) == recipe:
            return name
    version = tree.source.name.removeprefix("linux-source-")
    if known_recipe(version) == recipe:
        return version
    return f"{version}-{_key(recipe, tree)[:8]}"


def _folder(recipe: Recipe, tree: Tree) -> Path:
    return cache_folder() / "kernels" / _key(recipe, tree)[:16]


def _kept(recipe: Recipe, tree: Tree) -> Path | None:
    folder = _folder(recipe, tree)
    return folder if load_built("", folder) else None


def _build_once(
    recipe: Recipe,
    tree: Tree,
    announce: Callable[[str], None],
    progress: Progress | None,
    lock: int,
    once: bool,
) -> Path:
    """As :func:`_build`; what fails is kept, and is told again where it is to be tried once."""
    folder = make_folder(_folder(recipe, tree))
    path = folder / _FAILED
    if once and (known := read_own(path, _failure_of_ours)):
        raise known
    try:
        return _build(recipe, tree, announce, progress, lock)
    except NotBuilt as error:
        told = [_THESE_PROCESSES, error.thing, error.cause, error.remedy]
        with suppress(OSError):
            if not _PASSING.search((folder / _LOG).read_text(errors="replace")):
                write_whole(path, json.dumps(told))
        raise


def _failure_of_ours(data: list[str]) -> NotBuilt:
    by, thing, cause, remedy = data
    if by != _THESE_PROCESSES:
        raise ValueError
    return NotBuilt(thing, cause, remedy)


def _build(
    recipe: Recipe,
    tree: Tree,
    announce: Callable[[str], None],
    progress: Progress | None,
    lock: int,
) -> Path:
    """Build in the tree, which is locked and up to date, and keep the result."""
    folder = make_folder(_folder(recipe, tree))
    log = folder / _LOG
    log.unlink(missing_ok=True)
    check_room(folder, _BUILD_MIB)
    config = recipe.fragment
    if recipe.coverage:
        coverage.check_compiler(tree.files)
    tree.patch(recipe.patches, log, coverage.APPENDED if recipe.coverage else None)
    objects = _objects_folder(tree, own_fragment() + config)
    fragment = objects / "lab.config"
    fragment.write_text(own_fragment() + config)
    started = time.monotonic()
    make = Make(tree.files, objects, log, lock)
    announce(f"building {tree.source.name} in {objects}; log: {log}")
    make.run([f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"])
    check_config((objects / ".config").read_text(), own_fragment(), config)
    make.run(["bzImage"], progress)
    shutil.copyfile(objects / ".config", folder / "config")
    shutil.copyfile(objects / "arch/x86/boot/bzImage", folder / "bzImage")
    for number, patch in enumerate(recipe.patches):
        shutil.copyfile(patch, make_folder(folder / "patches") / f"{number:04}-{patch.name}")
    if recipe.coverage:
        coverage.keep_notes(objects, folder)
    facts = {
        "release": read_image(folder / "bzImage").release,
        "source": str(tree.source.path),
        "patches": [patch.name for patch in recipe.patches],
        "coverage": recipe.coverage,
        "debug": recipe.debug,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_whole(folder / "kernel.json", json.dumps(facts))  # last: it says that all is there
    return folder


def _objects_folder(tree: Tree, config: str) -> Path:
    """Where make puts its objects, with what is there for this configuration already.

    The path is always the same, because objtool is built anew when it changes, and all objects
    with it; the objects of other configurations are parked meanwhile. A new configuration
    starts with a copy of the one that is most like it, so that make builds only what the options
    change.
    """
    objects = tree.folder / "build"
    label = objects / "configuration"
    wanted = hashlib.sha256(config.encode()).hexdigest()[:8]
    if label.exists() and label.read_text() != wanted:
        objects.rename(tree.folder / f"parked-{label.read_text()}")
    if not objects.exists():
        parked = tree.folder / f"parked-{wanted}"
        if not parked.exists() and (others := sorted(tree.folder.glob("parked-*"))):
            copy = tree.folder / "copying"
            shutil.rmtree(copy, ignore_errors=True)  # of an interrupted build
            shutil.copytree(_most_like(config, others), copy, symlinks=True)
            (copy / label.name).write_text(wanted)
            copy.rename(parked)
        if parked.exists():
            parked.rename(objects)
        else:
            objects.mkdir()
    label.write_text(wanted)
    return objects


def _most_like(config: str, parked: Sequence[Path]) -> Path:
    """The folder of objects whose configuration differs in the fewest lines."""
    wanted = set(config.splitlines())

    def differing(folder: Path) -> int:
        fragment = folder / "lab.config"
        return len(wanted ^ set(fragment.read_text().splitlines() if fragment.exists() else ()))

    return min(parked, key=differing)
