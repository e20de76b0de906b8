"""All plots of a run: each subject along each axis it was measured along, and each distribution of latencies."""

from __future__ import annotations

import re
from pathlib import Path

from findings.axis_plot import plot_axis
from findings.canvas import Plot
from findings.latency_plot import has_latencies, plot_latencies
from findings.measures import choose_measures
from findings.model import AxisValue, Comparison, Findings, Key
from findings.tables import title_along
from findings.units import describe_axis_name, format_axis_value

Fixed = tuple[tuple[str, AxisValue], ...]


def write_plots(findings: Findings, folder: Path) -> dict[str, list[Plot]]:
    """Writes PNG files into `folder` and returns them by subject; removes the PNG files that were there."""
    for old in folder.glob("*.png"):
        old.unlink()
    plots: dict[str, list[Plot]] = {subject: [] for subject in findings.subjects}
    for axis, fixed, comparisons in group_by_axis(findings):
        key = comparisons[0].key
        entries = [entry for comparison in comparisons for entry in comparison.entries]
        for measure in choose_measures(entries, axis) if entries else []:
            what = [describe_axis_name(measure.name)] if measure.name else []
            title = _make_title(key, title_along(key.subject, [axis]), what, fixed)
            path = folder / f"{make_name(title)}.png"
            if plot := plot_axis(findings, comparisons, axis, measure, title, path):
                plots[key.subject].append(plot)
    for comparison in findings.comparisons:
        if any(map(has_latencies, comparison.entries)):
            key = comparison.key
            title = _make_title(key, f"{key.subject}: latency", [], key.axis)
            if plot := plot_latencies(findings, comparison, title, folder / f"{make_name(title)}.png"):
                plots[key.subject].append(plot)
    return plots


def group_by_axis(findings: Findings) -> list[tuple[str, Fixed, list[Comparison]]]:
    """Returns the comparisons that differ in one axis only, ascending by it: the axis, and what is the same in all."""
    groups: dict[tuple[str, str | None, str, Fixed], list[Comparison]] = {}
    for comparison in findings.comparisons:
        key = comparison.key
        for name in key.axis_names:
            fixed = tuple(pair for pair in key.axis if pair[0] != name)
            groups.setdefault((key.subject, key.device, name, fixed), []).append(comparison)
    return [(name, fixed, found) for (_, _, name, fixed), found in groups.items() if len(found) > 1]


def make_name(title: str) -> str:
    """Returns the title as the name of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", title.lower().replace("+=", "plus")).strip("-.")


def _make_title(key: Key, title: str, what: list[str], fixed: Fixed) -> str:
    device = [f"{key.device} device" if key.device == "fast" else key.device] if key.device else []
    parts = [*what, *(f"{describe_axis_name(name)} {format_axis_value(name, value)}" for name, value in fixed), *device]
    return ", ".join([title, *parts])
