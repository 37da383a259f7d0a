"""What `pyvmm lab check --series` says: a table of the patches, and what went wrong at which."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from pyvmm.cli.lab_check_text import during
from pyvmm.printable import counted, printable
from pyvmm.validate.kernels.series import Step
from pyvmm.validate.kernels.series_verdict import (
    SeriesFacts,
    patches_compared,
    problems,
    verdict,
)
from pyvmm.validate.kernels.two_kernels import Variant
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.result import State

_WIDTH = 78
_MOST_NAMES = 4


def summary(steps: Sequence[Step], facts: SeriesFacts, most_names: int = _MOST_NAMES) -> list[str]:
    """The lines of a report; of what went wrong at a patch, so many names at most."""
    told = [*textwrap.wrap(verdict(steps, facts), _WIDTH), "", *_heading(steps, facts), ""]
    told += _table(steps, facts)
    for step in steps[1:]:
        told += _details(step, facts, most_names)
    for before, now in facts.selftests:
        changed = f"{before.outcome}, now {now.outcome}"
        same = before.outcome == now.outcome
        line = f"selftest {' '.join(now.command)}: {now.outcome if same else changed}"
        line += f": {now.said}" if now.outcome != "passed" and now.said else ""
        told += textwrap.wrap(line, _WIDTH, subsequent_indent="    ", max_lines=3)
    return [printable(line) for line in told]


def _heading(steps: Sequence[Step], facts: SeriesFacts) -> Iterator[str]:
    release = steps[0].kernel.release if steps[0].kernel else "?"
    debug = ", ".join(steps[0].kernel.debug) if steps[0].kernel else ""
    yield f"{counted(facts.total, 'patch', 'patches')} on {facts.source}, Linux {release}"
    if debug:
        yield f"kernels that watch themselves for {debug}"
    chosen = f" (-k {facts.expression!r})" if facts.expression else ""
    cases = next((len(step.variants[0].cases) for step in steps if step.variants), 0)
    yield f"{counted(cases, 'case')}{chosen}, seed {facts.seed}"
    yield f"pyvmm lab (QEMU, TCG), {counted(facts.cpus, 'CPU')}, {facts.memory_mib} MiB"


def _table(steps: Sequence[Step], facts: SeriesFacts) -> Iterator[str]:
    configs = list(steps[0].configs)
    columns = ["builds", "W=1", *configs, "cases"]
    rows = [_row(step, facts, configs) for step in steps]
    for number in range(len(steps), facts.total + 1):
        rows.append([f"{number}/{facts.total}", *("-" for _ in columns[:-1]), "not tried", ""])
    cells = [["", *columns, ""], *rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns) + 1)]
    for row in cells:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        yield f"{line}  {row[-1]}"[:_WIDTH].rstrip()


def _row(step: Step, facts: SeriesFacts, configs: Sequence[str]) -> list[str]:
    name = f"{step.number}/{facts.total}" if step.number else "base"
    builds = "yes" if step.kernel else "-" if step.refused else "NO"
    warnings = str(len(step.warnings)) if step.patch and step.kernel else "-"
    others = [
        "-" if config not in step.configs else "NO" if step.configs[config] else "yes"
        for config in configs
    ]
    subject = step.patch.subject if step.patch else ""
    return [name, builds, warnings, *others, _cases(step), subject]


def _cases(step: Step) -> str:
    if step.refused:
        return "DOES NOT APPLY"
    if not step.variants:
        return "-"
    if any(variant.new_problem for variant in step.variants):
        return "KERNEL DIED"  # this one did, whichever patch it was
    changed = [
        f"{count} {change}"
        for change in Change
        if not change.alike and (count := len(step.of(change)))
    ]
    splats = sum(len(variant.new_trouble) for variant in step.variants)
    changed += [counted(splats, "new splat")] * bool(splats)
    if changed:
        first, last = step.patches_compared
        since = f" since {first - 1 or 'base'}" * (first != last)
        return ", ".join(changed) + since
    passed = sum(
        bool(each.now) and each.now[0].state is State.PASS
        for variant in step.variants
        for each in variant.cases
    )
    return f"no difference, {passed} pass"


def _details(step: Step, facts: SeriesFacts, most_names: int) -> Iterator[str]:
    if step.patch is None:
        return
    own = [*problems(step), *(f"warning: {warning}" for warning in step.warnings)]
    changed = [line for variant in step.variants for line in _changes(variant, most_names)]
    title = f"{step.number}/{facts.total} {step.patch.subject}"
    first, last = step.patches_compared
    if first == last:
        own, changed = [*own, *changed], []
    for name, lines in (
        (title, own),
        (f"{patches_compared(step, facts.total)}, which were run together", changed),
    ):
        yield from ["", name] if lines else []
        for line in lines:
            yield from textwrap.wrap(line, _WIDTH, initial_indent="  ", subsequent_indent="      ")


def _changes(variant: Variant, most_names: int) -> Iterator[str]:
    where = f"{variant.label}: " if variant.label else ""
    if variant.new_problem:
        yield f"{where}{variant.new_problem}"
    for trouble in variant.new_trouble:
        yield f"{where}splat: {trouble.splat.title}{during(trouble)}"
    for change in Change:
        if change.alike:
            continue
        found = variant.of(change)
        for each in found[:most_names]:
            message = each.now[0].message if each.now and each.now[0].message else ""
            yield f"{where}{change}: {each.name}" + (f": {message}" if message else "")
        if len(found) > most_names:
            yield f"{where}{change}: and {len(found) - most_names} more"
