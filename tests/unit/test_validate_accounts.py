"""Whether something was left behind, of a kernel that keeps what was freed for later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.validate.kit import accounts
from pyvmm.validate.kit.accounts import Line, left_behind

SLAB = Line("slab", 64, 512 << 10, ("SUnreclaim",))


class Kept:
    """Memory that was freed and is still counted, until the one cache is asked to shrink."""

    def __init__(self, folder: Path) -> None:
        self.shrink = folder / "kmalloc-64/shrink"
        self.shrink.parent.mkdir()
        self.shrink.touch()
        (folder / "a cache without the file").mkdir()
        self.kept = self.lost = self.asked = 0
        self.late: list[int] = []  # freed at the next look, at the one after it, ...

    def meminfo(self) -> dict[str, int]:
        if self.shrink.read_text():
            assert self.shrink.read_text() == "1"
            self.shrink.write_text("")
            self.asked += 1
            self.kept = 0
        waiting = sum(self.late)
        self.late = self.late[1:]
        return {"SUnreclaim": (10 << 20) + self.kept + self.lost + waiting}

    def work(self, kept: int = 0, lost: int = 0) -> Callable[[], None]:
        def work() -> None:
            self.kept += kept
            self.lost += lost

        return work


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kept:
    made = Kept(tmp_path)
    monkeypatch.setattr(accounts, "_SLABS", tmp_path)
    monkeypatch.setattr(accounts, "_REST_S", 0.2)
    monkeypatch.setattr(accounts, "_AGAIN_S", 0.001)
    monkeypatch.setattr(accounts, "meminfo", made.meminfo)
    return made


def grown(work: Callable[[], None], *, suspected: bool = False, attempts: int = 3) -> list[int]:
    found = left_behind(work, (SLAB,), lambda line: line.noise, attempts, suspected=suspected)
    return found.get(SLAB, [])


def test_what_is_kept_for_later_is_not_left_behind(kernel: Kept) -> None:
    assert grown(kernel.work(kept=1 << 20)) == []
    assert kernel.asked == 3  # twice before the second go, and after it
    assert grown(kernel.work(kept=1 << 20), suspected=True, attempts=1) == []


def test_what_is_lost_is_found_among_what_is_kept(kernel: Kept) -> None:
    assert grown(kernel.work(kept=1 << 20, lost=1 << 20)) == [2 << 20, 1 << 20, 1 << 20]
    assert grown(kernel.work(kept=1 << 20, lost=1 << 20), suspected=True, attempts=1) == [1 << 20]


def test_nobody_is_asked_without_suspicion(kernel: Kept) -> None:
    assert grown(kernel.work(kept=1 << 10)) == []
    assert kernel.asked == 0


def test_a_kernel_without_such_caches(kernel: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_SLABS", Path("/sys/kernel/slab/none"))
    assert grown(kernel.work(kept=1 << 20)) == [1 << 20] * 3


def test_what_is_freed_a_moment_later_is_not_left_behind(kernel: Kept) -> None:
    def work() -> None:
        kernel.late = [0, 0, 0, 1 << 20]

    assert grown(work, suspected=True, attempts=1) == []
    assert grown(work) == []


def test_what_is_freed_a_moment_later_hides_nothing(kernel: Kept) -> None:
    kernel.late = [1 << 20, 1 << 20, 1 << 20]  # by what was done before
    assert grown(kernel.work(lost=1 << 20)) == [1 << 20] * 3


def test_what_never_comes_to_rest_is_awaited_for_a_while_only(kernel: Kept) -> None:
    kernel.late = [1 << 20] * 100_000
    assert grown(kernel.work(), attempts=1) == []
