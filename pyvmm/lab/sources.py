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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvmm.lab.cache import cache_folder, check_room, write_whole
from pyvmm.lab.diffs import FileDiff, diffs_in, text_of
from pyvmm.lab.errors import LabUsageError, PatchRefused
from pyvmm.lab.mail import patch_text
from pyvmm.lab.processes import die_with_parent
from pyvmm.lab.programs import require

_TARBALLS = Path("/usr/src")
#: An unpacked source and one build of it.
_TREE_MIB = 2600
#: What a build in the source folder leaves there; a tree must not have it, or make would take
#: it for up to date. Beside most that it makes, Kbuild leaves a file .NAME.cmd.
_BUILT_ENDINGS = (".o", ".a", ".cmd", ".ko", ".mod")
_LEFT_OUT = (".git", ".config", ".config.old", "vmlinux")
_BUILT_FOLDERS = ("include/config", "include/generated", "arch/x86/include/generated")
#: What patch(1) says of trouble; for the last of these its status is 0.
_PATCH_FAILURES = ("FAILED", "can't find", "malformed", "not supported")
_PATCHING = "patching file "
#: What tar calls to unpack a tarball, by the end of its name.
_UNPACKERS = {".xz": "xz", ".bz2": "bzip2", ".zst": "zstd"}
_VERSION = re.compile(r"\d+\.\d+")
_LONGEST_STEM = 40
_LONGEST_NAME = 255  # NAME_MAX of linux/limits.h


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
            return self.source.identity + _digest(self._listing.read_text())
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
    ) -> None:
        """Make the tree's contents the source's with these patches, in order, applied to copies.

        `appended` has lines for the ends of files by name. A LabError, and nothing changed, when a
        patch does not apply; `log` then has what patch said.
        """
        originals = self._read_originals()
        found = [self._diffs(patch, log) for patch in patches]
        touched = {name for diffs in found for diff in diffs for name in _names(diff)}
        touched.update(appended or ())
        for name in touched:
            originals.setdefault(name, _read(self.files / name))
        with tempfile.TemporaryDirectory(prefix="patching-", dir=self.folder) as place:
            for name in touched:
                _write(Path(place, name), originals[name])
            wanted = dict(originals)
            for patch, diffs in zip(patches, found, strict=True):
                self._apply(patch, diffs, place, log)
                changed = wanted | {name: _read(Path(place, name)) for name in touched}
                if changed == wanted and not any(map(_changes_mode, diffs)):
                    raise self._refusal(patch, "it changes nothing", log)
                wanted = changed
        for name, lines in (appended or {}).items():
            wanted[name] = (wanted[name] or b"") + lines.encode()
        self._write_originals(originals)  # before the first change: an interruption loses nothing
        modes = _modes(diff for diffs in found for diff in diffs)
        self._keep_modes(name for name in modes if originals[name] is not None)
        for name, content in wanted.items():
            _write(self.files / name, content)
        self._set_modes(modes)
        self._write_originals({name: originals[name] for name in touched})

    def _diffs(self, patch: Path, log: Path) -> list[FileDiff]:
        """What a patch does to files of the source."""
        diffs = diffs_in(patch_text(patch))
        if not any(map(_names, diffs)):
            raise self._refusal(patch, "it names no file of the source", log)
        if flaw := next((diff.flaw for diff in diffs if diff.flaw), ""):
            raise self._refusal(patch, flaw, log)
        return diffs

    def _apply(self, patch: Path, diffs: Sequence[FileDiff], place: str, log: Path) -> None:
        command = ["patch", "-p1", "-F0", "-f", "--no-backup-if-mismatch", "-r", "-", "-d", place]
        for diff in diffs:
            if _changes_mode(diff) and not Path(place, diff.old).is_file():
                raise self._refusal(patch, f"{diff.old}: there is no such file", log)
        with open(log, "a+") as output:
            start = output.tell()
            given = text_of(diffs).encode("utf-8", "surrogateescape")
            done = subprocess.run(command, input=given, stdout=output, stderr=output)
            output.seek(start)
            said = output.read().splitlines()
        failures = [at for at, line in enumerate(said) if any(w in line for w in _PATCH_FAILURES)]
        if done.returncode or failures:
            raise self._refusal(patch, _failure(said, failures), log)

    def _keep_modes(self, names: Iterable[str]) -> dict[str, int]:
        """The modes that files have without patches: of these, and of those that are known."""
        kept: dict[str, int] = {}
        if self._modes.exists():
            kept = json.loads(self._modes.read_text())
        for name in names:
            if name not in kept and (self.files / name).is_file():
                kept[name] = stat.S_IMODE((self.files / name).stat().st_mode)
        write_whole(self._modes, json.dumps(kept))
        return kept

    def _set_modes(self, wanted: Mapping[str, int]) -> None:
        """Give files these modes, and others back those that they had."""
        kept = self._keep_modes(())
        for name, mode in {**kept, **wanted}.items():
            if (self.files / name).is_file():
                (self.files / name).chmod(mode)
        write_whole(self._modes, json.dumps({name: kept[name] for name in kept if name in wanted}))

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
            before = json.loads(self._listing.read_text())
        now = {name: [size, mtime] for name, size, mtime in list_files(self.source.path)}
        changed = [name for name, facts in now.items() if before.get(name) != facts]
        if changed:
            announce(f"copying {len(changed)} files of {self.source.path}")
        originals = self._read_originals()
        # What goes comes first: a folder may take the place of a file, or a file of a folder.
        for name in before.keys() - now.keys():
            if name in originals:
                originals[name] = None
            _remove(self.files, name)
        for name in changed:
            if name in originals:
                originals[name] = _read(self.source.path / name)
            else:
                _copy(self.source.path / name, self.files / name)
        self._write_originals(originals)
        write_whole(self._listing, json.dumps(now))

    def _read_originals(self) -> dict[str, bytes | None]:
        """Contents that patched files have without the patch; None for no such file."""
        if not self._originals.exists():
            return {}
        kept: dict[str, str | None] = json.loads(self._originals.read_text())
        return {
            name: None if content is None else content.encode("latin-1")
            for name, content in kept.items()
        }

    def _write_originals(self, originals: Mapping[str, bytes | None]) -> None:
        kept = {
            name: None if content is None else content.decode("latin-1")
            for name, content in originals.items()
        }
        write_whole(self._originals, json.dumps(kept))


def _failure(said: Sequence[str], failures: Sequence[int]) -> str:
    """The first line of patch(1) that tells of trouble, and the file that it was at."""
    if not failures:
        return said[0] if said else "patch(1) failed"
    at = failures[0]
    files = [line for line in said[:at] if line.startswith(_PATCHING)]
    file = files[-1].removeprefix(_PATCHING).partition(" (")[0] if files else ""
    return f"{file}: {said[at]}" if file and file not in said[at] else said[at]


def _name_of(stem: str) -> str:
    """A name to build under: Kbuild takes no spaces and colons in the path of a source."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", stem).lstrip("._+-")[:_LONGEST_STEM] or "source"


def is_kernel_source(folder: Path) -> bool:
    """Whether a folder looks like the top of a kernel tree that the lab can build."""
    return (folder / "Kbuild").exists() and (folder / "arch/x86/kvm").is_dir()


def patched_files(patch: Path) -> set[str]:
    """Names, relative to the source, of the files that a patch may change, make or remove."""
    return {name for diff in diffs_in(patch_text(patch)) for name in _names(diff)}


def _names(diff: FileDiff) -> set[str]:
    return {name for name in (diff.old, diff.new) if name and _is_below(name)}


def _modes(diffs: Iterable[FileDiff]) -> dict[str, int]:
    """What modes patches give to files, by name."""
    return {
        diff.new: 0o755 if diff.is_executable else 0o644
        for diff in diffs
        if diff.is_executable is not None and _is_below(diff.new)
    }


def _changes_mode(diff: FileDiff) -> bool:
    return bool(diff.old) and diff.is_executable is not None


def _is_below(name: str) -> bool:
    """Whether a file of this name can be, and below the folder that it is looked for in."""
    parts = name.split("/")
    return ".." not in parts and "" not in parts and max(map(len, parts)) <= _LONGEST_NAME


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


def _write(path: Path, content: bytes | None) -> None:
    """Give a file this content, None for no file; what has it already keeps its time stamp."""
    if _read(path) == content:
        return
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.write_bytes(content)
        if is_new and content.startswith(b"#!"):  # the kernel's build runs scripts of its own
            path.chmod(0o755)


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
