"""A stream over more than fits into memory."""

import os
import statistics
from pathlib import Path

import numpy as np

import umappy

MEMORY = 256 << 20


def read_again(path: Path) -> int:
    """Bytes read, after a stream, for half of the memory's size of what came first, behind the first quarter."""
    with umappy.Pager(MEMORY) as pager, umappy.umap(path, pager=pager) as region:
        array = np.frombuffer(region, np.uint64)
        array.sum()
        before = region.stats().bytes_read
        part = array[MEMORY // 4 // 8 : 3 * MEMORY // 4 // 8]
        part.sum()
        read = region.stats().bytes_read - before
        del array, part
    return read


def test_stream_over_more_than_fits_keeps_what_came_first(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 5 * MEMORY)
    assert statistics.median(read_again(path) for _ in range(5)) <= 0.4 * MEMORY / 2
