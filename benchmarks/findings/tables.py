"""Tables of a run: header and rows of text, for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from findings import costs
from findings.model import OURS, Comparison, Entry, Findings, Key, is_ceiling, is_ours
from findings.ratios import Ratios, compare_to_ours
from findings.units import NONE, describe_axis_name, format_axis_value, format_ratio, format_spread
from umappy.sizes import format_size

COSTS = ("rate", "time / umappy's", "spread", "CPU", "peak memory", "read", "written")
REASON_LENGTH = 100


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def format_markdown(self) -> str:
        """Returns the table without its title, and its notes below."""
        lines = [_join(self.header), _join(["---", *("---:" for _ in self.header[1:])]), *map(_join, self.rows)]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


def _join(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def make_tables(findings: Findings, subject: str) -> list[Table]:
    """Returns a table for each set of axes along which the subject was measured."""
    comparisons = [each for each in findings.comparisons if each.key.subject == subject]
    axes = dict.fromkeys(comparison.key.axis_names for comparison in comparisons)
    return [_make_table([each for each in comparisons if each.key.axis_names == names]) for names in axes]


def title_along(subject: str, axes: Sequence[str]) -> str:
    """Returns "SUBJECT by AXIS"; the subject alone where it says so itself."""
    names = " and ".join(map(describe_axis_name, axes))
    return subject if not axes or f"by {names}" in subject else f"{subject} by {names}"


def describe_comparison(key: Key) -> str:
    """Returns the subject, and where along its axes; not the device."""
    axis = (f"{describe_axis_name(name)} {format_axis_value(name, value)}" for name, value in key.axis)
    return ", ".join([key.subject, *axis])


def _make_table(comparisons: list[Comparison]) -> Table:
    key = comparisons[0].key
    limits = {entry.limit for comparison in comparisons for entry in comparison.entries}
    has_limits = len(limits) > 1
    header = [
        "contender",
        "device",
        *map(describe_axis_name, key.axis_names),
        *(["limit"] if has_limits else []),
        *COSTS,
    ]
    rows = [row for comparison in comparisons for row in _make_rows(comparison, has_limits)]
    entries = [entry for comparison in comparisons for entry in comparison.entries]
    notes = list(dict.fromkeys(f"{entry.contender}: {entry.note}" for entry in entries if entry.note))
    if len(limits) == 1:
        notes.insert(0, f"Memory limit: {format_size(*limits)}.")
    title = title_along(key.subject, key.axis_names)
    return Table(title, tuple(header), tuple(rows), tuple(notes))


def _make_rows(comparison: Comparison, has_limits: bool) -> list[tuple[str, ...]]:
    ratios = compare_to_ours(comparison)

    def rank(entry: Entry) -> tuple[bool, bool, bool, float]:
        name = entry.contender
        found = ratios.get(name)
        return is_ceiling(name), name != OURS, not is_ours(name), found.median if found else 0.0

    def begin(name: str) -> list[str]:
        return [name, comparison.key.device or NONE, *(format_axis_value(*pair) for pair in comparison.key.axis)]

    rows = []
    for entry in sorted(comparison.entries, key=rank):
        name = entry.contender + (" (uncapped)" if entry.cap == "none" and not is_ceiling(entry.contender) else "")
        limit = [format_size(entry.limit)] if has_limits else []
        rows.append((*begin(name), *limit, *_describe_costs(entry, ratios.get(entry.contender))))
    for problem in comparison.problems:
        limit = [NONE] if has_limits else []
        blanks = [NONE] * (len(COSTS) - 1)
        rows.append((*begin(problem.contender), *limit, shorten(problem.reason), *blanks))
    return rows


def shorten(reason: str) -> str:
    return reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 3] + "..."


def _describe_costs(entry: Entry, ratios: Ratios | None) -> list[str]:
    has_spread = ratios is not None and len(ratios.each) > 1
    return [
        costs.describe_rate(entry),
        format_ratio(ratios.median) if ratios else "1" if entry.contender == OURS else NONE,
        format_spread(ratios.least, ratios.most) if ratios and has_spread else NONE,
        costs.describe_cpu(entry),
        costs.describe_peak(entry),
        costs.describe_traffic(entry, entry.device_bytes_read),
        costs.describe_traffic(entry, entry.device_bytes_written),
    ]
