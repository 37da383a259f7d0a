"""What two kernels compared come to: one line, counts, and all of it as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyvmm.lab.kernels import Kernel
from pyvmm.printable import counted
from pyvmm.validate.kernels.lab_run import LabRun
from pyvmm.validate.kernels.two_kernels import Compared, Variant
from pyvmm.validate.results import report
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.result import State

SCHEMA = 1
COLUMNS = ("known", "same pass", "same failure", "skipped", "fixed", "broken", "other")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a comparison beside its results."""

    before: Kernel
    now: Kernel
    seed: int
    cpus: int
    memory_mib: int
    expression: str = ""


def verdict(variants: Sequence[Variant]) -> str:
    """One line: whether anything got worse, and what."""
    counts = Counter(each.change for variant in variants for each in variant.cases)
    changed = [
        f"{counts[change]} {change}" for change in Change if counts[change] and not change.alike
    ]
    splats = sum(len(variant.new_trouble) for variant in variants)
    if splats:
        changed.append(counted(splats, "new splat"))
    if any(variant.new_problem for variant in variants):
        changed.append("kernel died")
    if any(variant.worse for variant in variants):
        return f"WORSE: {', '.join(changed)}"
    if all(variant.nothing_ran for variant in variants):
        return "NOTHING COULD RUN on either kernel"
    if any(variant.problem("before") for variant in variants):
        changed.append("the kernel before did not come to the end")
    if changed:
        return f"nothing got worse: {', '.join(changed)}"
    failed, known = counts[Change.SAME_FAILURE], counts[Change.SAME_KNOWN]
    told = [f"{counted(known, 'case sees', 'cases see')} known bugs on both kernels"] * bool(known)
    told += [f"{counted(failed, 'case fails', 'cases fail')} on both kernels"] * bool(failed)
    return ": ".join(["no difference", *([", ".join(told)] if told else [])])


def counts_of(variant: Variant) -> tuple[int, ...]:
    same = variant.of(Change.SAME)
    skipped = sum(not each.now or each.now[0].state is State.SKIP for each in same)
    told = (Change.SAME, Change.SAME_FAILURE, Change.SAME_KNOWN, Change.FIXED, Change.BROKEN)
    return (
        len(variant.of(Change.SAME_KNOWN)),
        len(same) - skipped,
        len(variant.of(Change.SAME_FAILURE)),
        skipped,
        len(variant.of(Change.FIXED)),
        len(variant.of(Change.BROKEN)),
        sum(each.change not in told for each in variant.cases),
    )


def all_runs(variant: Variant) -> Iterator[tuple[str, LabRun]]:
    for when, runs in (("before", variant.before), ("now", variant.now)):
        for number, run in enumerate(runs):
            yield (when if number == 0 else f"{when}, again"), run


def to_json(
    facts: Facts, variants: Sequence[Variant], coverage: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One object; docs/validate.md has its keys. ``coverage`` is there if it was measured."""
    from pyvmm import __version__

    return {
        "schema": SCHEMA,
        "pyvmm": __version__,
        "verdict": verdict(variants),
        "worse": any(variant.worse for variant in variants),
        "before": _kernel_json(facts.before),
        "now": _kernel_json(facts.now),
        "seed": facts.seed,
        "expression": facts.expression,
        "variants": [variant_json(variant) for variant in variants],
        **({} if coverage is None else {"coverage": coverage}),
    }


def _kernel_json(kernel: Kernel) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "release": kernel.release,
        "source": kernel.source,
        "patches": list(kernel.patches),
    }


def variant_json(variant: Variant) -> dict[str, Any]:
    return {
        "parameters": list(variant.parameters),
        "worse": variant.worse,
        "notes": variant.notes,
        "counts": dict(zip(COLUMNS, counts_of(variant), strict=True)),
        "changes": {
            change.value: [_compared_json(each) for each in variant.of(change)]
            for change in Change
            if change is not Change.SAME
        },
        "problems": [
            {"run": when, "problem": run.problem} for when, run in all_runs(variant) if run.problem
        ],
        "kernel_log": [
            {
                "run": when,
                "title": each.splat.title,
                "new": each.splat.kind in {new.splat.kind for new in variant.new_trouble},
                "cases": list(each.cases),
                "lines": list(each.splat.lines),
            }
            for when, run in all_runs(variant)
            for each in run.trouble
        ],
    }


def _compared_json(each: Compared) -> dict[str, Any]:
    return {
        "name": each.name,
        "worse": each.worse,
        "before": [report.result_to_json(result) for result in each.before],
        "now": [report.result_to_json(result) for result in each.now],
    }
