"""Single touches, `a[i]`, of pages that are absent: how long each takes."""

from __future__ import annotations

import os
import time

import numpy as np
from numpy.typing import NDArray

from harness.child import Meter
from harness.number_file import NumberFile, compute_values
from peers.mapped import open_mapped

SEED = 3
PAGE = 4096
SPREAD = 64 << 10
"""Bytes of the file of which one page is touched: what is in the page cache, the kernel maps as many at once."""
PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)


def pick_touches(count: int, touches: int) -> NDArray[np.int64]:
    """Returns indices into a file of `count` elements: at most `touches`, in an order without pattern."""
    places = np.random.default_rng(SEED).permutation(8 * count // SPREAD)[:touches]
    return places * (SPREAD // 8)


def touch_pages(
    meter: Meter,
    path: str,
    count: int,
    touches: int,
    cached: bool,
    memory: int | None = None,
    advice: str | None = None,
) -> dict[str, float]:
    """Values in microseconds: `p1` to `p99.9` and `max`; `present`, the median of touching the same once more.

    `cached`: the pages, and only they, are in the page cache first.
    """
    indices = pick_touches(count, touches).tolist()
    if cached:
        read_in(path, indices)
    with open_mapped(path, memory, advice) as a:
        with meter:
            took, total = time_touches(a, indices)
        again, _ = time_touches(a, indices)
        del a
    return {"sum": total, "present": float(np.median(again)), **describe(took)}


def time_touches(a: NDArray[np.float64], indices: list[int]) -> tuple[NDArray[np.float64], float]:
    """Returns microseconds of each touch, and the sum of what was there."""
    clock, took, total = time.perf_counter_ns, [0] * len(indices), 0.0
    for number, index in enumerate(indices):
        started = clock()
        value = a[index]
        took[number] = clock() - started
        total += value
    return np.array(took) / 1e3, float(total)


def describe(took: NDArray[np.float64]) -> dict[str, float]:
    percentiles = zip(PERCENTS, np.percentile(took, PERCENTS).tolist(), strict=True)
    return {f"p{percent:g}": value for percent, value in percentiles} | {"max": float(took.max())}


def read_in(path: str, indices: list[int]) -> None:
    """Brings the pages of these elements into the page cache, and no others."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for index in indices:
            os.pread(file.fileno(), PAGE, 8 * index // PAGE * PAGE)


def sum_touches(numbers: NumberFile, touches: int) -> tuple[float, int]:
    """Returns what `sum` has to be, and of how many touches."""
    indices = pick_touches(numbers.count, touches)
    return float(compute_values(indices).sum()), len(indices)
