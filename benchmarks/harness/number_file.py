"""Files of float64 whose elements and sums are known without keeping them.

Elements are whole numbers below 2**20, a hash of their index, so that a sum is exact in whatever order it is added.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_COUNT = 1 << 20
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(44)


@dataclass(frozen=True)
class NumberFile:
    """A file of `count` such elements."""

    path: str
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return 8 * self.count

    def write(self) -> None:
        """Writes all elements anew and makes them durable."""
        with open(self.path, "r+b" if os.path.exists(self.path) else "wb") as file:
            for start in range(0, self.count, BLOCK_COUNT):
                compute_range(start, min(start + BLOCK_COUNT, self.count)).tofile(file)
            file.flush()
            os.fsync(file.fileno())

    def restore(self, indices: NDArray[np.int64]) -> None:
        """Writes single elements anew and makes them durable."""
        with open(self.path, "r+b", buffering=0) as file:
            for index, value in zip(indices.tolist(), compute_values(indices), strict=True):
                os.pwrite(file.fileno(), value.tobytes(), 8 * index)
            os.fsync(file.fileno())

    def read_sum(self) -> float:
        """Reads the file through and adds it up."""
        total = 0.0
        with open(self.path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while len(block := np.fromfile(file, np.float64, BLOCK_COUNT)):
                total += float(block.sum())
        return total

    def pick(self, count: int, seed: int) -> NDArray[np.int64]:
        """Returns `count` indices, uniform over the file."""
        return np.random.default_rng(seed).integers(0, self.count, count)


def compute_values(indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the elements at `indices`."""
    return ((indices.astype(np.uint64) * MULTIPLIER) >> SHIFT).astype(np.float64)


def compute_range(start: int, stop: int) -> NDArray[np.float64]:
    """Returns the elements from `start` to before `stop`."""
    return compute_values(np.arange(start, stop))


@functools.cache
def compute_sum(count: int) -> float:
    """Returns the sum of the first `count` elements."""
    return sum(
        float(compute_range(start, min(start + BLOCK_COUNT, count)).sum()) for start in range(0, count, BLOCK_COUNT)
    )
