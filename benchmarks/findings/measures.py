"""Which figures of a subject are plotted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from findings.costs import compute_rate
from findings.model import Entry

MEMORY = re.compile(r".*_per_page|touched_bytes")
"""Values in bytes: for each page, or for each region that was touched."""


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
    names = sorted({name for entry in entries for name in entry.values if MEMORY.fullmatch(name)})
    return [main, *(_make_memory_measure(name) for name in names)]


def _collect_rates(entry: Entry) -> list[float]:
    return [compute_rate(entry, seconds) for seconds in entry.seconds]


def _make_memory_measure(name: str) -> Measure:
    def collect(entry: Entry) -> list[float]:
        return [value for value in entry.values.get(name, ()) if value is not None]

    label = name.replace("bytes_per", "per").replace("_bytes", "").replace("_", " ")
    return Measure(name, f"bytes, {label}  (less is better)", collect)
