"""What the compiler has to say of the lines that a patch touches."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace

from pyvmm.lab.build import Recipe, compile_only
from pyvmm.lab.diffs import added_lines
from pyvmm.lab.make import Progress

#: The folders that are KVM on x86; goals of make.
_KVM = ("virt/kvm/", "arch/x86/kvm/")
_STRICT = ("CONFIG_KVM_WERROR", "CONFIG_WERROR")
_SAID = r"^(?:\.\./)*(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? "
_WARNING = re.compile(_SAID + "warning: (?P<text>.+)$", re.M)
_ERROR = re.compile(_SAID + "(?:fatal )?error: ", re.M)


@dataclass(frozen=True, slots=True)
class CompilerWarning:
    """A compiler's warning, in a file of the kernel's source."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def warnings_of_patch(
    recipe: Recipe,
    text: str,
    announce: Callable[[str], None],
    progress: Progress | None = None,
) -> list[CompilerWarning]:
    """The warnings of `make W=1` in lines that the patch `text`, recipe's last one, touches.

    Compiled are KVM's folders and the other C files of the patch that the configuration has.
    """
    again = sorted(name for name in added_lines([text]) if name.endswith((".c", ".h")))
    if not again:
        return []
    objects = [f"{name[:-2]}.o" for name in again if name.endswith(".c") and not _is_kvm(name)]
    # What is no warning now must not end the build: errors are for the kernel's own build.
    strict = [each for each in _STRICT if f"{each}=y" in recipe.config]
    lenient = "".join(f"# {option} is not set\n" for option in strict)
    relaxed = replace(recipe, config=recipe.config + lenient)
    # make compiles a file that it is told to, be it one of this configuration or not.
    others = [name for name in objects if name.startswith(("mm/", "kernel/", "fs/"))]
    done = compile_only(relaxed, _KVM, announce, progress, ["W=1"], again, others)
    return in_lines(done.said, added_lines(done.patches[-1:]))


def _is_kvm(name: str) -> bool:
    return name.startswith(_KVM)


def in_lines(said: str, lines: Mapping[str, Container[int]]) -> list[CompilerWarning]:
    """The warnings in what a build said that are about these lines, each once.

    Those of a file that does not compile, because the configuration lacks it, mean nothing.
    """
    without = {_shortest(match["file"], lines) for match in _ERROR.finditer(said)}
    found = []
    for match in _WARNING.finditer(said):
        name = _shortest(match["file"], lines)
        if name in without:
            continue
        if int(match["line"]) in lines.get(name, ()):
            found.append(CompilerWarning(name, int(match["line"]), match["text"]))
    return list(dict.fromkeys(found))


def _shortest(name: str, known: Iterable[str]) -> str:
    """A file as the source's top has it: make names them from where it is, or absolutely."""
    return next((each for each in known if name == each or name.endswith(f"/{each}")), name)
