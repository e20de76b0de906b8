"""A stream over more than fits into memory."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import umappy

MakePager = Callable[..., umappy.Pager]
MEMORY = 256 << 20


@pytest.mark.parametrize("round_", range(3))
def test_stream_over_more_than_fits_keeps_what_came_first(make_pager: MakePager, tmp_path: Path, round_: int) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 5 * MEMORY)
    with umappy.umap(path, pager=make_pager(memory=MEMORY)) as region:
        array = np.frombuffer(region, np.uint64)
        array.sum()
        before = region.stats().bytes_read
        part = array[len(array) // 20 : 3 * len(array) // 20]  # half of the memory, behind the first quarter
        part.sum()
        read = region.stats().bytes_read - before
        del array, part
    assert read <= 0.4 * MEMORY / 2, "read again, of what was to be kept"
