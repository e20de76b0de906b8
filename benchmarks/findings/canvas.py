"""An empty plot in this project's style, and the file it becomes: the same bytes for the same plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from findings.model import OURS

# As wide as a README shows it; the type must be readable there.
WIDTH, HEIGHT, DPI = 8.4, 4.6, 110
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "savefig.facecolor": "white",
}
LABEL_GAP = 0.055
"""Between the labels of two lines, as a part of the axes' height."""


@dataclass(frozen=True)
class Plot:
    """A file that was written, for the page that shows it."""

    path: Path
    title: str


def make_axes(title: str, xlabel: str, ylabel: str) -> Any:
    """Returns matplotlib's axes in a figure of their own; no pyplot, whose state is the process's."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.25, which="major")
        axes.set_axisbelow(True)
    return axes


def save(axes: Any, path: Path, title: str) -> Plot:
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        axes.figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return Plot(path, title)


def label_lines(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes names beside the right edge: each (y, name, colour) as near to y as the others let it."""
    if not ends:
        return
    transform = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    wanted = sorted((float(transform.transform((x, y))[1]), name, colour) for y, name, colour in ends)
    places = spread([height for height, _, _ in wanted], LABEL_GAP)
    for place, (height, name, colour) in zip(places, wanted, strict=True):
        axes.annotate(
            name,
            xy=(1.0, height),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=10,
            fontweight="bold" if name == OURS else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves ascending heights apart, each cluster around its own middle, and back into 0 to 1 where they fit."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _top(clusters[-2], gap) + gap > _bottom(clusters[-1], gap):
            last = clusters.pop()
            clusters[-1] += last
    places = [_bottom(cluster, gap) + gap * i for cluster in clusters for i in range(len(cluster))]
    over = max(0.0, places[-1] - 1)
    return [place - over * (place / places[-1] if over else 0) for place in places]


def _bottom(cluster: Sequence[float], gap: float) -> float:
    return max(0.0, sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2)


def _top(cluster: Sequence[float], gap: float) -> float:
    return _bottom(cluster, gap) + gap * (len(cluster) - 1)
