"""Leave out of a script what its failure does not need.

Any steps can be left out of a script, so this needs far fewer plays than a way that knows
nothing of scripts, and a play takes long where a kernel is emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pyvmm.validate.model.script import STEPS, Step

Steps = Sequence[Step]


def shrink(
    steps: Steps, fails: Callable[[Steps], int | None], allowed: Callable[[Step], bool]
) -> tuple[Step, ...]:
    """The shortest script that was found to fail, with the smallest numbers.

    ``fails`` plays one and gives the number of steps after which it failed, None if it did
    not; ``allowed`` says whether a step's numbers are in their bounds.
    """
    best = list(steps)
    if (after := fails(best)) is None:
        return tuple(steps)
    del best[after:]
    while True:
        before = list(best)
        best = _fewer(best, fails)
        best = _smaller(best, fails, allowed)
        if best == before:
            return tuple(best)


def _fewer(best: list[Step], fails: Callable[[Steps], int | None]) -> list[Step]:
    """Without as many steps as possible: half of them, a quarter, ... one."""
    size = max(1, len(best) // 2)
    while True:
        end = len(best)
        while end > 0:
            start = max(0, end - size)
            rest = best[:start] + best[end:]
            after = fails(rest)
            if after is not None:
                best = rest[:after]
            end = min(start, len(best))
        if size == 1:
            return best
        size = size // 2


def _smaller(
    best: list[Step], fails: Callable[[Steps], int | None], allowed: Callable[[Step], bool]
) -> list[Step]:
    """With shorter ranges, then with smaller numbers."""
    for at in range(len(best)):
        changed = True
        while changed:
            changed = False
            for step in [*_halves(best[at]), *_lower(best[at])]:
                candidate = [*best[:at], step, *best[at + 1 :]]
                if allowed(step) and fails(candidate) is not None:
                    best, changed = candidate, True
                    break
    return best


def _halves(step: Step) -> Iterator[Step]:
    """A step on a range of pages, on either half of it."""
    kinds = STEPS[step[0]]
    if len(kinds) < 2 or not kinds[-1].endswith("count") or step[-1] < 2:
        return
    *before, first, count = step
    yield (*before, first, count // 2)
    yield (*before, first + count // 2, count - count // 2)


def _lower(step: Step) -> Iterator[Step]:
    """A step with one number less: the least first, then half of it and one less."""
    for index, number in enumerate(step[1:], 1):
        one_less = (number - 1,) if number <= 64 else ()
        for each in dict.fromkeys((0, 1, number // 2, *one_less)):
            if 0 <= each < number:
                yield (*step[:index], each, *step[index + 1 :])
