"""Can `pyvmm bench compare` be relied upon on this machine?

Measures the same thing again and again, and by turns a copy of pyvmm whose C loop wastes
5 % of an exit in each exit that it counts. Every measurement is compared with the one
before: all cases of the same should be "same", and those that C answers in the slow copy
"worse".

The slow copy is made in a temporary folder: the sources, one line more, compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from pyvmm.bench.comparison import Comparison, Verdict, compare
from pyvmm.bench.result import BenchResult, from_json

ROOT = Path(__file__).resolve().parent.parent
# These run the C loop for each operation, and their whole time is an exit's.
SLOWED = ("port_out_c", "port_in_c", "mmio_write_c", "mmio_read_c")
WASTE = """
static void waste(void)
{
	const uint64_t end = monotonic_ns() + %dull;

	while (monotonic_ns() < end)
		;
}

static enum loop_stop run_until_stop(struct vcpu_loop *loop)
"""


def make_slow_copy(folder: Path, waste_ns: int) -> None:
    for name in ("pyvmm", "csrc", "guests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    source = folder / "csrc" / "vcpu_loop.c"
    text = source.read_text()
    head, call = (
        "\nstatic enum loop_stop run_until_stop(struct vcpu_loop *loop)\n",
        "count_exit(loop);",
    )
    assert text.count(head) == 1 and text.count(call) == 1, "the loop is not what it was"
    text = text.replace(head, WASTE % waste_ns).replace(call, f"{call}\n\t\t\twaste();")
    source.write_text(text)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def measure(tree: Path, seconds: float, word: str) -> BenchResult:
    command = [sys.executable, "-m", "pyvmm", "bench", "exits", "--json"]
    command += ["--seconds", str(seconds), *(["-k", word] if word else [])]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE)
    return from_json(json.loads(done.stdout), str(tree))


def show(title: str, comparison: Comparison) -> None:
    counted = Counter(change.verdict.value for change in comparison.changes)
    odd = [
        f"{change.name} {change.verdict} {change.factor - 1:+.1%} "
        f"({change.interval.low - 1:+.1%} to {change.interval.high - 1:+.1%})"
        for change in comparison.changes
        if change.verdict is not Verdict.SAME
    ]
    print(f"{title}: {dict(counted)}; not the same: {', '.join(odd) or 'none'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=35.0, help="of each measurement")
    parser.add_argument("-k", default="", help="only cases with this in their name")
    options = parser.parse_args()
    same = found = 0
    with tempfile.TemporaryDirectory(prefix="pyvmm-slow-") as folder:
        before = measure(ROOT, options.seconds, options.k)
        waste_ns = round(0.05 * before.by_name()["port_out_c"].ns)
        make_slow_copy(Path(folder), waste_ns)
        print(f"the slow copy wastes {waste_ns} ns in each exit", flush=True)
        for number in range(1, options.comparisons + 1):
            now = measure(ROOT, options.seconds, options.k)
            comparison = compare(before, now)
            show(f"{number} same", comparison)
            same += all(change.verdict is Verdict.SAME for change in comparison.changes)
            slow = compare(now, measure(Path(folder), options.seconds, options.k))
            verdicts = {change.name: change.verdict for change in slow.changes}
            show(f"{number} slow", slow)
            found += all(verdicts.get(name, Verdict.WORSE) is Verdict.WORSE for name in SLOWED)
            before = now
    print(f"the same was the same in {same} of {options.comparisons} comparisons")
    print(f"5 % slower was found in {found} of {options.comparisons}")


if __name__ == "__main__":
    main()
