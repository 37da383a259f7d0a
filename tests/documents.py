"""The fenced blocks of a document: programs, files and commands with what they print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^(`{3,})(.*)$")
# What changes from run to run and from machine to machine.
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language (or ""), the caption that names a file, its text, its line."""

    language: str
    caption: str
    text: str
    line: int

    @property
    def needs_a_lab(self) -> bool:
        """Whether it boots a kernel."""
        return "pyvmm.lab" in self.text or "pyvmm lab" in self.text

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each line that begins with "$ ", and the lines that it is said to print."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and line.strip() not in ("", "…"):
                found[-1][1].append(line)
        return found


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path) -> list[Block]:
    found: list[Block] = []
    fence, language, caption, start = "", "", "", 0
    kept: list[str] = []
    for number, line in enumerate(document.read_text().splitlines(), 1):
        match = _FENCE.match(line)
        if match and not fence:
            fence, info = match.groups()
            language, caption, kept, start = info.strip(), "", [], number
            if language.startswith("{code-block}"):
                language = language.split()[-1]
        elif match and match.group(1) == fence and not match.group(2):
            found.append(Block(language, caption, "\n".join(kept).strip("\n") + "\n", start))
            fence = ""
        elif fence and line.startswith(":caption: ") and not kept:
            caption = line.removeprefix(":caption: ")
        elif fence:
            kept.append(line)
    assert not fence, f"{document.name}:{start}: a block has no end"
    return found


def alike(line: str) -> str:
    """A line without its numbers and its spacing."""
    return " ".join(_NUMBER.sub("N", line).split())
