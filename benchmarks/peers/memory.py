"""Plain numpy, everything in memory: the ceiling, and what ends where the data no longer fits."""

from __future__ import annotations

import numpy as np

from harness.child import Meter
from harness.number_file import NumberFile


def sum_resident(meter: Meter, path: str, size: int | None = None, passes: int = 1) -> dict[str, float]:
    """The sum of an array, `size` bytes of the file, that is in memory already; reading it in is not counted."""
    a = np.fromfile(path, np.float64, -1 if size is None else size // 8)
    with meter:
        total = sum(float(a.sum()) for _ in range(passes))
    return {"sum": total}


def gather_resident(meter: Meter, path: str, count: int, reads: int, seed: int) -> dict[str, float]:
    """Elements of an array that is in memory already."""
    indices = NumberFile(path, count).pick(reads, seed)
    a = np.fromfile(path, np.float64)
    with meter:
        total = a[indices].sum()
    return {"sum": total}
