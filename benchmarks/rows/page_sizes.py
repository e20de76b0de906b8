"""A file read through and at random with pages of a given size; the contender of page_size.py, which has no target."""

from __future__ import annotations

import time

import numpy as np

import umappy
from harness.child import Meter

READS = 20_000


def read_file(meter: Meter, path: str, memory: int, page_size: int) -> dict[str, float]:
    with umappy.Pager(memory) as pager, umappy.umap(path, pager=pager, page_size=page_size) as region:
        a = np.frombuffer(region, np.float64)
        indices = np.random.default_rng(0).integers(0, len(a), READS)
        with meter:
            started = time.perf_counter()
            a.sum()
            between = time.perf_counter()
            a[indices].sum()
            ended = time.perf_counter()
        values = {
            "bytes_per_second": len(region) / (between - started),
            "seconds_per_read": (ended - between) / READS,
        }
        del a
    return values
