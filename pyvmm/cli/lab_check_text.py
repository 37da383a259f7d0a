"""What `pyvmm lab check` says: a summary that fits into a mail, and all of it as text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pyvmm.printable import counted, printable
from pyvmm.validate.kernels.lab_run import Trouble
from pyvmm.validate.kernels.two_kernels import Compared, Variant
from pyvmm.validate.kernels.verdict import COLUMNS, Facts, all_runs, counts_of, verdict
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.result import CaseResult, State

LINES = 39
WIDTH = 78
_MOST_REASONS = 3
_MOST_VARIANTS = 8
_MOST_CASES = 4
# What each section should have: its heading, one group of three lines, what was left out.
_LEAST = 5


def summary(facts: Facts, variants: Sequence[Variant], lines: int = LINES) -> list[str]:
    """At most ``lines`` lines of at most 78 characters."""
    head = [verdict(variants), "", *_heading(facts, variants), "", *_table(variants)]
    head += _reasons(variants)
    for variant in variants:
        head += [f"note: {note}" for note in variant.notes][: 1 if lines == LINES else None]
    told = [*head, *_sections(variants, lines - len(head))]
    return [_cut(printable(line)) for line in told][:lines]


def everything(facts: Facts, variants: Sequence[Variant]) -> list[str]:
    """The same with nothing left out."""
    told = [verdict(variants), "", *_heading(facts, variants), "", *_table(variants, None)]
    told += _reasons(variants, None)
    told += [f"note: {note}" for variant in variants for note in variant.notes]
    for variant in variants:
        for change in Change:
            found = [] if change is Change.SAME else variant.of(change)
            if found:
                told += ["", f"{_where(variant)}{change} ({len(found)}):"]
            for each in found:
                told += [f"  {each.name}", *(f"      {line}" for line in _story(each))]
        for when, run in all_runs(variant):
            if run.problem:
                told += ["", f"{_where(variant)}{when}: {run.problem}"]
            for trouble in run.trouble:
                told += ["", f"{_where(variant)}in the kernel's log {when}{during(trouble)}:"]
                told += [f"    {line}" for line in trouble.splat.lines]
    return [printable(line) for line in told]


def _heading(facts: Facts, variants: Sequence[Variant]) -> Iterator[str]:
    for when, kernel in (("before", facts.before), ("now", facts.now)):
        patches = ", ".join(kernel.patches) or "no patches"
        yield f"{when:<7} {kernel.name}: Linux {kernel.release}, {patches}"
        if kernel.debug:
            yield f"        which watches itself for {', '.join(kernel.debug)}"
    if facts.before.image == facts.now.image:
        yield "        (both are one and the same kernel)"
    count = len(variants[0].cases) if variants else 0
    chosen = f" (-k {facts.expression!r})" if facts.expression else ""
    yield f"{counted(count, 'case')}{chosen}, seed {facts.seed}"
    pairs = [pair for each in variants for pair in zip(each.before, each.now, strict=True)]
    seconds = sum(max(before.duration_s, now.duration_s) for before, now in pairs)
    machine = f"{counted(facts.cpus, 'CPU')}, {facts.memory_mib} MiB"
    yield f"pyvmm lab (QEMU, TCG), {machine}, {seconds:.0f} s"


def _table(variants: Sequence[Variant], most: int | None = _MOST_VARIANTS) -> Iterator[str]:
    labels = [variant.label or "all" for variant in variants]
    width = max([len(label) for label in labels] + [8])
    yield f"{'':<{width}}" + "".join(f"{name:>{len(name) + 2}}" for name in COLUMNS)
    # Those that differ come first, where not all can be shown.
    order = sorted(range(len(variants)), key=lambda at: not _differs(variants[at]))
    shown = sorted(order[:most])
    for at in shown:
        cells = zip(COLUMNS, counts_of(variants[at]), strict=True)
        row = "".join(f"{count:>{len(name) + 2}}" for name, count in cells)
        yield f"{labels[at]:<{width}}{row}"
    if len(shown) < len(variants):
        left = [variants[at] for at in order[len(shown) :]]
        differ = sum(map(_differs, left))
        yield f"... and {counted(len(left), 'combination')} more, {differ} of them with differences"


def _differs(variant: Variant) -> bool:
    return variant.worse or any(not each.change.alike for each in variant.cases)


def _reasons(variants: Sequence[Variant], most: int | None = _MOST_REASONS) -> Iterator[str]:
    """Why cases ran on neither kernel."""
    reasons: Counter[str] = Counter()
    for variant in variants:
        for each in variant.of(Change.SAME):
            if not each.now or each.now[0].state is State.SKIP:
                reasons[each.now[0].message if each.now else "did not run"] += 1
    ordered = reasons.most_common()
    for reason, count in ordered[:most]:
        yield f"{count} skipped: {reason}"
    if most is not None and len(ordered) > most:
        rest = sum(count for _, count in ordered[most:])
        yield f"{rest} skipped for {counted(len(ordered) - most, 'other reason')}"


# ---- what differs ----


@dataclass(frozen=True, slots=True)
class _Section:
    """A heading, and groups of lines of which some may be left out."""

    heading: str
    groups: Sequence[Sequence[str]]


def _sections(variants: Sequence[Variant], lines: int) -> Iterator[str]:
    """The sections in so many lines: the first ones take what the others can do without."""
    sections = [*_trouble_sections(variants), *_case_sections(variants)]
    least = _LEAST
    while least > 1 and sum(min(least, _size(each)) for each in sections) > lines:
        least -= 1
    for at, section in enumerate(sections):
        later = sum(min(least, _size(each)) for each in sections[at + 1 :])
        told = list(_fitted(section, lines - later))
        lines -= len(told)
        yield from told


def _size(section: _Section) -> int:
    return 1 + sum(map(len, section.groups))


def _fitted(section: _Section, room: int) -> Iterator[str]:
    if room <= 0:
        return
    yield section.heading
    room -= 1
    whole = sum(map(len, section.groups)) <= room
    for at, group in enumerate(section.groups):
        if len(group) + (not whole) > room:
            if room > 0:
                yield f"  ... and {len(section.groups) - at} more like these"
            return
        yield from group
        room -= len(group)


def _trouble_sections(variants: Sequence[Variant]) -> Iterator[_Section]:
    for when in ("now", "before"):
        groups = [
            _wrapped(f"{_where(variant)}{problem}", "  ")
            for variant in variants
            if (problem := variant.problem(when))
        ]
        if groups:
            yield _Section(f"did not come to its end {when}:", groups)
    new = _each_kind((variant, each) for variant in variants for each in variant.new_trouble)
    if new:
        yield _Section(f"the kernel's log, only now ({len(new)}):", new)
    old = _each_kind((variant, each) for variant in variants for each in _old_trouble(variant))
    if old:
        yield _Section(f"the kernel's log, before too ({len(old)}):", old)


def _old_trouble(variant: Variant) -> list[Trouble]:
    new = variant.new_trouble
    return [each for each in variant.trouble_now if each not in new]


def _each_kind(trouble: Iterable[tuple[Variant, Trouble]]) -> list[list[str]]:
    """Lines for each kind of splat, where it came first."""
    kinds: dict[str, list[tuple[Variant, Trouble]]] = {}
    for variant, each in trouble:
        kinds.setdefault(each.splat.kind, []).append((variant, each))
    return [
        _wrapped(f"{_where(found[0][0])}{found[0][1].splat.title}{during(found[0][1])}", "  ")
        for found in kinds.values()
    ]


def _case_sections(variants: Sequence[Variant]) -> Iterator[_Section]:
    for change in Change:
        if change is Change.SAME:
            continue
        found = [(variant, each) for variant in variants for each in variant.of(change)]
        by_id: dict[str, list[tuple[Variant, Compared]]] = {}
        for variant, each in found:
            by_id.setdefault(each.name.partition(".")[0], []).append((variant, each))
        if change in (Change.DID_NOT_RUN, Change.NO_LONGER_SKIPPED) and found:
            names = ", ".join(f"{id} ({len(each)})" for id, each in by_id.items())
            yield _Section(f"{change} ({len(found)}):", [_wrapped(names, "  ")])
        elif found:
            ordered = sorted(by_id.items(), key=lambda item: -len(item[1]))
            groups = [_group(id, each) for id, each in ordered]
            yield _Section(f"{change} ({len(found)}):", groups)


def _group(id: str, found: Sequence[tuple[Variant, Compared]]) -> list[str]:
    """The cases of one id: the first stands for all."""
    variant, first = found[0]
    more = f", and {len(found) - 1} more of {id}" if len(found) > 1 else ""
    name = _cut(f"  {_where(variant)}{first.name}", WIDTH - len(more)) + more
    return [name, *_wrapped(_words(first), "      ")]


def _wrapped(text: str, indent: str) -> list[str]:
    """At most two lines."""
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        max_lines=2,
        placeholder=" ...",
    )


def _words(each: Compared) -> str:
    """What is wrong with a case, in one line."""
    if each.change is Change.UNSTEADY:
        before, now = each.times
        return (
            f"failed {before} of {len(each.before)} times before, {now} of {len(each.now)} now: "
            f"{_first_message((*each.now, *each.before))}"
        )
    if each.change is Change.FIXED:
        return f"was: {_first_message(each.before)}{_how_often(each.before)}"
    if each.change is Change.DIFFERENT:
        return f"{_first_message(each.now)} (was: {_first_message(each.before)})"
    if each.change is Change.NEWLY_SKIPPED:
        return each.now[0].message
    return f"{_first_message(each.now)}{_how_often(each.now)}"


def _first_message(results: Sequence[CaseResult]) -> str:
    return next((each.words for each in results if each.state.wrong), "")


def _how_often(results: Sequence[CaseResult]) -> str:
    wrong = sum(each.state.wrong for each in results)
    return f" ({wrong} of {len(results)} times)" if wrong < len(results) else ""


def _story(each: Compared) -> Iterator[str]:
    """Every run of a case, those that went the same in one line."""
    for when, results in (("before", each.before), ("now", each.now)):
        if not results:
            yield f"{when}: did not run"
        told = Counter(f"{result.state} {result.message}".rstrip() for result in results)
        for line, count in told.items():
            yield f"{when}: {line}" + (f" ({count} times)" if count > 1 else "")


def _where(variant: Variant) -> str:
    return f"[{variant.label}] " if variant.label else ""


def during(trouble: Trouble) -> str:
    often = f", {trouble.times} times" * (trouble.times > 1)
    cases = ", ".join(trouble.cases[:_MOST_CASES])
    if len(trouble.cases) > _MOST_CASES:
        cases += f" and {len(trouble.cases) - _MOST_CASES} more"
    return often + (f" (while {cases} ran)" if cases else "")


def _cut(line: str, width: int = WIDTH) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."
