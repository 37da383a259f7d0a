"""``--report``: a result as one page of HTML that needs nothing else.

Plots are inline SVG, without scripts. Colours follow the reader's preference for dark or
light. Distributions share a logarithmic axis of times the floor, so that their shapes can be
seen beside each other whatever they take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pyvmm.bench.result import PERCENTILES, BenchResult, CaseResult, doubts, reasons

_WIDTH = 1100
_LABEL = 250  # where plots begin, right of the cases' names
_RIGHT = 70
_ROW = 26
_AXIS = 44
_COLUMN = 6  # of a distribution: about as wide as a bucket of the histogram, 3 %

_STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1d2024; --faint: #5b626b;
  --line: #d9dcdf; --band: #f1f3f4; --bar: #3b6ea8; --mark: #b3401f; --good: #1e7b3d;
  --c0: #4269a5; --c1: #96b1d9; --c2: #2f8f83; --c3: #c98a1b; --c4: #b5533c; --c5: #7d6aa8;
  --c6: #8a8f98; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e8ea;
  --faint: #a0a8b0; --line: #363b41; --band: #1f2327; --bar: #7fb0e6; --mark: #f08a66;
  --good: #6fcf8e; --c0: #7fa6e0; --c1: #4a648c; --c2: #55bfb0; --c3: #e0ad4c; --c4: #e08468;
  --c5: #a997d6; --c6: #747b86; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1140px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; } .faint { color: var(--faint); }
.scroll { overflow-x: auto; } svg { display: block; min-width: 900px; width: 100%; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .faint { fill: var(--faint); } .grid { stroke: var(--line); }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .45rem; text-align: right; white-space: nowrap; vertical-align: top; }
td small { display: block; color: var(--faint); font-size: 11px; white-space: normal; }
td:first-child { min-width: 15rem; } td.text small { white-space: nowrap; }
th { border-bottom: 1px solid var(--line); font-weight: 600; }
td:first-child, th:first-child, td.text, th.text { text-align: left; }
tbody tr:nth-child(even) { background: var(--band); }
td.wrap { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .75em; height: .75em; }
.kept { color: var(--good); } .broken { color: var(--mark); font-weight: 600; }
.warning { border-left: 3px solid var(--mark); padding-left: .75rem; }
"""


def page(result: BenchResult, title: str) -> str:
    """The whole page."""
    return "\n".join(_page(result, title))


def _page(result: BenchResult, title: str) -> Iterator[str]:
    host = result.host
    yield "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>"
    yield '<meta name=viewport content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    yield f"<h1>{escape(title)}</h1>"
    yield (
        f"<p class=faint>{escape(str(host.get('cpu', '')))}, Linux "
        f"{escape(str(host.get('kernel', '')))}, {escape(' '.join(host.get('kvm_modules', [])))}"
    )
    doubtful = list(doubts(result))
    if doubtful:
        yield "<h2>Not to be believed</h2><div class=warning>"
        yield "".join(f"<p>{escape(doubt)}" for doubt in doubtful) + "</div>"
    yield "<h2>Distribution of single operations</h2>"
    yield (
        "<p class=faint>Each row is a case, beside its floor (1x): the same system calls from "
        "bare C, while nothing disturbs. A height is the square root of how many operations; "
        f"the lines mark p50 ({_swatch('--ink')}) and p99 ({_swatch('--mark')}); at both "
        "ends is all that lies beyond."
    )
    yield from _distributions(result.cases)
    split = [case for case in result.cases if case.split]
    if split:
        yield "<h2>Where the time of a conversion goes</h2>"
        yield from _split_bars(split)
        yield from _split_table(split)
    yield "<h2>Cases beside their floors</h2>"
    yield from _table(result.cases)
    if result.skipped:
        yield "<h2>Not measured here</h2>"
        yield from _facts({", ".join(names): why for why, names in reasons(result.skipped).items()})
    yield "<h2>The machine</h2>"
    yield from _facts(host)
    yield "</body>\n</html>"


# ---- plots ----


class _Scale:
    """A logarithmic axis of times the floor between the plots' left and right end."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = math.log(low), math.log(high)

    def __call__(self, times: float) -> float:
        share = (math.log(max(times, 1e-9)) - self.low) / (self.high - self.low)
        return _LABEL + min(max(share, 0.0), 1.0) * (_WIDTH - _LABEL - _RIGHT)

    def ticks(self) -> Iterator[float]:
        for tick in (0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10):
            if self.low <= math.log(tick) <= self.high:
                yield tick


def _nanoseconds(value: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} ns"


def _swatch(colour: str) -> str:
    """A small square of a colour, in the midst of text."""
    return f'<i class=swatch style="background:var({colour})"></i>'


def _distributions(cases: Sequence[CaseResult]) -> Iterator[str]:
    shown = [case for case in cases if case.buckets]
    if not shown:
        return
    scale = _Scale(
        max(0.5, min(0.95, *(case.percentiles["min"] / case.floor_ns for case in shown))),
        min(12, max(2.0, *(1.3 * case.percentiles["p99"] / case.floor_ns for case in shown))),
    )
    height = _ROW * len(shown) + _AXIS
    yield f'<div class=scroll><svg viewBox="0 0 {_WIDTH} {height}" role=img>'
    yield "<title>Distribution of latencies by case</title>"
    yield from _axis(scale, _ROW * len(shown))
    for at, case in enumerate(shown):
        base = _ROW * (at + 1) - 4
        yield f'<text x="{_LABEL - 10}" y="{base - 4}" text-anchor=end>{escape(case.name)}</text>'
        yield _ridge(case, scale, base)
        for name, style in (("p50", "--ink"), ("p99", "--mark")):
            x = scale(case.percentiles[name] / case.floor_ns)
            yield (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base - 15}" y2="{base}" '
                f'stroke="var({style})"><title>{name} {_nanoseconds(case.percentiles[name])}'
                "</title></line>"
            )
        yield (
            f'<text class=faint x="{_WIDTH}" y="{base - 4}" text-anchor=end>'
            f"{_nanoseconds(case.percentiles['p50'])}</text>"
        )
    yield "</svg></div>"


def _axis(scale: _Scale, bottom: int) -> Iterator[str]:
    for tick in scale.ticks():
        x = scale(tick)
        yield f'<line class=grid x1="{x:.1f}" x2="{x:.1f}" y1=0 y2="{bottom}"/>'
        yield (
            f'<text class=faint x="{x:.1f}" y="{bottom + 18}" text-anchor=middle>{tick:g}x</text>'
        )
    yield (
        f'<text class=faint x="{_WIDTH}" y="{bottom + 18}" text-anchor=end>p50</text>'
        f'<line class=grid x1="{_LABEL}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    )


def _ridge(case: CaseResult, scale: _Scale, base: float) -> str:
    """The histogram as a filled line; its height is the share of operations per pixel."""
    columns: dict[int, int] = {}
    for value, count in case.buckets:
        column = int(scale(value / case.floor_ns) / _COLUMN)
        columns[column] = columns.get(column, 0) + count
    highest = max(columns.values())
    points = [(_COLUMN * min(columns), base)]
    for column in range(min(columns), max(columns) + 1):
        # The square root: a tail of one in a thousand must still be seen.
        tall = 16 * math.sqrt(columns.get(column, 0) / highest)
        points += [(_COLUMN * column, base - tall), (_COLUMN * (column + 1), base - tall)]
    points.append((_COLUMN * (max(columns) + 1), base))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{path}" fill="var(--bar)" fill-opacity=0.55 />'


def _split_bars(cases: Sequence[CaseResult]) -> Iterator[str]:
    """Stacked bars; a part that came out below nothing is not drawn."""
    names = list(dict.fromkeys(name for case in cases for name in case.split))
    longest = max(sum(max(part, 0) for part in case.split.values()) for case in cases)
    room = _WIDTH - _LABEL - _RIGHT
    height = _ROW * len(cases) + _AXIS + 8
    yield "<p>" + " ".join(
        f'<span style="white-space:nowrap">{_swatch(f"--c{at % 7}")} {escape(name)}</span>&ensp;'
        for at, name in enumerate(names)
    )
    yield f'<div class=scroll><svg viewBox="0 0 {_WIDTH} {height}" role=img>'
    yield "<title>Parts of each conversion</title>"
    bottom = _ROW * len(cases) + 4
    step = _round_step(longest / 5)
    for at in range(int(longest / step) + 1):
        x = _LABEL + room * at * step / longest
        yield f'<line class=grid x1="{x:.1f}" x2="{x:.1f}" y1=0 y2="{bottom}"/>'
        label = _nanoseconds(at * step) if at else "0"
        yield (f'<text class=faint x="{x:.1f}" y="{bottom + 18}" text-anchor=middle>{label}</text>')
    for row, case in enumerate(cases):
        y = _ROW * row + 6
        yield f'<text x="{_LABEL - 10}" y="{y + 13}" text-anchor=end>{escape(case.name)}</text>'
        x = float(_LABEL)
        for name, part in case.split.items():
            wide = room * max(part, 0) / longest
            yield (
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height=17 '
                f'fill="var(--c{names.index(name) % 7})">'
                f"<title>{escape(name)} {_nanoseconds(part)}</title></rect>"
            )
            x += wide
        total = _nanoseconds(sum(case.split.values()))
        yield f'<text class=faint x="{x + 6:.1f}" y="{y + 13}">{total}</text>'
    yield "</svg></div>"


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least ``least``."""
    power = 10 ** math.floor(math.log10(max(least, 1)))
    return float(next(size * power for size in (1, 2, 5, 10) if size * power >= least))


# ---- tables ----


def _split_table(cases: Sequence[CaseResult]) -> Iterator[str]:
    names = list(dict.fromkeys(name for case in cases for name in case.split))
    yield "<div class=scroll><table><thead><tr><th>microseconds"
    yield "".join(f"<th>{escape(name)}" for name in names) + "<th>sum<th>whole<th>sum/whole"
    yield "</thead><tbody>"
    for case in cases:
        total = sum(case.split.values())
        cells = [f"{case.split[name] / 1000:.2f}" if name in case.split else "" for name in names]
        cells += [f"{total / 1000:.2f}", f"{case.ns / 1000:.2f}", f"{total / case.ns:.1%}"]
        yield f"<tr><td>{escape(case.name)}" + "".join(f"<td>{cell}" for cell in cells)
    yield "</tbody></table></div>"


def _table(cases: Sequence[CaseResult]) -> Iterator[str]:
    yield "<div class=scroll><table><thead><tr><th>case<th>floor ns<th>ns<th>ratio"
    yield "<th>99 % interval<th class=text>promise"
    yield "".join(f"<th>{name}" for name in PERCENTILES)
    yield "</thead><tbody>"
    for case in cases:
        low, high = case.ci
        cells = [
            f"{case.floor_ns:,.0f}",
            f"{case.ns:,.0f}",
            f"{case.ratio:.4f}",
            f"{low:.4f} to {high:.4f}",
        ]
        yield f"<tr><td>{escape(case.name)}<small>{escape(case.title)}</small>"
        yield "".join(f"<td>{cell}" for cell in cells)
        promise = ""
        if case.promise:
            style = {True: "kept", False: "broken", None: "faint"}[case.kept]
            verdict = f"<span class={style}>{case.verdict}</span>"
            promise = f"{verdict}<small>{escape(case.promise)}</small>"
        times = "".join(f"<td>{_nanoseconds(case.percentiles[name])}" for name in PERCENTILES)
        yield f"<td class=text>{promise}{times}"
    yield "</tbody></table></div>"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "<table><tbody>"
    for name, value in facts.items():
        if isinstance(value, Mapping):
            text = "<br>".join(f"{escape(str(k))}: {escape(str(v))}" for k, v in value.items())
        elif isinstance(value, list):
            text = escape(", ".join(str(each) for each in value))
        else:
            text = "unknown" if value is None else escape(str(value))
        yield f"<tr><td>{escape(name.replace('_', ' '))}<td class=wrap>{text}"
    yield "</tbody></table>"
