"""What a run of the benchmarks found, as the rest of this package sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AxisValue = float | str

OURS = "umappy"
# What nobody is asked to beat: the device itself, memory that was filled before, a loop that does only the necessary,
# umappy itself over bytes that are not compressed.
CEILINGS = ("device", "numpy in RAM", "bare ", "FileStore")


@dataclass(frozen=True)
class Key:
    """Which comparison: contenders of one took turns with each other. `axis` is sorted by name."""

    subject: str
    device: str | None
    axis: tuple[tuple[str, AxisValue], ...] = ()

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axis)


@dataclass(frozen=True)
class Entry:
    """A contender in a comparison. The sequences have an item a round, in the rounds' order."""

    key: Key
    contender: str
    seconds: Sequence[float]
    cpu_seconds: Sequence[float]
    peak_bytes: Sequence[int | None]
    device_bytes_read: Sequence[int | None]
    device_bytes_written: Sequence[int | None]
    values: Mapping[str, Sequence[float | None]]
    bytes: int | None
    """What a round works on; `items` where it counts something else."""
    items: int | None
    limit: int
    cap: str
    """What held it to `limit` bytes; "none": nothing did."""
    note: str | None


@dataclass(frozen=True)
class Problem:
    """A contender that gave up, and why."""

    key: Key
    contender: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    key: Key
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]

    @property
    def ours(self) -> Entry | None:
        """Whom ratios are to: umappy as it comes, else the first of its ways."""
        ways = [entry for entry in self.entries if is_ours(entry.contender)]
        return next((entry for entry in ways if entry.contender == OURS), ways[0] if ways else None)


@dataclass(frozen=True)
class Findings:
    """A run. Comparisons are in the order in which they were measured."""

    comparisons: tuple[Comparison, ...]
    machine: Mapping[str, Any]
    scale: Mapping[str, Any]
    rounds: int
    places: Mapping[str, Mapping[str, str | None]]

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(comparison.key.subject for comparison in self.comparisons))

    @property
    def contenders(self) -> tuple[str, ...]:
        names = {entry.contender for comparison in self.comparisons for entry in comparison.entries}
        names |= {problem.contender for comparison in self.comparisons for problem in comparison.problems}
        return tuple(sorted(names))


def is_ours(contender: str) -> bool:
    return contender.startswith(OURS)


def is_ceiling(contender: str) -> bool:
    return contender.startswith(CEILINGS)


def is_peer(contender: str) -> bool:
    return not is_ours(contender) and not is_ceiling(contender)
