"""Many mappings of one file at a time, one element of each touched: regions of one pager, or as many np.memmap."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

import umappy
from harness.child import Meter
from harness.number_file import NumberFile
from peers.mapped import read_memory
from peers.memmap import open_memmap

SEED = 5

T = TypeVar("T")


def map_regions(meter: Meter, path: str, count: int, regions: int, memory: int) -> dict[str, float]:
    """See measure_many; `used_bytes` is what the pager counts for each region."""
    with umappy.Pager(memory) as pager:
        before, used = pager.stats().used, 0

        def close(opened: list[umappy.Region]) -> None:
            nonlocal used
            used = pager.stats().used - before
            while opened:
                opened.pop().close()

        values = measure_many(
            meter,
            NumberFile(path, count).pick(regions, SEED).tolist(),
            lambda: umappy.umap(path, pager=pager),
            lambda region, index: float(np.frombuffer(region, np.float64)[index]),
            close,
        )
    return values | {"used_bytes": used / regions}


def map_memmaps(meter: Meter, path: str, count: int, regions: int) -> dict[str, float]:
    return measure_many(
        meter,
        NumberFile(path, count).pick(regions, SEED).tolist(),
        lambda: open_memmap(path),
        lambda a, index: float(a[index]),
        list.clear,  # nobody has them any more: that unmaps them
    )


def measure_many(
    meter: Meter,
    indices: list[int],
    make: Callable[[], T],
    touch: Callable[[T, int], float],
    close: Callable[[list[T]], None],
) -> dict[str, float]:
    """Opens one mapping for each index, touches each, closes all.

    Values for each mapping: seconds to open, touch and close; growth of resident memory, page tables included, when it
    is open (`open_bytes`) and when it was touched (`touched_bytes`, of which 4096 are its page).
    """
    allow_files()
    before, clock = read_memory(), time.perf_counter
    with meter:
        times = [clock()]
        opened = [make() for _ in indices]
        times.append(clock())
        at_open = read_memory()
        total = sum(map(touch, opened, indices))
        times.append(clock())
        touched = read_memory()
        close(opened)
        times.append(clock())
    took = zip(("open", "touch", "close"), times[:-1], times[1:], strict=True)
    return {
        "sum": total,
        "open_bytes": (at_open.total - before.total) / len(indices),
        "touched_bytes": (touched.total - before.total) / len(indices),
        **{f"{what}_seconds": (end - start) / len(indices) for what, start, end in took},
    }


def allow_files() -> None:
    """As many open files as the system lets us: each mapping has some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
