"""What a pager or a region has done so far, and what is in memory now."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from umappy._engine import ffi

if TYPE_CHECKING:
    from umappy._engine import um_stats


class Residency(enum.IntEnum):
    """What `Region.residency` tells of a page."""

    ABSENT = 0
    """Not in memory: touching it reads the store."""
    CLEAN = 1
    """In memory, and the store has the same bytes."""
    DIRTY = 2
    """In memory, and the store has yet to get its bytes."""
    BUSY = 3
    """Being filled or evicted just now."""
    FAILED = 4
    """In memory, but filled with 0xFF: the store could not be read."""
    STANDBY = 5
    """Not mapped, but its bytes are still in memory, or were read ahead: touching it needs no store."""


@dataclass(frozen=True)
class Stats:
    """A snapshot of counters. Sizes are bytes; faults, fills, prefetches, evictions and writes count pages.

    `used` is everything the budget `memory` counts: pages, and in `overhead` what holds no page (buffers, page tables,
    bookkeeping, memory that callers reserved). `used`, `peak_used`, `overhead` and `memory` are the pager's, also where
    the rest is one region's.
    """

    memory: int
    used: int
    peak_used: int
    overhead: int
    resident: int
    dirty: int
    read_faults: int
    """Faults on absent pages, for a read."""
    write_faults: int
    """Faults on absent pages, for a write."""
    protect_faults: int
    """First writes to clean pages."""
    stale_faults: int
    """Faults whose page was there when they were looked at."""
    fills: int
    prefetches: int
    evictions: int
    writes: int
    store_reads: int
    store_writes: int
    store_flushes: int
    bytes_read: int
    bytes_written: int
    fill_errors: int
    write_errors: int
    retries: int
    readahead: int
    """Pages read ahead of a stream,"""
    readahead_used: int
    """of these, touched,"""
    readahead_wasted: int
    """and given up untouched."""
    standby_hits: int
    """Pages evicted, touched again, and taken back without the store."""
    pinned: int
    """Evictions that found a device's pin and left the page in place."""
    cleaned: int
    """Dirty pages written back ahead of need, where writing costs this machine time,"""
    cleaned_wasted: int
    """and of these, written to again before the next flush."""
    collapsed: int
    """Pages that became parts of a huge one, as they stay in memory."""
    standby: int
    """Bytes not mapped, but still in memory."""
    idle: int
    """Bytes of `used` that hold nothing, kept warm for the next fills: the pager's."""
    fault_ns: tuple[int, ...]
    """Element i counts faults that took from 2**i to 2**(i+1) nanoseconds from being read to being served."""
    fillers: int
    evictors: int
    uffd: int
    """How userfaultfd was opened: 1 the device, 2 the system call, 3 for user mode only."""
    regions: int
    mechanism: str
    """How pages are placed: "copy"."""

    def fault_seconds(self, quantile: float) -> float:
        """Returns the time below which `quantile` (0 to 1) of the faults were served, to a factor of two; 0.0: none."""
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile is {quantile}: wants 0 to 1")
        left = quantile * sum(self.fault_ns)
        for bucket, count in enumerate(self.fault_ns):
            left -= count
            if count and left <= 0:
                return 2.0 ** (bucket + 1) * 1e-9
        return 0.0


def make_stats(raw: um_stats) -> Stats:
    values = {field.name: getattr(raw, field.name) for field in fields(Stats)}
    values["fault_ns"] = tuple(raw.fault_ns)
    values["mechanism"] = ffi.string(raw.mechanism).decode()
    return Stats(**values)
