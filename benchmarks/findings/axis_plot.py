"""A subject along an axis: what each contender reaches at each point, and where one gave up."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from findings import canvas
from findings.costs import compute_rate
from findings.model import AxisValue, Comparison, Entry, Findings
from findings.style import Wardrobe
from findings.units import describe_axis_name, format_axis_value, format_number, locate

# Below this, differences are plainer from zero on; above it, small values would lie on the ground.
LINEAR_SPAN = 12
MARGIN = 0.04
MEMORY_VALUE = "bytes_per_page"


@dataclass(frozen=True)
class Measure:
    """What is plotted upward. `collect` returns a figure a round, none where the entry has not got it."""

    name: str
    label: str
    collect: Callable[[Entry], Sequence[float]]


def choose_measures(entries: Sequence[Entry], axis: str) -> list[Measure]:
    """Returns what to show of these: the time or the rate, and memory for each page where it was measured."""
    if entries[0].bytes and not (axis == "size" and "sort" in entries[0].key.subject):
        main = Measure("", "GB/s  (more is better)", _collect_rates)
    elif entries[0].items and not entries[0].bytes:
        main = Measure("", "us for each item  (less is better)", lambda entry: [x * 1e6 for x in _collect_rates(entry)])
    else:
        main = Measure("", "seconds  (less is better)", lambda entry: entry.seconds)
    names = sorted({name for entry in entries for name in entry.values if name.endswith(MEMORY_VALUE)})
    return [main, *(_make_memory_measure(name) for name in names)]


def _collect_rates(entry: Entry) -> list[float]:
    return [compute_rate(entry, seconds) for seconds in entry.seconds]


def _make_memory_measure(name: str) -> Measure:
    def collect(entry: Entry) -> list[float]:
        return [value for value in entry.values.get(name, ()) if value is not None]

    return Measure(name, f"{name.replace('_', ' ')}  (less is better)", collect)


def plot_axis(
    findings: Findings, comparisons: Sequence[Comparison], axis: str, measure: Measure, title: str, path: Path
) -> canvas.Plot | None:
    """Plots comparisons that differ in `axis` only; None where no contender has two points."""
    values = [dict(comparison.key.axis)[axis] for comparison in comparisons]
    points = _place(values)
    lines = _collect_lines(comparisons, points, measure)
    if not any(len(line) > 1 for line in lines.values()):
        return None
    axes = canvas.make_axes(title, describe_axis_name(axis), measure.label)
    wardrobe = Wardrobe(findings.contenders)
    _set_scales(axes, axis, dict(zip(points, values, strict=True)), lines)
    for contender, line in lines.items():
        look = wardrobe.dress(contender)
        medians = [statistics.median(figures) for _, figures in line]
        errors = [
            [median - min(figures) for median, (_, figures) in zip(medians, line, strict=True)],
            [max(figures) - median for median, (_, figures) in zip(medians, line, strict=True)],
        ]
        axes.errorbar(
            [x for x, _ in line],
            medians,
            yerr=errors,
            color=look.colour,
            marker=look.marker,
            linestyle=look.dash,
            linewidth=look.width,
            elinewidth=1,
            markersize=6,
            zorder=look.order,
        )
    ends = [(statistics.median(line[-1][1]), name, wardrobe.dress(name).colour) for name, line in lines.items()]
    reasons = _mark_problems(axes, wardrobe, comparisons, points)
    gone = sorted({problem.contender for each in comparisons for problem in each.problems} - lines.keys())
    low = axes.get_ylim()[0]
    canvas.label_lines(axes, [*ends, *((low, name, wardrobe.dress(name).colour) for name in gone)])
    if reasons:
        axes.figure.text(0.01, -0.01, f"\u00d7  {'; '.join(reasons)}", fontsize=9, color="#444444", va="top")
    return canvas.save(axes, path, title)


def _place(values: Sequence[AxisValue]) -> list[float]:
    found = [locate(value) for value in values]
    if any(place is None for place in found):
        return [float(i) for i in range(len(values))]
    return [place for place in found if place is not None]


def _collect_lines(
    comparisons: Sequence[Comparison], points: Sequence[float], measure: Measure
) -> dict[str, list[tuple[float, Sequence[float]]]]:
    """Returns by contender its points: where, and a figure a round."""
    lines: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for x, comparison in sorted(zip(points, comparisons, strict=True), key=lambda pair: pair[0]):
        for entry in comparison.entries:
            if figures := measure.collect(entry):
                lines.setdefault(entry.contender, []).append((x, figures))
    return lines


def _set_scales(
    axes: Any, axis: str, ticks: dict[float, AxisValue], lines: dict[str, list[tuple[float, Sequence[float]]]]
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    points = sorted(ticks)
    if points[0] > 0 and locate(ticks[points[0]]) is not None and len(points) > 1:
        axes.set_xscale("log", base=2)
        room = (points[-1] / points[0]) ** MARGIN
        axes.set_xlim(points[0] / room, points[-1] * room)
    else:
        room = (points[-1] - points[0]) * MARGIN
        axes.set_xlim(points[0] - room, points[-1] + room)
    axes.set_xticks(points, [format_axis_value(axis, ticks[point]) for point in points])
    axes.xaxis.set_minor_locator(NullLocator())
    figures = [figure for line in lines.values() for _, each in line for figure in each]
    if min(figures) > 0 and max(figures) / min(figures) > LINEAR_SPAN:
        axes.set_yscale("log")
        axes.set_ylim(min(figures) / 1.4, max(figures) * 1.4)
        decades = max(figures) / min(figures)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1000 else (1,)))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{float(format_number(value).replace(',', '')):,g}")
        )
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(min(0.0, min(figures)), max(figures) * 1.08 or 1.0)


def _mark_problems(
    axes: Any, wardrobe: Wardrobe, comparisons: Sequence[Comparison], points: Sequence[float]
) -> list[str]:
    """Draws a cross on the ground where a contender gave up, side by side; returns the reasons, each once."""
    reasons: dict[str, None] = {}
    for x, comparison in zip(points, comparisons, strict=True):
        for i, problem in enumerate(comparison.problems):
            look = wardrobe.dress(problem.contender)
            axes.plot(
                [x],
                [0.02 + 0.05 * i],
                transform=axes.get_xaxis_transform(),
                marker="X",
                markersize=9,
                color=look.colour,
                clip_on=False,
                zorder=10,
            )
            reasons[problem.reason if len(problem.reason) < 60 else problem.reason[:57] + "..."] = None
    return list(reasons)
