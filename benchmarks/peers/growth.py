"""Touches all over a sparse file: what one costs, and what memory is spent for the page and for the address space."""

from __future__ import annotations

import errno
import os

import numpy as np
from numpy.typing import NDArray

import umappy
from harness.child import Meter
from harness.number_file import compute_values
from peers.mapped import Memory, read_memory
from peers.memmap import open_memmap

SEED = 6
PAGE = 4096
GIB = 1 << 30
WRITTEN = 64
"""Of the touched elements, how many are not in a hole: who reads the wrong place gets the wrong sum."""


def make_sparse(path: str, size: int, touches: int) -> int:
    """Makes a file of `size` bytes, nearly all of it a hole; returns its size, a page less where that is too much."""
    with open(path, "wb") as file:
        try:
            file.truncate(size)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            size -= PAGE
            file.truncate(size)
        written = pick_spread(size, touches)[:WRITTEN]
        for index, value in zip(written.tolist(), compute_values(written), strict=True):
            os.pwrite(file.fileno(), value.tobytes(), 8 * index)
        os.fsync(file.fileno())
    return size


def sum_spread(size: int, touches: int) -> float:
    """Returns what touching them adds up to."""
    return float(compute_values(pick_spread(size, touches)[:WRITTEN]).sum())


def pick_spread(size: int, touches: int) -> NDArray[np.int64]:
    """Returns the indices of `touches` elements, each in a page of its own, in an order without pattern."""
    pages = np.random.default_rng(SEED).choice(size // PAGE, touches, replace=False)
    return pages * (PAGE // 8) + pages % (PAGE // 8)


def touch_region(meter: Meter, path: str, size: int, touches: int, memory: int) -> dict[str, float]:
    """See measure; `used_per_page` is what the pager counts of a page, in bytes."""
    before = read_memory()
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager) as region:
        used = pager.stats().used
        a = np.frombuffer(region, np.float64)
        values = measure(meter, a, size, touches, before)
        del a
        stats = pager.stats()
    return values | {
        "used_per_page": (stats.peak_used - used) / touches,
        "peak_used": stats.peak_used,
        "evictions": stats.evictions,
    }


def touch_memmap(meter: Meter, path: str, size: int, touches: int, advice: str | None = None) -> dict[str, float]:
    before = read_memory()
    return measure(meter, open_memmap(path, advice=advice), size, touches, before)


def measure(meter: Meter, a: NDArray[np.float64], size: int, touches: int, before: Memory) -> dict[str, float]:
    """Values in bytes.

    `opened`: growth since `before`, with page tables, at the first touch. Growth from then on, a page touched:
    `pages_per_page` of resident pages, of which 4096 are its own, and `tables_per_page` of page tables. `cost_per_gib`:
    of all growth what is not touched pages, a GiB of address space.
    """
    indices = pick_spread(size, touches).tolist()
    opened, total = read_memory(), 0.0
    with meter:
        for index in indices:
            total += a[index]
    touched = read_memory()
    return {
        "sum": float(total),
        "opened": opened.total - before.total,
        "pages_per_page": (touched.pages - opened.pages) / touches,
        "tables_per_page": (touched.tables - opened.tables) / touches,
        "cost_per_gib": (touched.total - before.total - PAGE * touches) / (size / GIB),
    }
