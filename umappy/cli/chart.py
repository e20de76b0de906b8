"""Hit ratios over sizes of memory as a chart: in the terminal, and in a file by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from umappy.cli.failure import CommandError
from umappy.sizes import format_size

HEIGHT = 20
LABEL_EVERY = 2
SEVERAL = "*"


def draw_chart(names: Sequence[str], sizes: Sequence[str], ratios: Sequence[Sequence[float]]) -> list[str]:
    """Returns lines of text; `ratios` has a row for each size, with a ratio from 0 to 1 for each name."""
    marks = _choose_marks(names)
    width = max(map(len, sizes)) + 2
    grid = [[" "] * len(sizes) for _ in range(HEIGHT + 1)]
    for column, row in enumerate(ratios):
        for mark, ratio in zip(marks, row, strict=True):
            line = grid[HEIGHT - round(ratio * HEIGHT)]
            line[column] = mark if line[column] == " " else SEVERAL
    lines = []
    for i, line in enumerate(grid):
        label = f"{100 - 100 * i // HEIGHT:3} %" if i % LABEL_EVERY == 0 else " " * 5
        lines.append(f"{label} |" + "".join(mark.center(width) for mark in line).rstrip())
    axis = "      +" + "-" * width * len(sizes)
    labels = "".join(size.center(width) for size in sizes).rstrip()
    legend = ", ".join(f"{mark} {name}" for mark, name in zip(marks, names, strict=True))
    return [*lines, axis, f"       {labels}", f"       {legend}, {SEVERAL} several"]


def _choose_marks(names: Sequence[str]) -> list[str]:
    """A letter or digit for each name: the first of its own that no other has."""
    marks: list[str] = []
    for name in names:
        marks.append(next((letter for letter in name if letter.isalnum() and letter not in marks), SEVERAL))
    return marks


def check_plot(path: str) -> None:
    """Raises CommandError where matplotlib is missing or does not know the suffix of `path`."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise CommandError("--plot takes matplotlib: pip install 'umappy[plot]'") from None
    known = FigureCanvasBase.get_supported_filetypes()
    if PurePath(path).suffix.removeprefix(".").lower() not in known:
        raise CommandError(f"--plot is {path!r}: give a name that ends in one of {', '.join(sorted(known))}", 2)


def save_chart(path: str, names: Sequence[str], sizes: Sequence[int], ratios: Sequence[Sequence[float]]) -> None:
    """Writes the chart to a file, in the format its name ends with."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(names):
        axes.plot(sizes, [100 * row[i] for row in ratios], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [format_size(size) for size in sizes], minor=False)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("memory")
    axes.set_ylabel("hits, % of the faults recorded")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
