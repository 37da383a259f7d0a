"""What a conversion costs in place, beside one between two backings: one kernel, both of its modes.

The lab's kernel in-place is booted by turns with the mode on and off, and `pyvmm bench conversions`
measures the backend that it has then. Ratios are of medians over the rounds. An emulated CPU
makes the microseconds meaningless but beside each other.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from interleaved import describe_machine

from pyvmm.bench.statistics import median
from pyvmm.lab.lab import Lab

MODES = {"in_place": "1", "guest_memfd": "0"}
PARTS = ("exit", "refault", "allocate", "attributes", "switch", "discard", "bookkeeping")

Case = dict[str, Any]


def measure(backend: str, mode: str, seconds: int) -> dict[str, Case]:
    """The cases of the backend, by what is behind its name."""
    command = ["pyvmm", "bench", "conversions", "-k", f"{backend}_", "--seconds", str(seconds)]
    with Lab("in-place", params=[f"kvm.gmem_in_place_conversion={mode}"]) as lab:
        result = lab.run([*command, "--json"])
    if result.status != 0:
        raise SystemExit(result.problem or result.errors.decode(errors="replace"))
    cases = json.loads(result.output)["cases"]
    return {case["name"].removeprefix(f"{backend}_"): case for case in cases}


def middle(rounds: list[dict[str, Case]], name: str, part: str | None = None) -> float:
    """Microseconds of a case, or of a part of it."""
    cases = [each[name] for each in rounds]
    return median([case["ns"] if part is None else case["split"][part] for case in cases]) / 1000


def split(rounds: list[dict[str, Case]], name: str) -> str:
    there = rounds[0][name].get("split") or {}
    return ", ".join(
        f"{part} {middle(rounds, name, part):.0f}" for part in PARTS if there.get(part)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=40, help="of each measurement")
    options = parser.parse_args()
    describe_machine(pin=False)
    seen: dict[str, list[dict[str, Case]]] = {backend: [] for backend in MODES}
    for _ in range(options.rounds):
        for backend, mode in MODES.items():
            seen[backend].append(measure(backend, mode, options.seconds))
    in_place, two_backings = seen.values()
    print("| | in_place, us | guest_memfd, us | ratio | in_place | guest_memfd |")
    print("|---|---|---|---|---|---|")
    for name in in_place[0]:
        if name not in two_backings[0]:
            continue
        new, old = middle(in_place, name), middle(two_backings, name)
        parts = f"{split(in_place, name)} | {split(two_backings, name)}"
        print(f"| {name} | {new:.0f} | {old:.0f} | {new / old:.2f} | {parts} |")


if __name__ == "__main__":
    main()
