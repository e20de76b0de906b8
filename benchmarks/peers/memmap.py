"""np.memmap, as it comes and with its best madvise."""

from __future__ import annotations

import mmap

import numpy as np

from harness.child import Meter

ADVICE = {"random": mmap.MADV_RANDOM, "sequential": mmap.MADV_SEQUENTIAL, "hugepage": mmap.MADV_HUGEPAGE}


def open_memmap(path: str, mode: str = "r", advice: str | None = None) -> np.memmap:
    """The file as float64."""
    a = np.memmap(path, np.float64, mode=mode)  # type: ignore[call-overload]
    if advice is not None:
        a._mmap.madvise(ADVICE[advice])
    return a


def sum_memmap(meter: Meter, path: str, advice: str | None = None) -> dict[str, float]:
    a = open_memmap(path, advice=advice)
    with meter:
        total = a.sum()
    return {"sum": total}
