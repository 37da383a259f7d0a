"""Kernel sources: found, brought into the cache, patched there.

A tree is a copy of one source in the cache. It always has the contents of that source with
the patches of the last build. Files change only when their contents do, so that make builds
again what a patch touches and no more. The source itself is never written to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvmm.json_file import Made, read_own
from pyvmm.lab.cache import cache_folder, check_room, write_whole
from pyvmm.lab.diffs import FileDiff, diffs_in, text_of
from pyvmm.lab.errors import LabError, LabUsageError, PatchRefused
from pyvmm.lab.mail import patch_texts
from pyvmm.lab.patching import (
    EXECUTABLE,
    NOT_EXECUTABLE,
    CannotApply,
    apply_diffs,
    is_below,
    names_of,
)
from pyvmm.lab.processes import die_with_parent
from pyvmm.lab.programs import require
from pyvmm.printable import counted

_TARBALLS = Path("/usr/src")
#: An unpacked source and one build of it.
_TREE_MIB = 2600
#: What a build in the source folder leaves there; a tree must not have it, or make would take
#: it for up to date. Beside most that it makes, Kbuild leaves a file .NAME.cmd.
_BUILT_ENDINGS = (".o", ".a", ".cmd", ".ko", ".mod")
_LEFT_OUT = (".git", ".config", ".config.old", "vmlinux")
_BUILT_FOLDERS = ("include/config", "include/generated", "arch/x86/include/generated")
#: What tar calls to unpack a tarball, by the end of its name.
_UNPACKERS = {".xz": "xz", ".bz2": "bzip2", ".zst": "zstd"}
_VERSION = re.compile(r"\d+\.\d+")
_LONGEST_STEM = 40


@dataclass(frozen=True, slots=True)
class Source:
    """A kernel source on the host: a tarball or a folder. `name` names it to people."""

    path: Path
    name: str
    identity: str

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()


def default_tarball(version: str) -> Path:
    """Where the distribution's package linux-source-VERSION has its source."""
    return _TARBALLS / f"linux-source-{version}.tar.xz"


def source_path(given: Path) -> Path:
    """Where a source is that a person named: by a path, or by a version such as 7.3."""
    if _VERSION.fullmatch(str(given)) and not given.exists():
        return default_tarball(str(given))
    return given.absolute()


def _how_to_get(path: Path) -> str:
    version = path.name.removeprefix("linux-source-").removesuffix(".tar.xz")
    wanted = f" --source {version}" if path == default_tarball(version) else ""
    return f"'pyvmm lab setup{wanted}' gets one"


def open_source(path: Path) -> Source:
    """The source at `path`; a LabUsageError when there is no kernel source there."""
    path = path.resolve()
    if path.is_dir():
        if not is_kernel_source(path):
            raise LabUsageError(f"kernel source {path}", "no Kbuild or no arch/x86/kvm in it")
        return Source(path, _name_of(path.name), _digest(str(path)))
    try:
        facts = path.stat()
    except OSError as error:
        raise LabUsageError(
            f"kernel source {path}", str(error.strerror), _how_to_get(path)
        ) from None
    return Source(
        path,
        _name_of(path.name.split(".tar")[0]),
        _digest(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}"),
    )


class Tree:
    """The cache's copy of a source, in `folder`; its files are in `files`.

    Synchronization: whoever changes or builds it holds the lock of `folder`.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.folder = cache_folder() / "trees" / f"{source.name}-{source.identity[:8]}"
        self.files = self.folder / "src"
        self._originals = self.folder / "originals.json"
        self._modes = self.folder / "modes.json"
        self._listing = self.folder / "listing.json"

    def state(self) -> str:
        """What the unpatched contents are, as a string to compare."""
        if self.source.is_folder:
            return self.source.identity + _digest(self._listing.read_text(errors="replace"))
        return self.source.identity

    def bring_up_to_date(self, announce: Callable[[str], None], lock: int) -> None:
        """Make the tree's unpatched contents those of the source. `lock` is the folder's."""
        if not self.files.exists():
            check_room(self.folder, _TREE_MIB)
        if self.source.is_folder:
            self._copy_changes(announce)
        elif not self.files.exists():
            announce(f"unpacking {self.source.path}")
            self._unpack(lock)

    def patch(
        self, patches: Sequence[Path], log: Path, appended: Mapping[str, str] | None = None
    ) -> list[str]:
        """Make the tree's contents the source's with these patches, in order, applied to copies.

        `appended` has lines for the ends of files by name. A LabError, and nothing changed, when a
        patch does not apply; `log` then has what patch said. Gives what :meth:`placed` gives.
        """
        originals, modes = self._read_originals(), self._keep_modes(())
        after, placed = self._try(patches, log, appended or ())
        touched = after.keys()
        for name in touched:
            originals.setdefault(name, _read(self.files / name))
        modes |= self._keep_modes(name for name in touched if originals[name] is not None)
        wanted = originals | {name: content for name, (content, _) in after.items()}
        for name, (content, mode) in after.items():
            if content is not None and _plain_mode(modes.get(name)) != mode:
                modes[name] = mode
        for name, lines in (appended or {}).items():
            wanted[name] = (wanted[name] or b"") + lines.encode()
        self._write_originals(originals)  # before the first change: an interruption loses nothing
        for name, content in wanted.items():
            _write(self.files / name, content, modes.get(name))
        self._write_originals({name: originals[name] for name in touched})
        self._forget_modes(touched)
        return placed

    def placed(self, patches: Sequence[Path], log: Path) -> list[str]:
        """The diffs of patches with the line numbers that they really have.

        A hunk may fit elsewhere than it says, where the source is not what it was made for.
        """
        return self._try(patches, log)[1]

    def _try(
        self, patches: Sequence[Path], log: Path, more: Iterable[str] = ()
    ) -> tuple[dict[str, tuple[bytes | None, int]], list[str]]:
        """What files are afterwards, those that patches touch and `more`, and the placed diffs."""
        originals, modes = self._read_originals(), self._keep_modes(())
        found = [self._diffs(patch, log) for patch in patches]
        touched = {name for parts in found for diffs in parts for name in names_of(diffs)}
        touched.update(more)
        with tempfile.TemporaryDirectory(prefix="patching-", dir=self.folder) as folder:
            place = Path(folder)
            for name in touched:
                path = self.files / name
                content = originals[name] if name in originals else _read(path)
                if content is not None:
                    known = modes.get(name, _mode(path) if path.is_file() else None)
                    _write(place / name, content, _plain_mode(known))
            placed = [
                self._apply(patch, parts, place, log)
                for patch, parts in zip(patches, found, strict=True)
            ]
            return _state(place, touched), placed

    def _apply(
        self, patch: Path, parts: Sequence[Sequence[FileDiff]], place: Path, log: Path
    ) -> str:
        names = set().union(*map(names_of, parts))
        before = _state(place, names)
        try:
            placed = [text_of(apply_diffs(diffs, place, log)) for diffs in parts]
        except CannotApply as error:
            raise self._refusal(patch, str(error), log) from None
        if _state(place, names) == before:
            raise self._refusal(patch, "it changes nothing", log)
        return "".join(placed)

    def _diffs(self, patch: Path, log: Path) -> list[list[FileDiff]]:
        """What a patch does to files of the source, each mail of its file."""
        parts = [diffs_in(text) for text in patch_texts(patch)]
        if not any(map(names_of, parts)):
            raise self._refusal(patch, "it names no file of the source", log)
        return parts

    def _keep_modes(self, names: Iterable[str]) -> dict[str, int]:
        """The modes that files have without patches: of these, and of those that are patched."""
        kept: dict[str, int] = {}
        if self._modes.exists():
            kept = self._read(self._modes, _modes)
        for name in names:
            if name not in kept and (self.files / name).is_file():
                kept[name] = _mode(self.files / name)
        write_whole(self._modes, json.dumps(kept))
        return kept

    def _forget_modes(self, touched: Container[str]) -> None:
        kept = self._keep_modes(())
        known = {name: mode for name, mode in kept.items() if name in touched}
        write_whole(self._modes, json.dumps(known))

    def _refusal(self, patch: Path, cause: str, log: Path) -> PatchRefused:
        return PatchRefused(
            f"patch {patch} does not apply to {self.source.name}", cause, f"log: {log}"
        )

    def _unpack(self, lock: int) -> None:
        for left_over in self.folder.glob("unpacking-*"):
            shutil.rmtree(left_over)
        if unpacker := _UNPACKERS.get(self.source.path.suffix):
            require(unpacker)
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=self.folder) as name:
            place = Path(name)
            done = subprocess.run(
                ["tar", "-xf", self.source.path, "-C", place],
                capture_output=True,
                text=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
                pass_fds=(lock,),  # nobody else writes here for as long as tar lives
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
                raise LabUsageError(f"cannot unpack {self.source.path}", reason)
            # git archive makes tarballs without a folder at the top.
            roots = [top for top in (place, *place.iterdir()) if is_kernel_source(top)]
            if len(roots) != 1:
                raise LabUsageError(str(self.source.path), "there is no kernel source in it")
            roots[0].rename(self.files)

    def _copy_changes(self, announce: Callable[[str], None]) -> None:
        """Copy the files of the source folder that changed since this was last done."""
        before: dict[str, list[int]] = {}
        if self._listing.exists():
            before = self._read(self._listing, _listing)
        now = {name: [size, mtime] for name, size, mtime in list_files(self.source.path)}
        changed = [name for name, facts in now.items() if before.get(name) != facts]
        if changed:
            announce(f"copying {counted(len(changed), 'file')} of {self.source.path}")
        originals = self._read_originals()
        modes = self._keep_modes(())
        # What goes comes first: a folder may take the place of a file, or a file of a folder.
        for name in before.keys() - now.keys():
            if name in originals:
                originals[name] = None
                modes.pop(name, None)
            _remove(self.files, name)
        for name in changed:
            path = self.source.path / name
            if name in originals:
                originals[name] = _read(path)
                modes |= {name: _mode(path)} if path.is_file() else {}
            else:
                _copy(path, self.files / name)
        self._write_originals(originals)
        write_whole(self._modes, json.dumps(modes))
        write_whole(self._listing, json.dumps(now))

    def _read_originals(self) -> dict[str, bytes | None]:
        """Contents that patched files have without the patch; None for no such file."""
        if not self._originals.exists():
            return {}
        return self._read(self._originals, _originals)

    def _read(self, path: Path, make: Callable[[Any], Made]) -> Made:
        """Without it nobody knows what the tree has."""
        made = read_own(path, make)
        if made is None:
            raise LabError(str(path), "it is damaged", f"remove {self.folder}: it is made anew")
        return made

    def _write_originals(self, originals: Mapping[str, bytes | None]) -> None:
        kept = {
            name: None if content is None else content.decode("latin-1")
            for name, content in originals.items()
        }
        write_whole(self._originals, json.dumps(kept))


def _listing(data: dict[str, list[int]]) -> dict[str, list[int]]:
    """Size and modification time of what was copied, by name."""
    return {_checked(name): [int(size), int(mtime)] for name, (size, mtime) in data.items()}


def _originals(data: dict[str, str | None]) -> dict[str, bytes | None]:
    return {
        _checked(name): None if content is None else content.encode("latin-1")
        for name, content in data.items()
    }


def _modes(data: dict[str, int]) -> dict[str, int]:
    return {_checked(name): int(mode) for name, mode in data.items()}


def _checked(name: str) -> str:
    if not is_below(name):
        raise ValueError(name)
    return name


def _name_of(stem: str) -> str:
    """A name to build under: Kbuild takes no spaces and colons in the path of a source."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", stem).lstrip("._+-")[:_LONGEST_STEM] or "source"


def is_kernel_source(folder: Path) -> bool:
    """Whether a folder looks like the top of a kernel tree that the lab can build."""
    return (folder / "Kbuild").exists() and (folder / "arch/x86/kvm").is_dir()


def patched_files(patch: Path) -> set[str]:
    """Names, relative to the source, of the files that a patch may change, make or remove."""
    return {name for text in patch_texts(patch) for name in names_of(diffs_in(text))}


def list_files(top: Path, below: str = "") -> Iterator[tuple[str, int, int]]:
    """(name relative to `top`, size, modification time in ns) of a source folder's files,
    without what a build leaves there."""
    entries = {entry.name: entry for entry in os.scandir(top / below)}
    for entry in entries.values():
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name in _LEFT_OUT or name in _BUILT_FOLDERS or f".{entry.name}.cmd" in entries:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from list_files(top, name)
        elif entry.name.endswith(_BUILT_ENDINGS):
            continue
        elif entry.is_symlink() or entry.is_file():  # a named pipe would be read for ever
            facts = entry.stat(follow_symlinks=False)
            yield name, facts.st_size, facts.st_mtime_ns


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _plain_mode(mode: int | None) -> int | None:
    """What of a mode is of the source, and not of whoever unpacked it."""
    if mode is None:
        return None
    return EXECUTABLE if mode & stat.S_IXUSR else NOT_EXECUTABLE


def _state(top: Path, names: Iterable[str]) -> dict[str, tuple[bytes | None, int]]:
    """The contents and modes of files below ``top``; None and 0 for one that is not there."""
    paths = {name: top / name for name in names}
    return {
        name: (_read(path), _plain_mode(_mode(path)) or 0) if path.is_file() else (None, 0)
        for name, path in paths.items()
    }


def _write(path: Path, content: bytes | None, mode: int | None = None) -> None:
    """Give a file this content, None for no file; what has it already keeps its time stamp."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    if _read(path) != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.write_bytes(content)
        if is_new and content.startswith(b"#!"):  # the kernel's build runs scripts of its own
            path.chmod(0o755)
    if mode is not None and _mode(path) != mode:
        path.chmod(mode)


def _remove(top: Path, name: str) -> None:
    """Remove a file or a symbolic link below `top`, and the folders that this leaves empty."""
    (top / name).unlink(missing_ok=True)
    for folder in (top / name).parents:
        if folder == top or any(folder.iterdir()):
            break
        folder.rmdir()


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a symbolic link; the same contents keep the target's time stamp."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() or target.is_symlink():
        target.unlink(missing_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
    else:
        _write(target, source.read_bytes())
        shutil.copymode(source, target)
