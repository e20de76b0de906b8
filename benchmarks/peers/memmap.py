"""np.memmap, as it comes and with its best madvise."""

from __future__ import annotations

import mmap

import numpy as np

from harness.child import Meter
from harness.number_file import NumberFile

ADVICE = {"random": mmap.MADV_RANDOM, "sequential": mmap.MADV_SEQUENTIAL, "hugepage": mmap.MADV_HUGEPAGE}


def open_memmap(path: str, mode: str = "r", advice: str | None = None, size: int | None = None) -> np.memmap:
    """The file, or its first `size` bytes, as float64."""
    a = np.memmap(path, np.float64, mode=mode, shape=None if size is None else (size // 8,))  # type: ignore[call-overload]
    advise(a, advice)
    return a


def advise(a: np.memmap, advice: str | None) -> None:
    if advice is not None:
        a._mmap.madvise(ADVICE[advice])


def sum_memmap(
    meter: Meter, path: str, advice: str | None = None, size: int | None = None, passes: int = 1
) -> dict[str, float]:
    a = open_memmap(path, advice=advice, size=size)
    with meter:
        total = sum(float(a.sum()) for _ in range(passes))
    return {"sum": total}


def gather_memmap(
    meter: Meter, path: str, count: int, reads: int, seed: int, advice: str | None = None, warm: bool = False
) -> dict[str, float]:
    """`warm`: after a pass over all, before the advice."""
    indices = NumberFile(path, count).pick(reads, seed)
    a = open_memmap(path)
    if warm:
        a.sum()
    advise(a, advice)
    with meter:
        total = a[indices].sum()
    return {"sum": total}


def add_memmap(meter: Meter, path: str, advice: str | None = None) -> dict[str, float]:
    a = open_memmap(path, "r+", advice)
    with meter:
        a += 1
        a.flush()
    return {}
