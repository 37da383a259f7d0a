"""Two runs compared, case by case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from enum import StrEnum

from pyvmm.printable import counted
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results.result import CaseResult, State


class Change(StrEnum):
    """What a case did between the baseline and now; the order is that of a report."""

    BROKEN = "broken"
    DIFFERENT = "different failure"
    DID_NOT_RUN = "did not run"
    NEWLY_SKIPPED = "newly skipped"
    UNSTEADY = "unsteady"
    SAME_FAILURE = "same failure"
    SAME_KNOWN = "same known bug"
    FIXED = "fixed"
    NO_LONGER_SKIPPED = "no longer skipped"
    SAME = "same"

    @property
    def alike(self) -> bool:
        return self in (Change.SAME, Change.SAME_FAILURE, Change.SAME_KNOWN)


def is_worse(change: Change, before: State) -> bool:
    """Whether a change of a case that was in that state is for the worse.

    A case that passed and is skipped now proves nothing any more, and must not look as if.
    """
    if change in (Change.NEWLY_SKIPPED, Change.DID_NOT_RUN):
        return before is not State.SKIP and not (before.wrong and change is Change.NEWLY_SKIPPED)
    return change in (Change.BROKEN, Change.DIFFERENT)


@dataclass(frozen=True, slots=True)
class Difference:
    change: Change
    before: CaseResult
    now: CaseResult

    @property
    def worse(self) -> bool:
        return is_worse(self.change, self.before.state)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``only_before`` and ``only_now`` are names of cases that one of the two did not run."""

    differences: tuple[Difference, ...]
    only_before: tuple[str, ...]
    only_now: tuple[str, ...]

    def of(self, change: Change) -> list[Difference]:
        return [each for each in self.differences if each.change is change]

    @property
    def worse(self) -> bool:
        return any(each.worse for each in self.differences)


def compare(before: Iterable[CaseResult], now: Iterable[CaseResult]) -> Comparison:
    """Every case that ran both times, in the order of ``now``."""
    earlier = {result.name: result for result in before}
    later = {result.name: result for result in now}
    both = bugs_in(earlier.values()) & bugs_in(later.values())
    return Comparison(
        tuple(
            Difference(change(earlier[name], result, both), earlier[name], result)
            for name, result in later.items()
            if name in earlier
        ),
        tuple(name for name in earlier if name not in later),
        tuple(name for name in later if name not in earlier),
    )


def bugs_in(results: Iterable[CaseResult]) -> frozenset[KnownBug]:
    """The known bugs that any of the cases saw."""
    return frozenset(each.bug for each in results if each.bug)


def only_known(results: Iterable[CaseResult], both: Set[KnownBug]) -> bool:
    """Whether nothing is wrong in these but bugs that both sides have. A bug that is a race is met
    by one case here and by another there."""
    bad = [each for each in results if each.state is not State.PASS]
    return bool(bad) and all(each.bug in both for each in bad)


def change(before: CaseResult, now: CaseResult, both: Set[KnownBug] = frozenset()) -> Change:
    """What one run of a case on each side says, where some case on each has seen ``both``."""
    if only_known((before, now), both):
        return Change.SAME_KNOWN
    if now.state.wrong:
        if not before.state.wrong:
            return Change.BROKEN
        if (before.state, before.message) != (now.state, now.message):
            return Change.DIFFERENT
        return Change.SAME_FAILURE if now.state.bad else Change.SAME_KNOWN
    if before.state.wrong:
        # A failure that is not looked at any more is not fixed.
        return Change.FIXED if now.state is State.PASS else Change.NEWLY_SKIPPED
    if now.state is before.state:
        return Change.SAME
    return Change.NEWLY_SKIPPED if now.state is State.SKIP else Change.NO_LONGER_SKIPPED


def summary(comparison: Comparison) -> Iterator[str]:
    """A few lines for people: what changed and how."""
    for kind in Change:
        found = comparison.of(kind)
        if kind is Change.SAME or not found:
            continue
        yield f"{kind} ({len(found)}):"
        for each in found:
            yield f"  {each.now.name}: {_words(each)}"
    same = len(comparison.of(Change.SAME))
    yield counted(same, "case is as it was", "cases are as they were")
    for names, where in ((comparison.only_before, "the baseline"), (comparison.only_now, "now")):
        if names:
            yield f"{counted(len(names), 'case')} only in {where}: {', '.join(names[:5])}" + (
                ", ..." if len(names) > 5 else ""
            )


def _words(each: Difference) -> str:
    now = each.now.words or each.now.state
    if each.change is Change.FIXED:
        return f"was: {each.before.words}"
    if each.change is Change.DIFFERENT:
        return f"{now} (was: {each.before.words})"
    return str(now)
