"""What a contender's rounds come to: its rate, and what each byte or item of work cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from findings.model import Entry
from findings.units import GB, NONE, format_number, format_seconds
from umappy.sizes import format_size


def compute_rate(entry: Entry, seconds: float) -> float:
    """Returns GB a second, seconds an item, or, where neither is counted, the seconds."""
    if entry.bytes:
        return entry.bytes / seconds / GB if seconds else 0.0
    return seconds / entry.items if entry.items else seconds


def describe_rate(entry: Entry) -> str:
    rate = compute_rate(entry, statistics.median(entry.seconds))
    return f"{format_number(rate)} GB/s" if entry.bytes else format_seconds(rate)


def describe_cpu(entry: Entry) -> str:
    """CPU seconds a GB (1e9 bytes), or an item."""
    cpu = statistics.median(entry.cpu_seconds)
    if cpu == 0:
        return NONE
    if entry.bytes:
        return f"{format_number(cpu / entry.bytes * GB)} s/GB"
    return format_seconds(cpu / (entry.items or 1))


def describe_peak(entry: Entry) -> str:
    """The most of all rounds."""
    known = [peak for peak in entry.peak_bytes if peak is not None]
    return format_size(max(known)) if known else NONE


def describe_traffic(entry: Entry, moved: Sequence[int | None]) -> str:
    """Device bytes a byte of work, or an item."""
    known = [each for each in moved if each is not None]
    if not known:
        return NONE
    each = statistics.median(known)
    if entry.bytes:
        return format_number(each / entry.bytes)
    return format_size(round(each / (entry.items or 1)))
