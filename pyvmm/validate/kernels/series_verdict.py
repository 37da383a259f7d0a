"""What a series comes to: one line, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyvmm.lab.selftests import DOES_NOT_BUILD
from pyvmm.printable import counted
from pyvmm.validate.kernels.series import Step
from pyvmm.validate.kernels.series_selftests import Pair, got_worse
from pyvmm.validate.kernels.verdict import variant_json
from pyvmm.validate.results.baseline import Change

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """What is known of a series beside its steps. ``selftests`` has the results before and now."""

    source: str
    total: int
    seed: int
    cpus: int
    memory_mib: int
    expression: str = ""
    selftests: tuple[Pair, ...] = field(default_factory=tuple)


def problems(step: Step) -> list[str]:
    """Why a step is no kernel, or no other kernel: each configuration that no longer builds."""
    return [f"{name}: {why}" if name else why for name, why in step.broken.items()]


def is_broken(steps: Sequence[Step]) -> bool:
    """Whether a patch does not apply or build."""
    return any(problems(step) for step in steps[1:])


def is_worse(steps: Sequence[Step], facts: SeriesFacts) -> bool:
    return (
        any(step.worse or step.warnings for step in steps)
        or any(got_worse(*pair) for pair in facts.selftests)
        or is_broken(steps)
    )


def nothing_ran(steps: Sequence[Step]) -> bool:
    variants = [variant for step in steps for variant in step.variants]
    return bool(variants) and all(variant.nothing_ran for variant in variants)


def verdict(steps: Sequence[Step], facts: SeriesFacts) -> str:
    """One line: the first patch that makes something worse, and what."""
    told = [line for step in steps[1:] for line in _of_step(step, facts.total)]
    worse = [now for before, now in facts.selftests if got_worse(before, now)]
    for what, found in (
        ("not built", [now for now in worse if now.outcome == DOES_NOT_BUILD]),
        ("failing", [now for now in worse if now.outcome != DOES_NOT_BUILD]),
    ):
        names = dict.fromkeys(now.command[0] for now in found)
        told += [f"selftests {what} now: {', '.join(names)}"] * bool(names)
    if told:
        return "WORSE: " + "; ".join(told[:3]) + (f"; and {len(told) - 3} more" * (len(told) > 3))
    if nothing_ran(steps):
        return "NOTHING COULD RUN on any kernel"
    changed = [
        f"{count} {change}"
        for change in Change
        if not change.alike and (count := sum(len(step.of(change)) for step in steps))
    ]
    return f"nothing got worse: {', '.join(changed)}" if changed else "no difference"


def patches_compared(step: Step, total: int) -> str:
    """Whose doing it is what its cases did otherwise: ``3/5``, or ``1-5/5`` where nobody knows."""
    first, last = step.patches_compared
    return f"{last}/{total}" if first == last else f"{first}-{last}/{total}"


def _of_step(step: Step, total: int) -> list[str]:
    name = f"patch {step.number}/{total}"
    if step.refused:
        return [f"{name} does not apply"]
    said = []
    if "" in step.broken:
        said.append("does not build")
    if broken := [config for config in step.broken if config]:
        said.append(f"does not build with {', '.join(broken)}")
    if step.warnings:
        said.append(f"has {counted(len(step.warnings), 'compiler warning')}")
    first, last = step.patches_compared
    if step.worse and first == last:
        said.append(_breaks(step, "s"))
    told = [f"{name} {' and '.join(said)}"] if said else []
    if step.worse and first != last:
        told.append(f"patches {patches_compared(step, total)} {_breaks(step, '')}")
    return told


def _breaks(step: Step, s: str) -> str:
    """What one patch ``s``, or several patches together, break."""
    broken = step.of(Change.BROKEN)
    if broken:
        return f"break{s} {broken[0]}" + (f" and {len(broken) - 1} more" * (len(broken) > 1))
    for variant in step.variants:
        if variant.new_problem:
            return f"end{s} the kernel ({variant.new_problem})"
        if variant.new_trouble:
            return f"give{s} a splat ({variant.new_trouble[0].splat.title})"
    names = [name for change in Change if not change.alike for name in step.of(change)]
    return f"change{s} {names[0]}"


def to_json(
    steps: Sequence[Step], facts: SeriesFacts, coverage: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One object; docs/series.md has its keys."""
    from pyvmm import __version__

    return {
        "schema": SCHEMA,
        "pyvmm": __version__,
        "verdict": verdict(steps, facts),
        "worse": is_worse(steps, facts),
        "source": facts.source,
        "patches": facts.total,
        "seed": facts.seed,
        "expression": facts.expression,
        "steps": [_step_json(step) for step in steps],
        "selftests": [
            {
                "name": " ".join(now.command),
                "before": before.outcome,
                "now": now.outcome,
                "said": now.said or None,
                "worse": got_worse(before, now),
            }
            for before, now in facts.selftests
        ],
        **({} if coverage is None else {"coverage": coverage}),
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "number": step.number,
        "subject": step.patch.subject if step.patch else None,
        "applies": not step.refused,
        "builds": step.kernel is not None,
        "problem": step.problem or None,
        "warnings": [
            {"file": each.file, "line": each.line, "text": each.text} for each in step.warnings
        ],
        "configs": {name: why or None for name, why in step.configs.items()},
        "compared_with": step.compared_with if step.variants else None,
        "worse": step.worse,
        "variants": [variant_json(variant) for variant in step.variants],
    }
