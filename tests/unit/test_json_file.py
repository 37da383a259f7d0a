"""JSON that pyvmm keeps for itself, in whatever state it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.json_file import read_own


def total(data: dict[str, Any]) -> int:
    return sum(int(each) for each in data["numbers"].values())


def test_what_is_whole_is_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"numbers": {"a": 1, "b": 2}}')
    assert read_own(path, total) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"numbers": []}',
        b'{"numbers": {"a": "x"}}',
        b'{"numbers": {"a": null}}',
        b'{"numbers": {"a": 1e999}}',
        b'{"numbers": {"a": ' + b"9" * 5000 + b"}}",
    ],
)
def test_what_is_damaged_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(content)
    assert read_own(path, total) is None
    assert read_own(path, lambda data: data[7][7]) is None


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_own(tmp_path, total) is read_own(tmp_path / "none", total) is None


def test_a_mistake_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text("{}")

    def mistaken(data: object) -> None:
        raise AssertionError

    with pytest.raises(AssertionError):
        read_own(path, mistaken)
