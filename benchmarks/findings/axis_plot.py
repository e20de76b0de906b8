"""A subject along an axis: what each contender reaches at each point, and where one gave up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from findings import canvas
from findings.measures import Measure
from findings.model import AxisValue, Comparison, Findings, is_ceiling
from findings.style import Look, Wardrobe
from findings.units import describe_axis_name, format_axis_value, format_number, locate

# Below this, differences are plainer from zero on; above it, small values would lie on the ground.
LINEAR_SPAN = 12
MARGIN = 0.04
FAR = 8
CROSS_GAP = 0.05
GAVE_UP = "\u00d7"

Line = Sequence[tuple[float, Sequence[float]]]
"""Where, ascending, and a figure a round."""


def plot_axis(
    findings: Findings, comparisons: Sequence[Comparison], axis: str, measure: Measure, title: str, path: Path
) -> canvas.Plot | None:
    """Plots comparisons that differ in `axis` only; None where no contender has two points."""
    values = [dict(comparison.key.axis)[axis] for comparison in comparisons]
    points = _place(values)
    every = _collect_lines(comparisons, points, measure)
    lines = {name: line for name, line in every.items() if not _is_far(name, every)}
    if not any(len(line) > 1 for line in lines.values()):
        return None
    axes = canvas.make_axes(title, describe_axis_name(axis), measure.label)
    wardrobe = Wardrobe(findings.contenders)
    crosses = max(len(comparison.problems) for comparison in comparisons)
    _set_scales(axes, axis, dict(zip(points, values, strict=True)), lines, crosses)
    for contender, line in lines.items():
        _draw_line(axes, wardrobe.dress(contender), line)
    reasons = _mark_problems(axes, wardrobe, comparisons, points)
    notes = [f"{GAVE_UP} {'; '.join(reasons)}"] if reasons else []
    for name in every.keys() - lines.keys():
        low, high = (format_number(limit) for limit in _find_limits([every[name]]))
        notes.append(f"off the scale: {name}, {low} to {high}")
    if notes:
        axes.figure.supxlabel("    ".join(sorted(notes)), fontsize=9, color="#444444", x=0.01, ha="left")
    canvas.label_lines(axes, _find_ends(axes, wardrobe, comparisons, lines, max(points), every.keys() - lines.keys()))
    return canvas.save(axes, path, title)


def _draw_line(axes: Any, look: Look, line: Line) -> None:
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


def _find_ends(
    axes: Any,
    wardrobe: Wardrobe,
    comparisons: Sequence[Comparison],
    lines: Mapping[str, Line],
    last: float,
    unseen: Set[str],
) -> list[tuple[float, str, str]]:
    """Returns for each name to be shown (y, label, colour): the names of those that gave up, too."""
    losers = {problem.contender for comparison in comparisons for problem in comparison.problems} - unseen
    ends = []
    for name in [*lines, *sorted(losers - lines.keys())]:
        line = lines.get(name)
        y = statistics.median(line[-1][1]) if line else axes.get_ylim()[0]
        has_ended = name in losers and (line is None or line[-1][0] < last)
        ends.append((y, f"{name} {GAVE_UP}" if has_ended else name, wardrobe.dress(name).colour))
    return ends


def _find_limits(lines: Iterable[Line]) -> tuple[float, float]:
    figures = [figure for line in lines for _, each in line for figure in each]
    return min(figures), max(figures)


def _is_far(name: str, lines: Mapping[str, Line]) -> bool:
    """Whether a ceiling is so far from everybody else that they could not be told apart beside it."""
    others = [line for other, line in lines.items() if not is_ceiling(other)]
    if not is_ceiling(name) or not others:
        return False
    (low, high), (others_low, others_high) = _find_limits([lines[name]]), _find_limits(others)
    return low > FAR * others_high or high * FAR < others_low


def _place(values: Sequence[AxisValue]) -> list[float]:
    found = [locate(value) for value in values]
    if any(place is None for place in found):
        return [float(i) for i in range(len(values))]
    return [place for place in found if place is not None]


def _collect_lines(comparisons: Sequence[Comparison], points: Sequence[float], measure: Measure) -> dict[str, Line]:
    lines: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for x, comparison in sorted(zip(points, comparisons, strict=True), key=lambda pair: pair[0]):
        for entry in comparison.entries:
            if figures := measure.collect(entry):
                lines.setdefault(entry.contender, []).append((x, figures))
    return {name: tuple(line) for name, line in lines.items()}


def _set_scales(
    axes: Any, axis: str, ticks: Mapping[float, AxisValue], lines: Mapping[str, Line], crosses: int
) -> None:
    """Leaves room on the ground for so many crosses side by side."""
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
    low, high = _find_limits(lines.values())
    if low > 0 and high / low > LINEAR_SPAN:
        room = (high / low) ** (CROSS_GAP * crosses)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.4 / room, high * 1.4)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(min(0.0, low), high * 1.08 or 1.0)


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
                [0.02 + CROSS_GAP * i],
                transform=axes.get_xaxis_transform(),
                marker="X",
                markersize=9,
                color=look.colour,
                clip_on=False,
                zorder=10,
            )
            reasons[problem.reason if len(problem.reason) < 60 else problem.reason[:57] + "..."] = None
    return list(reasons)
