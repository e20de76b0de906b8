"""How long the items of a subject took: the latencies below which so many of them lie.

They are values "p50", "p99.9", "max" and the like, in microseconds unless the name ends in a unit ("p50_seconds").
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from findings import canvas
from findings.model import Comparison, Entry, Findings
from findings.style import Wardrobe
from findings.units import format_seconds

PERCENTILE = re.compile(r"p(?P<number>[0-9]+(?:[._][0-9]+)?)(?:_(?P<unit>seconds|us|ns))?$")
MAX = re.compile(r"max(?:_(?P<unit>seconds|us|ns))?$")
FACTORS = {None: 1e-6, "seconds": 1.0, "us": 1e-6, "ns": 1e-9}
TICKS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
MAX_PLACE = 0.9999
"""Where the slowest of all lies: above every percentile that is measured."""


def find_latencies(entry: Entry) -> list[tuple[float, float]]:
    """Returns (part of the items, seconds), ascending, medians of the rounds; the part of the slowest is 1."""
    found = []
    for name, each in entry.values.items():
        values = [value for value in each if value is not None]
        if not values:
            continue
        if match := PERCENTILE.match(name):
            part = float(match["number"].replace("_", ".")) / 100
        elif match := MAX.match(name):
            part = 1.0
        else:
            continue
        found.append((part, statistics.median(values) * FACTORS[match["unit"]]))
    return sorted(found)


def has_latencies(entry: Entry) -> bool:
    return len([part for part, seconds in find_latencies(entry) if part < 1 and seconds > 0]) > 1


def plot_latencies(findings: Findings, comparison: Comparison, title: str, path: Path) -> canvas.Plot | None:
    """None where no contender of it told latencies."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    entries = [entry for entry in comparison.entries if has_latencies(entry)]
    if not entries:
        return None
    axes = canvas.make_axes(title, "latency of one  (further left is better)", "part of all that took no longer")
    wardrobe = Wardrobe(findings.contenders)
    axes.set_xscale("log")
    axes.set_yscale("logit")
    axes.set_ylim(0.008, 0.99995)
    for entry in entries:
        look = wardrobe.dress(entry.contender)
        found = [(min(part, MAX_PLACE), seconds) for part, seconds in find_latencies(entry) if seconds > 0]
        axes.plot(
            [seconds for _, seconds in found],
            [part for part, _ in found],
            color=look.colour,
            marker=look.marker,
            linestyle=look.dash,
            linewidth=look.width,
            markersize=5,
            zorder=look.order,
            label=entry.contender,
        )
    axes.yaxis.set_major_locator(FixedLocator([*TICKS, MAX_PLACE]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda part, _: "slowest" if part == MAX_PLACE else f"{100 * part:.4g} %")
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{_round(seconds)}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=10, loc="lower right")
    return canvas.save(axes, path, title)


def _round(seconds: float) -> str:
    number, unit = format_seconds(seconds * 1.0000001).split()
    return f"{float(number.replace(',', '')):g} {unit}"
